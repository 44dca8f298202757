"""The notebooks for a class, without solutions and outputs: python notebooks/classroom.py FOLDER"""

import argparse
import shutil
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
SOLUTIONS = "(solutions/"


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without outputs, and without the sentences that lead to the solutions."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        elif SOLUTIONS in cell.source:
            lines = cell.source.split("\n")
            cell.source = "\n".join(
                line if SOLUTIONS not in line else ". ".join(s for s in line.split(". ") if SOLUTIONS not in s)
                for line in lines
            )
    return notebook


def main() -> None:
    """Write the class's copy of all notebooks, and the pictures that they show."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a new or empty folder; the notebooks go to its folder `notebooks`")
    target = parser.parse_args().folder
    if target.exists() and any(target.iterdir()):
        raise SystemExit(f"{target} is not empty; give a new folder, so that nothing of yours is overwritten")
    (target / "notebooks").mkdir(parents=True)
    paths = sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        nbformat.write(stripped(nbformat.read(path, as_version=4)), target / "notebooks" / path.name)
    shutil.copytree(FOLDER.parent / "figures", target / "figures", ignore=shutil.ignore_patterns("*.py"))
    print(f"{len(paths)} notebooks without outputs and solutions in {target / 'notebooks'}")


if __name__ == "__main__":
    main()
