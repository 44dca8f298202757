"""`glamm-mini parity`: our numbers beside the official model's, on the bundled case or on another."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from glamm_mini.cli.options import figures_to


def parity(
    case: Annotated[
        Path | None, typer.Option(help="Folder of a reference case; default: the bundled small one.")
    ] = None,
    first_difference: Annotated[
        bool, typer.Option("--first-difference", help="Stop at the first quantity that differs and name its place.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="A line for every quantity, not for every family.")] = False,
    json_out: Annotated[
        str | None, typer.Option("--json", metavar="FILE|-", help="Write all rows as one line of JSON; - for stdout.")
    ] = None,
) -> None:
    """Compare preprocessing, token ids, every layer, losses, gradients and answers with the official model's numbers.

    Weights and images follow from names, so nothing is downloaded. Exit status 1 when a quantity differs.
    """
    from glamm_mini import paths
    from glamm_mini.checks.parity.case import ReferenceCase
    from glamm_mini.checks.parity.compare import compare_case
    from glamm_mini.checks.parity.inputs import compare_inputs
    from glamm_mini.checks.parity.table import full_table, summary_table, verdict

    opened, console = ReferenceCase(case or paths.parity_folder() / "case_small"), Console()
    with figures_to(json_out) as figures:
        rows = _shown(chain(compare_inputs(), compare_case(opened)), console)
        if first_difference:
            rows = _until_first(rows, console)
        rows = list(rows)
        if not first_difference:
            console.print((full_table if full else summary_table)(rows))
        console.print(verdict(rows) + _memory())
        if made_by := opened.meta.get("made_by"):
            console.print(f"The case was made by {made_by}.", markup=False)
        figures |= {"case": opened.folder.name, "made_by": made_by, "rows": [row.to_dict() for row in rows]}
    if not all(row.ok for row in rows):
        raise typer.Exit(1)


def _shown(rows: Iterator, console: Console) -> Iterator:
    """The rows, with a line that says which one is being made."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("preparing")
        for row in rows:
            progress.update(task, description=f"{row.part} {row.name}".replace("[", r"\["))
            yield row


def _until_first(rows: Iterator, console: Console) -> Iterator:
    """The rows up to the first that differs, which is explained."""
    before = None
    for row in rows:
        yield row
        if not row.ok:
            console.print(_explained(row, before), markup=False)
            return
        before = row
    console.print("No quantity differs.")


def _explained(row, before) -> str:
    size = row.note if row.note and row.difference == float("inf") else f"largest difference {row.difference:.3g}"
    text = f"First difference: {row.part} {row.name}: {size}, tolerance {row.tolerance:g}."
    if before is None:
        return text + " It is the first quantity of all."
    return text + f"\nThe last that agrees is {before.part} {before.name}: what is wrong lies between the two."


def _memory() -> str:
    """The most memory that the process has held, in words; nothing where the system does not tell."""
    import torch

    from glamm_mini.checks.bench.measure import peak_bytes

    try:
        return f"; at most {peak_bytes(torch.device('cpu')) / 1e9:.2f} GB of memory"
    except OSError:
        return ""
