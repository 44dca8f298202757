"""How a model was made, in a file beside it."""

import json
import sys
from pathlib import Path

from glamm_mini.training.logs import read_log


def write_record(run: Path, target: Path, **more) -> None:
    """How a model was made, beside it: the command, the settings, seconds of training, and the last losses.

    `more`: JSON-ready values that the settings do not hold, such as the recipe and the start.
    """
    log = read_log(run / "log.jsonl")
    record = {
        "command": " ".join(["glamm-mini", *sys.argv[1:]]),
        **more,
        "settings": json.loads((run / "settings.json").read_text("utf-8")),
        "seconds": round(sum(line.get("seconds", 0.0) for line in log)),
        "validation": [{"step": line["step"], **line["validation"]} for line in log if "validation" in line],
        "last": next((line for line in reversed(log) if "loss" in line), None),
    }
    target.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
