"""Pictures of notebook 03: patches, feature maps, a sentence with its picture to scale, who looks where."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from glamm_mini.course.drawing.diagram import BLUE, GREEN, INK, ORANGE, QUIET, Diagram, tint
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from glamm_mini.visuals.palette import RGB

SIDE = 384
"""Pixels of a square picture on the page."""
DARK = 0.2
"""Light that is left where nobody looks."""


def as_seen(pixels, mean: Sequence[float], std: Sequence[float], side: int = SIDE) -> Image.Image:
    """What an encoder is fed, (3, S, S) normalized, as a picture of side x side pixels that shows its true pixels."""
    colors = pixels.detach().permute(1, 2, 0).numpy() * np.asarray(std) + np.asarray(mean)
    small = Image.fromarray((colors.clip(0, 1) * 255).round().astype(np.uint8))
    return small.resize((side, side), Image.Resampling.NEAREST)


def patch_grid(square: Image.Image, grid: int, lit: Sequence[int] = ()) -> Image.Image:
    """A square picture cut into grid x grid patches with gaps between; all but the `lit` ones are paler."""
    cell = square.width // grid
    gap = max(2, cell // 12)
    sheet = Image.new("RGB", (grid * (cell + gap) + gap,) * 2, (255, 255, 255))
    for number in range(grid * grid):
        row, column = divmod(number, grid)
        patch = square.crop((column * cell, row * cell, (column + 1) * cell, (row + 1) * cell))
        if len(lit) and number not in lit:
            patch = Image.blend(patch, Image.new("RGB", patch.size, (255, 255, 255)), 0.65)
        sheet.paste(patch, (gap + column * (cell + gap), gap + row * (cell + gap)))
    return sheet


def principal_colors(features: torch.Tensor, like: torch.Tensor | None = None) -> np.ndarray:
    """Features (C, h, w) to colors (h, w, 3) uint8: their three principal components as red, green and blue.

    like: features (C, H, W) whose components are taken instead, so that equal colors mean equal features.
    """
    table = (features if like is None else like).detach().float().flatten(1).T  # (C, h, w) -> (h * w, C)
    mean = table.mean(0)
    axes = torch.linalg.svd(table - mean, full_matrices=False).Vh[:3]  # (3, C)
    # Components have no sign of their own: the same features shall have the same colors on every machine.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    low, high = torch.quantile((table - mean) @ axes.T, torch.tensor([0.02, 0.98]), dim=0)
    seen = (features.detach().float().flatten(1).T - mean) @ axes.T  # (h * w, 3)
    shares = ((seen - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return (shares.reshape(*features.shape[1:], 3).numpy() * 255).astype(np.uint8)


def feature_colors(features, grid: int, side: int = SIDE) -> Image.Image:
    """Patch features (P, C) as a square map in their `principal_colors`.

    Patches of like color have like features; the colors themselves mean nothing.
    """
    colors = principal_colors(features.T.reshape(-1, grid, grid))  # (P, C) -> (C, h, w)
    return Image.fromarray(colors).resize((side, side), Image.Resampling.NEAREST)


def spliced_rows(ids, labels, spliced_ids, spliced_labels, width: int = 1600) -> Image.Image:
    """One row before and after the splice, a position as wide in both: (L,) ids and labels, then (T,).

    Words are orange, the picture blue, words to be learned green.
    """
    unit = (width - 40) / len(spliced_ids)
    diagram = Diagram(width, 330)
    at = ids.tolist().index(IMAGE_TOKEN_INDEX)
    patches = int((spliced_ids == IMAGE_TOKEN_INDEX).sum())
    title = f"{len(ids)} ids: the picture is one of them, {IMAGE_TOKEN_INDEX}"
    _row(diagram, 46, unit, ids, labels, title, 20)
    title = f"{len(spliced_ids)} vectors: the picture is {patches} of them"
    _row(diagram, 206, unit, spliced_ids, spliced_labels, title, 20 + at * unit + 14)
    for before, after in ((at, at), (at + 1, at + patches)):
        diagram.arrow([(20 + before * unit, 106), (20 + before * unit, 140)], tint(BLUE, 0.6), 3, 0)
        diagram.arrow([(20 + before * unit, 140), (20 + after * unit, 140)], tint(BLUE, 0.6), 3, 0)
        diagram.arrow([(20 + after * unit, 140), (20 + after * unit, 204)], tint(BLUE, 0.6), 3, 0)
    x = 20.0
    for name, color in (("words that are read", ORANGE), ("picture", BLUE), ("words that are learned", GREEN)):
        diagram.card((x, 290, x + 28, 318), color, 0.8, 0, 4)
        diagram.words((x + 40, 304), name, 24)
        x += 90 + diagram.length(name, 24)
    return diagram.finish()


def _row(diagram: Diagram, top: float, unit: float, ids, labels, title: str, x: float) -> None:
    """A bar of positions, each in the color of its kind, with a title above that begins at x."""
    diagram.words((x, top - 22), title, 24, ink=QUIET)
    for k, (token, label) in enumerate(zip(ids.tolist(), labels.tolist(), strict=True)):
        color = BLUE if token == IMAGE_TOKEN_INDEX else GREEN if label != IGNORE_INDEX else ORANGE
        diagram.card((20 + k * unit, top, 20 + (k + 1) * unit - 1, top + 60), color, 0.8, 0, 0)


def lit_by(square: Image.Image, weights, grid: int, marked: int | None = None, color: RGB = ORANGE) -> Image.Image:
    """A square picture as bright as `weights` (P,) say, patch by patch; the patch `marked` gets a frame."""
    light = np.asarray(weights, float).reshape(grid, grid)
    light = DARK + (1 - DARK) * light / max(light.max(), 1e-9)
    cell = square.width // grid
    light = np.kron(light, np.ones((cell, cell)))[..., None]
    pixels = np.asarray(square.resize((cell * grid, cell * grid)), float) * light
    picture = pixels.round().astype(np.uint8)
    if marked is not None:
        row, column = divmod(marked, grid)
        y, x, line = row * cell, column * cell, max(3, cell // 8)
        framed = picture[y : y + cell, x : x + cell].copy()
        picture[y : y + cell, x : x + cell] = color
        picture[y + line : y + cell - line, x + line : x + cell - line] = framed[line:-line, line:-line]
    return Image.fromarray(picture)


def attention_view(square: Image.Image, looks, words: Sequence[str], word_looks) -> Callable[[dict], tuple]:
    """What an explorer draws when a patch is clicked.

    Args:
        square: the picture as the encoder sees it. looks: (layers, P, P), who looks (row) at whom (column) in the
            encoder. words: of an answer. word_looks: (len(words), P), how much each looks at each patch.

    Returns:
        a function from a choice with "layer" (from 1), "show" ("it looks at" or "it is seen by") and "point" to the
        picture and its words.
    """
    grid = round(looks.shape[-1] ** 0.5)

    def draw(choice: dict) -> tuple[Image.Image, str]:
        x, y = choice["point"] or (0.5, 0.5)
        row, column = (min(grid - 1, int(grid * place)) for place in (y, x))
        patch = row * grid + column
        layer = looks[choice["layer"] - 1]
        weights = layer[patch] if choice["show"] == "it looks at" else layer[:, patch]
        order = word_looks[:, patch].argsort(descending=True)[:3].tolist()
        said = ", ".join(f"{words[k]} {float(word_looks[k, patch]):.1%}" for k in order)
        line = f"patch {patch}: row {row}, column {column}, layer {choice['layer']}\nwords that look at it most: {said}"
        return lit_by(square, weights, grid, patch), line

    return draw


def places(scenes: Sequence[tuple[Image.Image, float]], width: int = 1200) -> Image.Image:
    """Square pictures side by side, each with the share of the whole picture that it holds written below."""
    side = (width - 30 * (len(scenes) - 1)) / len(scenes)
    diagram = Diagram(width, round(side + 50))
    for k, (picture, share) in enumerate(scenes):
        x = k * (side + 30)
        diagram.paste(picture, (x, 0, x + side, side))
        diagram.words((x, side + 28), f"{share:.0%} of the picture", 24, ink=INK)
    return diagram.finish()
