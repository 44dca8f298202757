"""Runs notebooks from top to bottom and stores them with their outputs: python notebooks/execute.py [NOTEBOOK ...]

Without names, all of them. The network is closed to them: a notebook that needs it fails here, not at the reader's.
"""

import argparse
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import costs
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
NOWHERE = "http://127.0.0.1:9"
CLOSED = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    **{name: NOWHERE for scheme in ("http", "https") for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
STATED = re.compile(r"\| 2 CPU cores \| (\d+) minutes? \| ([\d.]+) GB \|")


class Run(NamedTuple):
    """An executed notebook and what it took: seconds on the clock; seconds of computing, which do not depend on what
    else the machine does, and the most memory held in GB (both None on systems without /proc)."""

    notebook: nbformat.NotebookNode
    seconds: float
    computing: float | None
    gigabytes: float | None


def notebooks() -> list[Path]:
    """All notebooks of the course, the solutions last."""
    return [*sorted(FOLDER.glob("*.ipynb")), *sorted((FOLDER / "solutions").glob("*.ipynb"))]


def stated(notebook: nbformat.NotebookNode) -> tuple[int, float] | None:
    """Minutes and GB that the notebook's first cell promises; None where it promises nothing."""
    found = STATED.search(notebook.cells[0].source)
    return (int(found[1]), float(found[2])) if found else None


def run(path: Path, home: Path | None = None) -> Run:
    """Execute a notebook as if it lay in `home`, by default where it lies; nothing is written.

    Raises CellExecutionError for the first cell that fails.
    """
    [done] = run_in_turn([path], home)
    return done


def run_in_turn(paths: list[Path], home: Path | None = None) -> list[Run]:
    """Execute notebooks one after the other in one kernel, as `run` does.

    Between them every name is forgotten, while what was imported stays loaded: a kernel's first imports take longer
    than most solutions. The memory is the most that was held since the start.
    """
    client = NotebookClient(
        nbformat.read(paths[0], as_version=4),
        kernel_name="python3",
        timeout=600,
        extra_arguments=["--IPKernelApp.log_level=40"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(home or paths[0].parent)}},
    )
    runs: list[Run] = []
    started, before = time.monotonic(), 0.0
    with client.setup_kernel(env=os.environ | CLOSED):
        for path in paths:
            if runs:
                emptied = f"%reset -f\n%cd -q {home or path.parent}"
                _execute(client, nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(emptied)]))
                started = time.monotonic()
            notebook = nbformat.read(path, as_version=4)
            _execute(client, notebook)
            seconds = time.monotonic() - started
            computing, gigabytes = _usage(Path(f"/proc/{client.km.provisioner.pid}"))
            runs.append(Run(notebook, seconds, computing and computing - before, gigabytes))
            before = computing or 0.0
            _tidy(notebook)
    return runs


def _execute(client: NotebookClient, notebook: nbformat.NotebookNode) -> None:
    client.nb = notebook
    client.reset_execution_trackers()
    for index, cell in enumerate(notebook.cells):
        client.execute_cell(cell, index)


def _usage(process: Path) -> tuple[float | None, float | None]:
    """Seconds of computing of a process, and the most memory it has held in GB."""
    if not (process / "stat").exists():
        return None, None
    # The name in the second field may hold blanks; utime and stime are the 12th and 13th field behind it.
    fields = (process / "stat").read_text("utf-8").rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    peak = re.search(r"VmHWM:\s+(\d+) kB", (process / "status").read_text("utf-8"))
    return ticks / os.sysconf("SC_CLK_TCK"), int(peak[1]) * 1024 / 1e9


def _tidy(notebook: nbformat.NotebookNode) -> None:
    """Keep what a page can show and what is equal on every machine.

    A widget's view means nothing without its state, and GitHub refuses pages whose state it cannot read: where a
    picture stands for the widget, the picture is kept alone.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop(WIDGET, None)


def main() -> None:
    """Execute and store; the list of what each run took goes to the screen, not into the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path)
    for path in parser.parse_args().notebooks or notebooks():
        path = path.resolve()
        done = run(path)
        nbformat.write(done.notebook, path)
        if path.parent == FOLDER and done.computing is not None:
            costs.record(path, done)
            costs.write_table()
        size = path.stat().st_size / 1e6
        print(f"{path.name} in {path.parent.name}/, {size:.1f} MB: {what_it_took(done)}", flush=True)


def what_it_took(done: Run) -> str:
    """ "25 s, of these 20 s computing, 1.04 GB"."""
    if done.computing is None or done.gigabytes is None:
        return f"{done.seconds:.0f} s"
    return f"{done.seconds:.0f} s, of these {done.computing:.0f} s computing, {done.gigabytes:.2f} GB"


if __name__ == "__main__":
    main()
