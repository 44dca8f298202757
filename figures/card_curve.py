"""Draws the tiny model's validation figures over the minutes of its training."""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from training_records import Round, whole_curve

from glamm_mini.visuals.palette import PALETTE, hex_color

LINES = {
    "gcg_miou": ("grounded answers: mIoU", PALETTE[0]),
    "gcg_recall": ("grounded answers: mask recall", PALETTE[3]),
    "refseg_giou": ("referring: gIoU", PALETTE[5]),
    "regcap_class_accuracy": ("regions: class right", PALETTE[2]),
    "vqa_accuracy": ("questions: right", PALETTE[11]),
}
"""Figure of the training record: what it is called in the picture, and its color."""

INK, QUIET, GRID = "#1a1d21", "#687078", "#e2e5e9"
APART = 0.062
"""Two names at the lines' ends stand at least this far apart, on the scale of the figures."""


def draw_curve(rounds: list[Round], path: Path) -> None:
    """Write the picture; each line carries its name at its end, dashed lines part the rounds."""
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 14}):
        figure = Figure(figsize=(10, 5.2), dpi=100)
        axes = figure.add_axes((0.06, 0.13, 0.535, 0.73))
        curve = whole_curve(rounds)
        minutes = sum(one.minutes for one in rounds)
        ends = {}
        for name, (_, color) in LINES.items():
            points = [(minute, figures[name]) for minute, figures in curve if name in figures]
            if points:
                axes.plot(*zip(*points, strict=True), color=hex_color(color), lw=2.6, marker="o", ms=6, zorder=3)
                ends[name] = points[-1]
        _name_lines(axes, ends, minutes)
        _mark_rounds(axes, rounds)
        _dress(axes, minutes)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white")


def spread(values: list[float], apart: float) -> list[float]:
    """Moves values as little as needed until neighbors are `apart`; their order stays."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    groups: list[list[int]] = []
    for k in order:
        groups.append([k])
        while (
            len(groups) > 1
            and _middle(groups[-1], values) - _middle(groups[-2], values)
            < apart * (len(groups[-1]) + len(groups[-2])) / 2 - 1e-9
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = list(values)
    for group in groups:
        lowest = _middle(group, values) - apart * (len(group) - 1) / 2
        for place, k in enumerate(group):
            moved[k] = lowest + apart * place
    return moved


def _middle(group: list[int], values: list[float]) -> float:
    return sum(values[k] for k in group) / len(group)


def _name_lines(axes, ends: dict[str, tuple[float, float]], minutes: float) -> None:
    heights = spread([value for _, value in ends.values()], APART)
    for (name, (minute, value)), height in zip(ends.items(), heights, strict=True):
        label, color = LINES[name]
        tip = minutes * 1.045
        axes.plot([minute, tip], [value, height], color=hex_color(color), lw=1, clip_on=False, zorder=2)
        axes.text(tip, height, f" {value:.2f}  {label}", color=hex_color(color), va="center", fontsize=13.5)


def _mark_rounds(axes, rounds: list[Round]) -> None:
    before = 0.0
    for number, one in enumerate(rounds, start=1):
        if number > 1:
            axes.axvline(before, color=QUIET, lw=1.2, ls=(0, (4, 4)), zorder=1)
        if len(rounds) > 1:
            axes.text(before + one.minutes / 2, 1.02, f"round {number}", color=QUIET, ha="center", fontsize=13)
        before += one.minutes


def _dress(axes, minutes: float) -> None:
    axes.set(xlim=(0, minutes * 1.02), ylim=(0, 1), xlabel="minutes of training")
    axes.set_title("What the tiny model gets right on validation scenes", loc="left", color=INK, fontsize=16, pad=26)
    axes.grid(axis="y", color=GRID, lw=1)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0)
    axes.xaxis.label.set_color(QUIET)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
