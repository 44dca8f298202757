"""What may be handed to GLaMM's passes: each check raises one ValueError that names the thing and what was expected.

Checks of values on a GPU are asked together, since each question waits for it.
"""

from collections.abc import Mapping, Sequence
from math import inf
from numbers import Integral, Real
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

SLACK = 0.01  # that boxes may leave the picture by: they come from divisions, and may be rounded to half precision


def check_ids(
    ids: Tensor, attention: Tensor | None, labels: Tensor | None, segments: Tensor | None, words: int, image: int,
    ignored: int,
) -> None:  # fmt: skip
    """Raises ValueError that names what has another type or shape than ids (R, L), or a value that it cannot have.

    words: ids that there are. image: the id of the image's place; ignored: the label of what is not learned.
    """
    given = dict(input_ids=ids, attention_mask=attention, labels=labels, segment_ids=segments)
    for name, x in given.items():
        whole = isinstance(x, Tensor) and (x.dtype in (torch.int64, torch.int32) or name == "attention_mask")
        if (x is not None or x is ids) and not (whole and x.ndim == 2 and x.shape == ids.shape and not x.is_meta):
            shown = f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(f"{name} are {shown}; expected whole numbers (R, L), as many as input_ids")
    token = f"ids of {words} words, from 0 on, or"
    odd = {("input_ids", f"{token} {image}"): (ids >= words) | ((ids < 0) & (ids != image))}
    if labels is not None:
        odd["labels", f"{token} {ignored}"] = (labels >= words) | ((labels < 0) & (labels != ignored))
    if attention is not None:
        unseen = ~attention.any(1, keepdim=True)
        odd["attention_mask", "1 for a row's tokens, 0 for padding"] = (attention != 0) & (attention != 1) | unseen
    if segments is not None:
        falls = segments.diff(prepend=torch.zeros_like(segments[:, :1])) < 0
        odd["segment_ids", "0 and more, rising"] = falls if attention is None else falls & (attention != 0)
    if torch.stack(list(odd.values())).any():  # asked once: a GPU has to be waited for
        (name, expected), wrong = next(pair for pair in odd.items() if pair[1].any())
        raise ValueError(f"{name} hold {given[name][wrong][0].item()}; expected {expected}")


def rows_about(rows: int, images: int, image_index: Any, boxes: Any) -> tuple[list[int], Sequence]:
    """The image (-1 for none) and the boxes (N, 4), or None, of every row, or a ValueError; see `forward`."""
    of_rows = list(range(rows)) if images else [-1] * rows
    if image_index is not None:
        try:
            of_rows = [index(i) for i in (image_index.tolist() if isinstance(image_index, Tensor) else image_index)]
        except TypeError as error:
            raise ValueError(f"image_index is {repr(image_index)[:60]}; expected a whole number a row") from error
    boxes = boxes if isinstance(boxes, Sequence | Tensor) else [boxes] * rows
    for name, given in (("image_index", of_rows), ("boxes", boxes)):
        if len(given) != rows:
            raise ValueError(f"{name} has {len(given)} entries for {rows} rows; give one for each conversation")
    if odd := [i for i in of_rows if not -1 <= i < images]:
        raise ValueError(f"image_index names image {odd[0]}, but the batch has {images} images (numbered from 0)")
    given = {r: box for r, box in enumerate(boxes) if box is not None}
    for r, box in given.items():
        if not (isinstance(box, Tensor) and box.is_floating_point() and box.ndim == 2 and box.shape[1] == 4):
            raise ValueError(f"boxes of row {r} are {repr(box)[:60]}; expected a tensor (N, 4) of floats, or None")
    if given:  # checked together: a GPU has to be waited for. RoIAlign crashes on what is not finite.
        every = torch.cat(list(given.values()))
        # Half precision may take the width of a thin box.
        is_one = (torch.lt if every.element_size() > 2 else torch.le)(every[:, :2], every[:, 2:]).all(1)
        if not bool((inside := is_one & ((every > -SLACK) & (every < 1 + SLACK)).all(1)).all()):
            r = [r for r, box in given.items() for _ in range(len(box))][k := inside.tolist().index(False)]
            raise ValueError(f"row {r} has the box {every[k].tolist()}; expected 0 <= x0 < x1 <= 1, and so y0, y1")
    return of_rows, boxes


def check_sizes(images: int | None, side: int, resized: Any, original: Any) -> None:
    """Raises ValueError for sizes that are not one (height, width) for each image, `resized` in a square of `side`."""
    for name, sizes, most in (("resized", resized, side), ("original", original, 2**20)):
        given = np.array([] if sizes is None else sizes, dtype=object)
        whole = all(isinstance(n, Integral) and type(n) is not bool and 1 <= n <= most for n in given.flat)
        if sizes is not None and images and (given.shape != (images, 2) or not whole):
            expected = f"whole (height, width), 1 to {most}, of each of {images} images"
            raise ValueError(f"{name} is {repr(sizes)[:60]}; expected {expected}")


def check_counts(normalizers: Mapping[str, float] | None, masks: Sequence[Tensor] | None) -> None:
    """Raises ValueError for what no loss can be divided by ("images" is what a training counts besides), and for
    anything but tensors of masks. Where a whole step has no mask, their count may be 0."""
    if not isinstance(normalizers, Mapping | None):
        raise ValueError(f"normalizers is {normalizers!r}; expected the counts of 'tokens' and 'masks'")
    for name, count in (normalizers or {}).items():
        one = isinstance(count, Real) and type(count) is not bool or isinstance(count, Tensor) and count.numel() == 1
        least = 0 if name in ("masks", "images") else 1e-6
        if name not in ("tokens", "masks", "images") or not (one and least <= count < inf):
            raise ValueError(f"normalizers has {name!r}: {count!r}; expected finite 'tokens' above 0 and 'masks'")
    if masks is not None and not (isinstance(masks, Sequence | Tensor) and all(isinstance(m, Tensor) for m in masks)):
        kinds = sorted({type(m).__name__ for m in (masks if isinstance(masks, Sequence) else [masks])})
        raise ValueError(f"masks are of {kinds}; expected a list of tensors (M, H, W), one for each image")


def check_size(size: Any) -> None:
    """Raises ValueError for anything but the (height, width) of a picture."""
    if np.shape(size) != (2,) or not all(isinstance(n, Real) and n >= 1 for n in size):
        raise ValueError(f"size is {size!r}; expected (height, width) of a picture in pixels")


def mask_row(r: int, given: Any, size: tuple[int, int]) -> torch.Tensor:
    """Masks (M, H, W) of row r, a picture of `size`; none where None is given. ValueError for any other."""
    try:
        masks = torch.as_tensor(np.zeros((0, *size), bool) if given is None else given)
        if masks.ndim == 3 and masks.shape[1:] == size and bool(((masks >= 0) & (masks <= 1)).all()):
            return masks
    except (TypeError, ValueError, RuntimeError):  # nothing that compares
        masks = np.asarray(given, object)
    raise ValueError(f"masks of row {r}: {masks.dtype} {tuple(masks.shape)}; expected bool (M, {size[0]}, {size[1]})")
