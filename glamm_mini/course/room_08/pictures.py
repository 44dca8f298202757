"""Pictures of notebook 08: losses by term, schedules, what has moved, and masks as they sharpen."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from glamm_mini.course.drawing.diagram import INK, Diagram
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_08.lesson import HeldOut
from glamm_mini.data.sample import Sample
from glamm_mini.processing.tags import parse_grounded
from glamm_mini.visuals.overlay import overlay_at_size
from glamm_mini.visuals.palette import PALETTE, RGB, color, hex_color

TERMS = {
    "ce": ("words: cross-entropy", PALETTE[1]),
    "mask_bce": ("pixels: binary cross-entropy", PALETTE[3]),
    "mask_dice": ("masks: 1 - dice", PALETTE[0]),
}
"""A term of the loss to its title and color."""

CARD, PILL, ROW = 560, 26, 52


def _axes(columns: int, height: float = 3.0):
    """A figure of the notebooks' width and its axes, without frames."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(8, height), layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _picture(figure) -> Image.Image:
    """The figure, 1200 pixels wide: charts are shown at two thirds of that, and sharp."""
    from matplotlib import pyplot

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    pyplot.close(figure)
    return Image.open(buffer).convert("RGB")


def loss_chart(training: Sequence[Mapping], checks: Sequence[tuple[int, Mapping]]):
    """A panel a term: the training loss as a line, the held-out loss as dots.

    training: lines of the log, with "step" and the terms. checks: (step, figures) of held-out scenes.
    """
    figure, axes = _axes(len(TERMS))
    for ax, (term, (title, ink)) in zip(axes, TERMS.items(), strict=True):
        ax.plot([line["step"] for line in training], [line[term] for line in training], color=hex_color(ink))
        held_out = [figures[term] for _, figures in checks]
        ax.plot([step for step, _ in checks], held_out, "o", color="black", markersize=5)
        ax.set(title=title, xlabel="step", ylim=(0, None))
        ax.title.set_fontsize(10)
    # No point of the data is near a corner of every panel: a legend below all of them hides nothing.
    from matplotlib.lines import Line2D

    line = Line2D([], [], color=hex_color(INK))
    dots = Line2D([], [], color="black", marker="o", linestyle="")
    figure.legend([line, dots], ["training", "held out"], loc="outside lower center", ncols=2, frameon=False)
    return _picture(figure)


def line_chart(curves: Mapping[str, tuple[Sequence, Sequence]], xlabel: str, ylabel: str):
    """Named curves (x, y) in the palette's colors, each with its own dashes."""
    figure, (ax,) = _axes(1)
    for number, (name, (x, y)) in enumerate(curves.items()):
        style = ("-", "--", "-.", ":")[number % 4]
        ax.plot(x, y, style, color=hex_color(color(number)), label=name, linewidth=2)
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    ax.legend(frameon=False)
    return _picture(figure)


def bar_chart(values: Mapping[str, float], xlabel: str, ink: RGB = PALETTE[0], form: str = "{:.1%}"):
    """Horizontal bars, the first on top, each with its value."""
    figure, (ax,) = _axes(1, 0.9 + 0.36 * len(values))
    names = list(values)[::-1]
    bars = ax.barh(names, [values[name] for name in names], color=hex_color(ink))
    ax.bar_label(bars, [form.format(values[name]) for name in names], padding=4)
    ax.set(xlabel=xlabel)
    ax.margins(x=0.12)
    return _picture(figure)


def paired_bars(first: Mapping[str, float], second: Mapping[str, float], names: tuple[str, str]):
    """Two shares for each key, as pairs of upright bars."""
    figure, (ax,) = _axes(1, 2.8)
    places = np.arange(len(first))
    for shift, shares, name, ink in ((-0.2, first, names[0], PALETTE[0]), (0.2, second, names[1], PALETTE[1])):
        bars = ax.bar(places + shift, [shares[key] for key in first], 0.38, color=hex_color(ink), label=name)
        ax.bar_label(bars, [f"{shares[key]:.0%}" for key in first], padding=2, fontsize=8)
    ax.set(xticks=places, xticklabels=list(first), ylabel="share")
    ax.margins(y=0.12)  # room for the label of the tallest bar
    ax.legend(frameon=False)
    return _picture(figure)


def masks_card(sample: Sample, masks: Sequence[np.ndarray], ious: Sequence[float]) -> Image.Image:
    """A picture with the masks of its first answer; below, each phrase on its mask's color, with the mask's IoU."""
    phrases = [phrase.text for phrase in parse_grounded(sample.conversations[0][0].answer).phrases]
    height = round(CARD * sample.image.shape[0] / sample.image.shape[1])
    ruler, rows, x = Diagram(10, 10), [[]], 0.0
    for number, (phrase, iou) in enumerate(zip(phrases, ious, strict=True)):
        words = f"{phrase} {float(iou):.2f}"
        wide = ruler.length(words, PILL) + 0.8 * PILL
        if rows[-1] and x + wide > CARD:
            rows.append([])
            x = 0.0
        rows[-1].append((x, words, number))
        x += wide + 12
    diagram = Diagram(CARD, height + 14 + ROW * len(rows))
    diagram.paste(overlay_at_size(sample.image, list(masks), (CARD, height)), (0, 0, CARD, height))
    for row, entries in enumerate(rows):
        for x, words, number in entries:
            diagram.pill((x, height + 14 + ROW * (row + 0.5)), words, color(number), PILL)
    return diagram.finish()


def masks_at(samples: Sequence[Sample], held_out: HeldOut, steps: Sequence[int], step: int, scene: int):
    """The card of a scene at a step, and words about it; `steps` are those of the calls of `held_out`."""
    check = list(steps).index(step)
    ious = held_out.ious[check][scene]
    masks = [mask.numpy() for mask in held_out.drawn[check][scene]]
    words = f"step {step}: mean IoU {float(ious.mean()):.2f} of {len(ious)} masks"
    return masks_card(samples[scene], masks, ious.tolist()), words


def training_explorer(
    samples: Sequence[Sample], held_out: HeldOut, steps: Sequence[int], scene: int = 0, width: int = 560
) -> PictureExplorer:
    """Move through the training of a run: a slider for the step, one for the held-out scene."""
    shown = [steps[0], steps[len(steps) // 4], steps[-1]]
    return PictureExplorer(
        lambda choice: masks_at(samples, held_out, steps, choice["step"], choice["scene"]),
        {"step": list(steps), "scene": (list(range(len(samples))), scene)},
        title="Masks of a held-out scene, step by step",
        width=width,
        panels=[{"step": step} for step in shown],
        alt=f"A held-out scene at the steps {', '.join(map(str, shown))}: its masks grow sharper.",
    )
