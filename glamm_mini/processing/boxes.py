"""Boxes as people give them, checked: (N, 4) float32 in pixels of the upright picture."""

import numpy as np

SLACK = 1e-3
"""Fractions may leave 0..1 by this much: they come from divisions."""


def box_array(boxes) -> np.ndarray | None:
    """One box or several as (N, 4) float32; None for none; ValueError for anything else."""
    if boxes is None:
        return None
    try:
        array = np.asarray(boxes.detach() if hasattr(boxes, "detach") else boxes)  # a tensor that learns
        if array.dtype.kind in "bmMcSU":
            raise ValueError(f"they are {array!r:.80}, of type {array.dtype}")
        array = array.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"boxes cannot be read as numbers ({error}); expected (N, 4): x0 y0 x1 y1 of each") from error
    if array.size == 0:
        return None
    if array.ndim not in (1, 2) or array.shape[-1] != 4:
        raise ValueError(f"boxes have shape {array.shape}; expected (N, 4): x0 y0 x1 y1 of each box")
    return array.reshape(-1, 4)


def checked_boxes(boxes, size: tuple[int, int], normalised: bool = False) -> np.ndarray | None:
    """Boxes (N, 4) in pixels, clipped to a picture of `size` (height, width); None for none.

    normalised: they come as fractions 0..1 of the picture's sides. Raises ValueError that names the first box that is
    empty, swapped, outside or not finite.
    """
    if not isinstance(normalised, bool | np.bool_):
        raise ValueError(f"normalised is {normalised!r}; expected True or False")
    array = box_array(boxes)
    if array is None:
        return None
    h, w = size
    for k, box in enumerate(array.tolist()):
        x0, y0, x1, y1 = box
        shown = ", ".join(f"{value:g}" for value in box)
        if not np.isfinite(box).all() or not (x0 < x1 and y0 < y1):
            raise ValueError(f"box {k} is ({shown}); expected finite numbers with x0 < x1 and y0 < y1")
        if normalised and (min(box) < -SLACK or max(box) > 1 + SLACK):
            hint = "normalized boxes are fractions between 0 and 1; for pixels leave normalised=True out"
            raise ValueError(f"box {k} is ({shown}); {hint}")
        right, bottom = (1, 1) if normalised else (w, h)
        if x1 <= 0 or y1 <= 0 or x0 >= right or y0 >= bottom:
            raise ValueError(f"box {k} lies outside the picture of {w} x {h} pixels: it is ({shown})")
    sides = np.array([w, h, w, h], np.float32)
    return np.clip(array * sides if normalised else array, 0, sides).astype(np.float32)
