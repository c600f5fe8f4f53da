"""Text can be told from what it stands on: the colours of the style sheet, in both themes (WCAG 2.2, 1.4.3)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import whimbrel.web

CSS = Path(whimbrel.web.__file__).parent / "static" / "css" / "base.css"
LEAST = 4.5
"""AA, for text of any size: ours is of 11 to 14 px."""
GROUNDS = ("surface", "sunken", "ground", "cell-a", "cell-b")
PAIRS = {
    "ink": GROUNDS,
    "ink-soft": GROUNDS,
    "ink-faint": GROUNDS,
    "move": ("move-soft", "surface"),
    "bad": ("bad-soft", "surface", "sunken", "cell-a", "cell-b"),
    "good": ("good-soft",),
    "accent": ("surface",),
    "accent-ink": ("accent",),
    "surface": ("ink", "bad"),
}


def colours(selector: str) -> dict[str, str]:
    block = CSS.read_text().split(f"{selector} {{", 1)[1].split("}", 1)[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """Relative, of #rrggbb (WCAG 2.2, "relative luminance")."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_standard_has_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#7d8a85", "#ffffff") == pytest.approx(3.59, abs=0.01)


@pytest.mark.parametrize("selector", [":root", ':root[data-theme="dark"]'])
def test_text_stands_out_from_its_ground(selector: str) -> None:
    found = colours(selector)
    weak = {
        f"--{text} on --{ground}": round(contrast(found[text], found[ground]), 2)
        for text, grounds in PAIRS.items()
        for ground in grounds
        if contrast(found[text], found[ground]) < LEAST
    }
    assert weak == {}
