"""What each notebook takes on this machine, as `make notebooks` measured it, and the table of it in README.md."""

import datetime
import hashlib
import json
import re
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
COSTS = FOLDER / "costs.json"
README = FOLDER / "README.md"
BETWEEN = re.compile(r"(?<=<!-- costs -->\n).*?(?=<!-- end of costs -->)", re.S)


def fingerprint(notebook: nbformat.NotebookNode) -> str:
    """Of the code that was measured: changes with any cell but the setup cell, whose text depends on where one is."""
    code = [c.source for c in notebook.cells if c.cell_type == "code" and "setup" not in c.metadata.get("tags", [])]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def read() -> dict[str, dict]:
    """Name of a notebook to what it took."""
    return json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {}


def record(path: Path, done) -> None:
    """Store what a run of a notebook of the course took."""
    kept = read()
    kept[path.stem] = {
        "seconds": round(done.seconds),
        "computing": done.computing and round(done.computing),
        "gigabytes": done.gigabytes and round(done.gigabytes, 2),
        "date": datetime.date.today().isoformat(),
        "code": fingerprint(done.notebook),
    }
    COSTS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")


def table() -> str:
    """Markdown: a row a notebook, and one for all of them."""
    lines = ["| notebook | seconds | of these computing | peak memory | measured |", "|---|---:|---:|---:|---|"]
    costs = read()
    for name, cost in costs.items():
        figures = f"{cost['seconds']} | {cost['computing']} | {cost['gigabytes']:.2f} GB | {cost['date']}"
        lines.append(f"| [{name}]({name}.ipynb) | {figures} |")
    whole = [sum(cost[key] for cost in costs.values()) for key in ("seconds", "computing")]
    most = max(cost["gigabytes"] for cost in costs.values())
    lines.append(f"| together | {whole[0]} | {whole[1]} | {most:.2f} GB | on 2 CPU cores |")
    return "\n".join(lines) + "\n"


def write_table() -> None:
    """Put the table into README.md, between its two marks."""
    text = README.read_text(encoding="utf-8")
    README.write_text(BETWEEN.sub(lambda _: table(), text), encoding="utf-8")
