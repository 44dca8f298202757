"""Masks as SVG paths, for the areas of an HTML answer that react to the pointer."""

import numpy as np
from contourpy import FillType, contour_generator
from PIL import Image

LONGEST = 256
"""Masks are traced at this size at most: an area for the pointer needs no more."""


def mask_path(mask: np.ndarray) -> str:
    """The border of a mask (H, W) bool as the `d` of an SVG path, even-odd filled, in units of 1/1000 of its sides.

    An empty mask gives "".
    """
    h, w = mask.shape
    scale = min(1.0, LONGEST / max(h, w))
    if scale < 1:
        size = (max(1, round(w * scale)), max(1, round(h * scale)))
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        h, w = mask.shape
    if not mask.any():
        return ""
    # A frame of zeros closes the outlines at the picture's border.
    framed = np.pad(mask.astype(np.float64), 1)
    xs, ys = np.arange(-0.5, w + 1), np.arange(-0.5, h + 1)
    polygons, offsets = contour_generator(xs, ys, framed, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    loops = []
    for points, starts in zip(polygons, offsets, strict=True):
        for start, end in zip(starts, starts[1:], strict=False):
            loop = _corners(points[start : end - 1]) * (1000 / w, 1000 / h)
            loops.append("M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in loop) + "Z")
    return "".join(loops)


def _corners(loop: np.ndarray) -> np.ndarray:
    """Leave out the points (N, 2) that lie on a straight line between their neighbors."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return loop[turns] if turns.sum() >= 3 else loop
