"""How the bundled models were trained, read from the records that training left beside them."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Round:
    """One training run. steps: how many were made; curve: (minutes since its start, figures by name)."""

    name: str
    command: str
    settings: dict
    seconds: float
    steps: int
    curve: list[tuple[float, dict[str, float]]]

    @property
    def minutes(self) -> float:
        return self.seconds / 60

    @property
    def out(self) -> str | None:
        """The folder that the run wrote to."""
        words = shlex.split(self.command)
        return words[words.index("--out") + 1] if "--out" in words[:-1] else None

    @property
    def start(self) -> str | None:
        """The folder of the run that this one went on from."""
        return next((w.removeprefix("start=") for w in shlex.split(self.command) if w.startswith("start=")), None)


def read_round(path: Path) -> Round:
    """A record as `glamm_mini.training.finetune.write_record` writes it.

    The record says at which step a validation was made; its minute is read off as if all steps took equally long.
    """
    record = json.loads(path.read_text("utf-8"))
    settings = record["settings"]
    steps = (record.get("last") or {}).get("step") or settings["steps"]
    curve = []
    for line in record["validation"]:
        figures = {name: value for name, value in line.items() if name != "step" and isinstance(value, float)}
        curve.append((record["seconds"] / 60 * min(1.0, line["step"] / steps), figures))
    name = path.name.removesuffix(".json").replace(".training", "")
    return Round(name, record["command"], settings, record["seconds"], steps, curve)


def read_rounds(folder: Path) -> list[Round]:
    """The rounds of a model, each behind the one that it went on from; else in the order of their files' names.

    Raises ValueError if the folder holds no record.
    """
    waiting = [read_round(path) for path in sorted(folder.glob("*training*.json"))]
    if not waiting:
        raise ValueError(f"{folder} holds no training record (*training*.json)")
    ordered: list[Round] = []
    while waiting:
        outs = {one.out for one in waiting}
        ready = [one for one in waiting if one.start is None or one.start not in outs or one.start == one.out]
        ordered += ready or waiting  # a circle of records has no first: keep their names' order
        waiting = [one for one in waiting if one not in ordered]
    return ordered


def whole_curve(rounds: list[Round]) -> list[tuple[float, dict[str, float]]]:
    """(minutes since the first round's start, figures) of all rounds, one after the other."""
    curve, before = [], 0.0
    for one in rounds:
        curve += [(before + minute, figures) for minute, figures in one.curve]
        before += one.minutes
    return curve
