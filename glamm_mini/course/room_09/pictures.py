"""Pictures of notebook 09: true and predicted masks, the matrix of all their pairs, and a bar to move."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from glamm_mini.course.drawing.diagram import BLUE, GREEN, INK, QUIET, Box, Diagram
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.evaluation.gcg import GroundedImage, optimal_pairs
from glamm_mini.evaluation.masks import decode_masks
from glamm_mini.evaluation.similarity import THRESHOLD
from glamm_mini.visuals.overlay import overlay_masks
from glamm_mini.visuals.palette import PALETTE, RGB, color

WRONG = PALETTE[5]
UNPAIRED = PALETTE[11]
LABELS, MOST_CELL, ROW, HEAD = 400, 92, 66, 60


def matrix_picture(
    ious: np.ndarray,
    agree: np.ndarray,
    labels: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    bar: float = 0.5,
    width: int = 1040,
    title: str = "",
) -> Image.Image:
    """An IoU matrix: a row for each true phrase, a numbered column for each predicted mask.

    Args:
        ious: (G, P) in 0..1. agree: (G, P) bool, whether the words mean the same: marked with a tick.
        labels: G phrases. pairs: (row, column) of the pairs: framed, green where IoU reaches the bar and the words
            agree, vermilion where only the IoU does, gray where not even that.
    """
    diagram = Diagram(width, HEAD + (44 if title else 0) + ROW * max(1, len(labels)) + 8)
    if title:
        diagram.words((0, 20), title, 26, bold=True)
    _matrix(diagram, (0, 44 if title else 0, width), ious, agree, labels, pairs, bar)
    return diagram.finish()


def _matrix(diagram: Diagram, place: tuple, ious, agree, labels, pairs, bar: float) -> None:
    """The matrix, its left upper corner and its right end at `place` (x, y, x end)."""
    left, top, right = place
    cell = min(MOST_CELL, (right - left - LABELS) / max(1, ious.shape[1]))
    owners = {column: row for row, column in pairs if ious[row, column] >= bar}
    for column in range(ious.shape[1]):
        middle = left + LABELS + (column + 0.5) * cell
        half = diagram.length(str(column + 1), 24, bold=True) / 2 + 9.6
        diagram.pill((middle - half, top + 30), str(column + 1), _owned(owners, column), 24, bold=True)
    for row, label in enumerate(labels):
        y = top + HEAD + row * ROW
        diagram.pill((left, y + ROW / 2), _short(diagram, label, LABELS - 40), color(row), 24)
        for column in range(ious.shape[1]):
            x = left + LABELS + column * cell
            value, box = ious[row, column], (x + 2, y + 3, x + cell - 2, y + ROW - 3)
            if (row, column) in pairs:
                edge = (GREEN if agree[row, column] else WRONG) if value >= bar else QUIET
                diagram.card(box, edge, 1, 0, 8)
                box = (x + 7, y + 8, x + cell - 7, y + ROW - 8)
            diagram.card(box, BLUE, 0.5 * value, 0, 4)
            if value >= 0.005 or agree[row, column] or (row, column) in pairs:
                _number(diagram, box, value, agree[row, column])


def _number(diagram: Diagram, box: Box, value: float, agrees: bool) -> None:
    """A number such as .87 and, below it, a tick where the words agree."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    text = f"{value:.2f}".removeprefix("0")
    diagram.words((x, y - (12 if agrees else 0)), text, 24, anchor="mm")
    if agrees:
        diagram.words((x, y + 15), "✓", 24, bold=True, ink=GREEN, anchor="mm")


def _owned(owners: dict[int, int], column: int) -> RGB:
    """A prediction wears the color of the truth that it is paired with; gray if it is with none."""
    return color(owners[column]) if column in owners else UNPAIRED


def _short(diagram: Diagram, text: str, width: float) -> str:
    while diagram.length(text, 24) > width:
        text = text.rstrip(" …")[:-1] + " …"
    return text


# ---- with pictures ----


