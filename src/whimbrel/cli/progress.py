"""How a running migration is shown: a bar on a terminal, a line for each phase elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from whimbrel.cli.common import console
from whimbrel.model.migration import Progress


@contextlib.contextmanager
def telling(title: str, *, stderr: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Gives the function to call with each piece of news. `stderr`: standard output is for the answer
    alone."""
    out = console(stderr=stderr)
    if not out.is_terminal:
        yield _lines(title, stderr)
        return
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[news]}", markup=False),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=out, transient=True) as bar:
        task = bar.add_task(title, total=None, news="")

        def show(news: Progress) -> None:
            known = 0 <= news.fraction <= 1
            text = f"{news.phase} {news.detail}".rstrip()
            bar.update(task, news=text, total=1.0 if known else None, completed=news.fraction if known else 0.0)

        yield show


def _lines(title: str, stderr: bool) -> Callable[[Progress], None]:
    stream = sys.stderr if stderr else sys.stdout
    last = ""

    def show(news: Progress) -> None:
        nonlocal last
        text = f"{news.phase} {news.detail}".rstrip()
        if text != last:
            last = text
            print(f"{title}: {text}", file=stream, flush=True)

    return show
