"""Pictures of notebook 05: windows on a picture, maps of numbers, a mask at two sizes."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from glamm_mini.course.drawing.diagram import BLUE, INK, ORANGE, PAPER, tint
from glamm_mini.course.room_05.lesson import attention_cost, padded_side, score_bytes
from glamm_mini.model.config import GroundingConfig
from glamm_mini.visuals.overlay import overlay_masks
from glamm_mini.visuals.palette import RGB

WIDTH = 640
"""About how many pixels a square map has."""
HATCH = (214, 217, 222)
GROUND = (240, 241, 243)


def windows_picture(square: Image.Image, grid: int, window: int = 0, width: int = WIDTH) -> Image.Image:
    """A square picture with the lines of its grid x grid patches, and of the windows where `window` is not 0.

    What the windows fill up is hatched, below and on the right. Every patch has the same whole number of pixels.
    """
    padded = padded_side(grid, window)
    cell = max(2, width // padded)
    sheet = _hatched(cell * padded)
    picture = square.convert("RGB").resize((cell * grid,) * 2, Image.Resampling.LANCZOS)
    if cell >= 4:
        picture = _ruled(picture, cell, PAPER, 1, 0.35)
    sheet.paste(picture, (0, 0))
    return _ruled(sheet, cell * window, ORANGE, max(3, width // 160), 1) if window else sheet


def _hatched(side: int) -> Image.Image:
    sheet = Image.new("RGB", (side, side), GROUND)
    draw = ImageDraw.Draw(sheet)
    for start in range(-side, side, 12):
        draw.line([(start, side), (start + side, 0)], HATCH, 3)
    return sheet


def _ruled(picture: Image.Image, step: int, ink: RGB, line: int, opacity: float) -> Image.Image:
    """Lines every `step` pixels; the outermost lie inside the picture."""
    ruled = picture.copy()
    draw = ImageDraw.Draw(ruled)
    for place in range(0, picture.width + 1, step):
        at = min(max(place - line // 2, 0), picture.width - line)
        draw.rectangle((at, 0, at + line - 1, picture.height), ink)
        draw.rectangle((0, at, picture.width, at + line - 1), ink)
    return Image.blend(picture, ruled, opacity)


def number_map(values, marked: tuple[int, int] | None = None, window: int = 0, width: int = 360) -> Image.Image:
    """Numbers (h, w) of one grid as shades of blue, the smallest white, the largest blue; of bools, the true ones blue.

    marked: row and column of a cell that is orange. window: draws its lines.
    """
    values = np.asarray(values)
    low, high = (0.0, 1.0) if values.dtype == bool else (values.min(), values.max())
    strength = (values - low) / max(high - low, 1e-12)
    shades = np.array([tint(BLUE, s) for s in np.linspace(0, 1, 256)], np.uint8)[(strength * 255).round().astype(int)]
    if marked is not None:
        shades[marked] = ORANGE
    cell = max(2, width // values.shape[1])
    picture = Image.fromarray(np.kron(shades, np.ones((cell, cell, 1), np.uint8)))
    picture = _ruled(picture, cell * window, INK, 2, 0.5) if window else picture
    ImageDraw.Draw(picture).rectangle((0, 0, picture.width - 1, picture.height - 1), outline=INK, width=2)
    return picture


def close_up(image: np.ndarray, mask: np.ndarray, about: np.ndarray, width: int = 360) -> Image.Image:
    """The neighborhood of the mask `about` (H, W), enlarged, with `mask` (H, W) laid over it."""
    rows, columns = (np.flatnonzero(about.any(axis)) for axis in (1, 0))
    half = max(rows[-1] - rows[0], columns[-1] - columns[0]) * 0.6 + 4
    y, x = (rows[0] + rows[-1]) / 2, (columns[0] + columns[-1]) / 2
    side = int(min(2 * half, *image.shape[:2]))
    top, left = (int(np.clip(c - side / 2, 0, size - side)) for c, size in zip((y, x), image.shape[:2], strict=True))
    cut = slice(top, top + side), slice(left, left + side)
    near = Image.fromarray(image[cut]).resize((width, width), Image.Resampling.BICUBIC)
    large = Image.fromarray(mask[cut]).resize((width, width), Image.Resampling.NEAREST)
    return Image.fromarray(overlay_masks(np.asarray(near), [np.asarray(large)], alpha=0.35, outline=3))


def windows_view(square: Image.Image, grounding: GroundingConfig) -> Callable[[dict], tuple[Image.Image, str]]:
    """What an explorer draws: the windows of a choice with "window" and "pixels", and what they cost in an encoder of
    this width. Takes a square picture."""

    def draw(choice: dict) -> tuple[Image.Image, str]:
        window, grid = choice["window"], choice["pixels"] // grounding.patch_size
        padded = padded_side(grid, window)
        number, filled = (padded // window) ** 2, 1 - (grid / padded) ** 2
        ours, all_pairs = (sum(attention_cost(grid, grounding.hidden, w)) / 1e9 for w in (window, 0))
        scores, all_scores = (score_bytes(grid, grounding.heads, w) / 1e6 for w in (window, 0))
        count = "1 window" if number == 1 else f"{number} windows"
        size = f"{count} of {window} x {window}: {padded} x {padded}"
        lines = [
            f"{grid} x {grid} patches, {size}, {filled:.0%} padding",
            f"attention of a block: {ours:.1f} billion multiply-adds (global {all_pairs:.1f})",
            f"its scores: {scores:,.1f} MB (global {all_scores:,.1f})",
        ]
        return windows_picture(square, grid, window), "\n".join(lines)

    return draw