def matching_view(image: np.ndarray, grounded: GroundedImage, bar: float = 0.5) -> Image.Image:
    """Both pictures and the matrix of one scene, 1200 pixels wide; image (H, W, 3) uint8.

    True masks wear the palette's colors; a predicted mask has that of the truth it is paired with, or gray.
    """
    pairs = [(pair.truth, pair.prediction) for pair in optimal_pairs(grounded)]
    ious, phrases = np.nan_to_num(grounded.ious, nan=1.0), grounded.prediction.phrases
    height = max(950, HEAD + ROW * len(grounded.truth.labels) + 44 * -(-len(phrases) // 2) + 190)
    diagram = Diagram(1600, height)
    owners = {column: row for row, column in pairs if ious[row, column] >= bar}
    size = grounded.truth.size
    for top, title, records, tints in (
        (0, "the truth", grounded.truth.masks, [color(k) for k in range(len(grounded.truth.masks))]),
        (476, "the answer", grounded.prediction.masks, [_owned(owners, k) for k in range(len(phrases))]),
    ):
        diagram.words((0, top + 18), title, 26, bold=True)
        w, h = _fitted(size, (500, 424))
        drawn = _overlaid(image, decode_masks(records, size), tints, (w, h))
        diagram.paste(drawn, (0, top + 44, w, top + 44 + h))
    agree = _agreement(grounded)
    _matrix(diagram, (540, 0, 1600), ious, agree, grounded.truth.labels, pairs, bar)
    top = HEAD + ROW * len(grounded.truth.labels) + 52
    diagram.words((540, top - 18), "columns: phrases of the answer", 24, ink=QUIET)
    for k, phrase in enumerate(phrases):
        x, y = 540 + 530 * (k % 2), top + 30 + 44 * (k // 2)
        diagram.pill((x, y), f"{k + 1}  {_short(diagram, phrase or 'no words', 430)}", _owned(owners, k), 24)
    _key(diagram, top + 30 + 44 * -(-len(phrases) // 2) + 20, bar)
    # Its words have 24 of 1600 pixels: at 1200 they stay readable, and the file is half as large.
    return diagram.finish().resize((1200, round(height * 0.75)), Image.Resampling.LANCZOS)


def _key(diagram: Diagram, y: float, bar: float) -> None:
    """What ticks and frames mean."""
    diagram.words((540, y), "✓", 24, bold=True, ink=GREEN)
    diagram.words((572, y), "words agree", 24, ink=QUIET)
    x = 760
    for edge, says in ((GREEN, "found and named"), (WRONG, "mask yes, words no"), (QUIET, f"IoU under {bar:.2f}")):
        diagram.card((x, y - 15, x + 34, y + 15), edge, 0, 4, 4)
        diagram.words((x + 46, y), says, 24, ink=INK)
        x += 46 + diagram.length(says, 24) + 34


def _overlaid(image: np.ndarray, masks: np.ndarray, tints: list[RGB], size: tuple[int, int]) -> Image.Image:
    """Masks (M, H, W) bool over an image (H, W, 3), both brought to `size` (width, height) first."""
    large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    soft = [Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BICUBIC) for mask in masks]
    return Image.fromarray(overlay_masks(large, [np.asarray(mask) > 0.5 for mask in soft], tints))


def _fitted(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a picture of `size` (H, W), as large as fits the room (width, height)."""
    scale = min(room[0] / size[1], room[1] / size[0])
    return round(size[1] * scale), round(size[0] * scale)


def _agreement(grounded: GroundedImage) -> np.ndarray:
    """(G, P) bool; a mask without words agrees with nothing."""
    said = grounded.similarities >= THRESHOLD
    missing = grounded.ious.shape[1] - said.shape[1]
    return np.pad(said, ((0, 0), (0, max(0, missing))))[:, : grounded.ious.shape[1]]


def bar_explorer(images: list[np.ndarray], grounded: list[GroundedImage], panels: Sequence[dict] = ()):
    """Move the bar that an IoU has to reach: matches in one scene, recall and precision of it and of all scenes.

    images: B pictures (H, W, 3) uint8; grounded: the same B, ready to be scored.
    """
    pairs = [optimal_pairs(one) for one in grounded]
    true = [len(one.truth.masks) for one in grounded]
    said = [len(one.prediction.masks) for one in grounded]

    def draw(choice: dict) -> tuple[Image.Image, str]:
        bar, k = choice["IoU at least"], choice["scene"]
        found = [sum(pair.right and pair.iou >= bar for pair in one) for one in pairs]
        words = f"IoU at least {bar:.2f}. Scene {k}: {found[k]} of {true[k]} phrases found and named"
        words += f", with {said[k]} masks.\n"
        words += f"All {len(true)} scenes: recall {sum(found) / sum(true):.2f}, "
        words += f"precision {sum(found) / max(1, sum(said)):.2f}"
        return matching_view(images[k], grounded[k], bar), words

    axes = {
        "IoU at least": ([round(0.05 * step, 2) for step in range(1, 20)], 0.5),
        "scene": list(range(len(images))),
    }
    return PictureExplorer(draw, axes, title="Where does a mask count as found?", width=800, panels=panels)
