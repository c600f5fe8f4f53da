"""`/docs`: the API's description as a page to read. Made here from `/openapi.json`, with nothing from anywhere else:
what is usual for it loads its scripts from the network, which an edge site need not have."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
details { border: 1px solid #8886; border-radius: 6px; margin: .4rem 0; padding: .3rem .8rem; }
summary { cursor: pointer; } code, pre { font: .9em ui-monospace, monospace; }
pre { overflow-x: auto; background: #8881; padding: .6rem; border-radius: 6px; }
.m { display: inline-block; min-width: 4.5rem; font-weight: 600; } td, th { text-align: left; padding: .1rem .8rem .1rem 0; }
"""  # noqa: E501
MEC = (
    ("/amsi/v1", "ETSI GS MEC 021 v2.2.1, Application Mobility Service"),
    ("/rni/v2", "ETSI GS MEC 012 v2.2.1, Radio Network Information"),
    ("/location/v2", "ETSI GS MEC 013 v2.2.1, Location"),
)
"""They are described by files of their own."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


def add_reference(app: FastAPI) -> None:
    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": POLICY})


def page(document: dict[str, Any]) -> str:
    """Operations by tag, and the kinds that they take and answer."""
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["other"])[0]
            groups.setdefault(tag, []).append(_operation(method, path, operation))
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    kinds = "".join(
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
        f"<p>{escape(schema.get('description', ''))}</p>{_json(schema)}</details>"
        for name, schema in sorted(document.get("components", {}).get("schemas", {}).items())
    )
    interfaces = "".join(f"<li><code>{escape(path)}</code> {escape(name)}</li>" for path, name in MEC)
    parts = "".join(f"<h2>{escape(tag)}</h2>{''.join(operations)}" for tag, operations in groups.items())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f'<h1>{title}</h1><p>For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        "<p>Beside this API, described by the specifications' own files (docs/mec.md says what of them is served):</p>"
        f"<ul>{interfaces}</ul>{parts}"
        f"<h2>kinds</h2>{kinds}</body></html>"
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one['in'])}</td>"
        f"<td>{_shape(one.get('schema', {}))}</td></tr>"
        for one in operation.get("parameters", [])
    )
    body = "".join(
        f"<p>Body: <code>{escape(kind)}</code> {_shape(content.get('schema', {}))}</p>"
        for kind, content in operation.get("requestBody", {}).get("content", {}).items()
    )
    answers = "".join(
        f"<tr><td>{escape(status)}</td><td>{escape(answer.get('description', ''))}</td><td>"
        + ", ".join(
            f"<code>{escape(kind)}</code> {_shape(content.get('schema', {}))}"
            for kind, content in answer.get("content", {}).items()
        )
        + "</td></tr>"
        for status, answer in operation["responses"].items()
    )
    return (
        f'<details><summary><span class="m">{escape(method.upper())}</span> <code>{escape(path)}</code></summary>'
        f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>"
        f"<table>{rows}</table>{body}<table>{answers}</table></details>"
    )


def _shape(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}"><code>{name}</code></a>'
    if schema.get("type") == "array":
        return f"a list of {_shape(schema.get('items', {}))}"
    if several := schema.get("anyOf"):
        return " or ".join(_shape(one) for one in several)
    return f"<code>{escape(str(schema.get('type', 'any')))}</code>"


def _json(schema: dict[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=1, ensure_ascii=False))}</pre>"
