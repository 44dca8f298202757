"""What a long command shows while it works, always on standard error; names in it are never read as markup."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text


def working(text: str):
    """A context that shows `text` while something is done whose length is not known."""
    return Console(stderr=True).status(Text(text))


@contextlib.contextmanager
def progress(title: str, total: int, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar; gives a function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns += (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        work = bar.add_task(escape(title), total=total)
        yield lambda count: bar.advance(work, count)
