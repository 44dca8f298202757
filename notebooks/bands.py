"""Repeats the notebooks' trainings with other seeds: python notebooks/bands.py [--seeds 0 1 2] [NOTEBOOK ...]

A notebook that trains has a cell with the tag "seed" that says `seed = 0`, and states bands with
`glamm_mini.course.sameness.band`. Every figure of every seed goes to notebooks/bands.json, with the date.
"""

import argparse
import datetime
import json
import os
import re
import tempfile
from pathlib import Path

import execute
import nbformat
from nbclient.exceptions import CellExecutionError

from glamm_mini.course.sameness import RECORD

RESULTS = execute.FOLDER / "bands.json"
SEED = re.compile(r"^seed = \d+$", re.M)


def with_seed(notebook: nbformat.NotebookNode, seed: int) -> bool:
    """Write another seed into the notebook's seed cell; False where it has none."""
    cells = [cell for cell in notebook.cells if "seed" in cell.metadata.get("tags", [])]
    for cell in cells:
        cell.source, count = SEED.subn(f"seed = {seed}", cell.source)
        if not count:
            raise ValueError(f"a cell with the tag 'seed' must hold the line 'seed = 0':\n{cell.source}")
    return bool(cells)


def figures(path: Path, seed: int) -> list[dict]:
    """The banded figures of one run of a notebook, those that fell out of their band included."""
    notebook = nbformat.read(path, as_version=4)
    if not with_seed(notebook, seed):
        return []
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".bands-") as folder:
        copy, record = Path(folder) / path.name, Path(folder) / "record.jsonl"
        nbformat.write(notebook, copy)
        os.environ[RECORD] = str(record)
        try:
            execute.run(copy, home=path.parent)
        except CellExecutionError as problem:
            print(f"{path.stem}, seed {seed}: stopped: {problem.ename}: {problem.evalue}", flush=True)
        finally:
            del os.environ[RECORD]
        return [json.loads(line) for line in record.read_text("utf-8").splitlines()] if record.exists() else []


def main() -> None:
    """Run every notebook that trains, once a seed, and store what it reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for path in given.notebooks or sorted(execute.FOLDER.glob("*.ipynb")):
        runs = {seed: figures(path.resolve(), seed) for seed in given.seeds}
        if not any(runs.values()):
            continue
        values = {one["name"]: {"low": one["low"], "high": one["high"]} for run in runs.values() for one in run}
        for name, entry in values.items():
            entry["seeds"] = {str(s): one["value"] for s, run in runs.items() for one in run if one["name"] == name}
        kept[path.stem] = {"date": datetime.date.today().isoformat(), "figures": values}
        RESULTS.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")
        print(path.stem, json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
