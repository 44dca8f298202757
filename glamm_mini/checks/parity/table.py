"""Rows of a comparison as tables: every quantity, or one line for each family of quantities."""

import math
import re
from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from glamm_mini.checks.parity.compare import Comparison


def family(row: Comparison) -> tuple[str, str]:
    """The file, and the quantity without its tag and without the numbers behind its name."""
    if "/grad_norm/" in row.name:
        return row.part, "gradient norms"
    if "/grad/" in row.name:
        return row.part, "gradients"
    if row.part == "tokens":
        return row.part, row.name.split("/")[0]
    return row.part, re.sub(r"(_image|_level|_)?\d+$", "", row.name.split("/")[-1]) or row.name


def worst_of_families(rows: Iterable[Comparison]) -> list[tuple[Comparison, int, int]]:
    """For each family, in the order of its first row: the worst row under the family's name, how many rows, and how
    many of them agree."""
    groups = {}
    for row in rows:
        groups.setdefault(family(row), []).append(row)
    return [
        (
            Comparison(part, name, max(r.difference for r in found), worst.tolerance, worst.share, worst.note),
            len(found),
            sum(r.ok for r in found),
        )
        for (part, name), found in groups.items()
        for worst in [max(found, key=lambda r: r.share)]
    ]


def summary_table(rows: Iterable[Comparison]) -> Table:
    """One line for each file and family of quantities."""
    table = _table("count")
    for row, count, agree in worst_of_families(rows):
        table.add_row(*_cells(row, str(count) if agree == count else f"{agree} of {count}"))
    return table


def full_table(rows: Iterable[Comparison]) -> Table:
    """One line for each quantity."""
    table = _table("note")
    for row in rows:
        table.add_row(*_cells(row, row.note))
    return table


def verdict(rows: list[Comparison]) -> str:
    """The count in words."""
    wrong = sum(not row.ok for row in rows)
    return f"{len(rows)} quantities compared, " + (f"{wrong} differ" if wrong else "all agree")


def _table(third: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", no_wrap=True)
    table.add_column("quantity", overflow="fold", min_width=19)
    table.add_column(third, overflow="fold")
    for name in ("difference", "tolerance", "used", "ok"):
        table.add_column(name, justify="right")
    return table


def _cells(row: Comparison, third: str) -> list[str]:
    used = f"{row.share:.1%}" if math.isfinite(row.share) else "-"
    allowed = "exact" if row.tolerance == 0 else f"{row.tolerance:g}"
    ok = "[green]yes[/]" if row.ok else "[red]NO[/]"
    return [row.part, escape(row.name), escape(third), f"{row.difference:.3g}", allowed, used, ok]
