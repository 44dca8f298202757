"""Draws a scene: the image, and the masks that come from the same drawing."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from glamm_mini.storybook.language.vocabulary import FLYING
from glamm_mini.storybook.world.art.brush import INK
from glamm_mini.storybook.world.art.ground import paint_stuff
from glamm_mini.storybook.world.art.things import draw_thing
from glamm_mini.storybook.world.scene import Picture, Scene, keyed_rng

_NO_SHADOW = {*FLYING, "boat", "fish", "mountain"}


def picture_size(aspect: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Width and height in pixels of a picture of that aspect."""
    longest = max(aspect)
    return tuple(max(1, round(long_side * side / longest)) for side in aspect)


def render(scene: Scene, long_side: int = 128, supersample: int = 2) -> Picture:
    """Draw the scene.

    Args:
        scene: the record.
        long_side: pixels of the longer side. The picture is the same at every size, larger ones show more detail.
        supersample: the drawing is made this many times larger, then reduced, which smooths its edges.

    Returns:
        The image and its masks. Every pixel belongs to exactly one mask, that of the thing or stuff that covers most
        of it; of two that cover it equally, the one in its lower right corner.

    Raises:
        ValueError: long_side below 16 or supersample below 1.
    """
    if long_side < 16 or supersample < 1:
        raise ValueError(f"render needs long_side >= 16 and supersample >= 1, not {long_side} and {supersample}")
    width, height = (side * supersample for side in picture_size(scene.aspect, long_side))
    unit = math.sqrt(width * height)
    canvas, labels = paint_stuff(scene, width, height, keyed_rng(scene.split, scene.seed, scene.index, "look"))
    for number, thing in enumerate(scene.things, start=len(scene.stuff)):
        brush = draw_thing(thing, width, height, unit)
        if thing.cls not in _NO_SHADOW:
            _drop_shadow(canvas, brush)
        canvas.paste(brush.canvas, brush.origin, brush.canvas)
        labels.paste(number, brush.origin, brush.canvas.getchannel("A"))
    image = np.asarray(canvas.reduce(supersample)) if supersample > 1 else np.array(canvas)
    masks = _majority(np.asarray(labels), len(scene.stuff) + len(scene.things), supersample)
    things = masks[len(scene.stuff) :]
    return Picture(image, things, masks[: len(scene.stuff)], boxes_around(things))


@lru_cache(maxsize=256)
def _shadow(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((0, 0, width - 1, height - 1), fill=46)
    return mask


def _drop_shadow(canvas: Image.Image, brush) -> None:
    """A soft pool of shade where a thing touches the ground; it belongs to the ground's mask."""
    left, _, right, bottom = brush.canvas.getbbox()
    width, height = int(0.92 * (right - left)), max(3, int(0.07 * brush.scale) + 2)
    place = (brush.origin[0] + (left + right - width) // 2, brush.origin[1] + bottom - height * 3 // 5)
    canvas.paste(INK, place, _shadow(width, height))


def _majority(labels: np.ndarray, count: int, factor: int) -> np.ndarray:
    """(count, H, W) bool: where each number fills most of a factor x factor block; ties go to the last corner."""
    if factor > 1:
        rows, columns = labels.shape[0] // factor, labels.shape[1] // factor
        parts = [np.ascontiguousarray(labels[i::factor, j::factor]) for i in range(factor) for j in range(factor)]
        best, votes = np.zeros((rows, columns), np.uint8), np.zeros((rows, columns), np.uint8)
        for number in range(count):
            share = sum((part == number).view(np.uint8) for part in parts)
            wins = (share > votes) | ((share == votes) & (share > 0) & (parts[-1] == number))
            best[wins], votes[wins] = number, share[wins]
        labels = best
    return labels[None] == np.arange(count, dtype=np.uint8)[:, None, None]


def boxes_around(masks: np.ndarray) -> np.ndarray:
    """Boxes (N, 4) float32 around masks (N, H, W): x0 y0 x1 y1, x1 and y1 exclusive; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes
