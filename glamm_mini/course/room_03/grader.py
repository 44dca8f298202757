"""Graders of notebook 03: the patch of a pixel, patches put together again, a picture spliced into a sentence."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.course.room_03.lesson import cut_patches
from glamm_mini.model.splice import put_images
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX


def grade_patch_of(function: Callable[[float, float, int, int, int], int]) -> Grade:
    """`function(x, y, width, height, grid)`: the number of the patch that holds the pixel (x, y) of a picture.

    The picture is scaled so that its longer side fills the square, and padded below or on the right.
    """
    return grade(function, _pixels(60), lambda value, expected: int(value) == expected)


def grade_join(function: Callable[[torch.Tensor, int, int], torch.Tensor]) -> Grade:
    """`function(patches, height, width)`: images (B, 3, height, width) from what `cut_patches` made of them."""
    return grade(function, _patches(20), fault=array_fault)


def grade_splice(function: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Grade:
    """`function(ids, labels, embeds, features)`: the embeddings (T, D) and labels (T,) of one row with its picture."""
    return grade(function, _rows(30), fault=_pair_fault)


def _pixels(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(41)
    yield (0.5, 0.5, 640, 480, 12), 0
    yield (639.5, 0.5, 640, 480, 24), 23
    for _ in range(count):
        width, height = (int(side) for side in rng.integers(20, 900, 2))
        x, y = (rng.integers(0, [width, height]) + 0.5).tolist()
        grid = int(rng.choice([4, 12, 24]))
        cell = max(width, height) / grid
        yield (x, y, width, height, grid), int(y // cell) * grid + int(x // cell)


def _patches(count: int) -> Iterator[tuple]:
    torch.manual_seed(42)
    rng = np.random.default_rng(42)
    for _ in range(count):
        side, rows, columns = (int(number) for number in rng.integers(2, 6, 3))
        images = torch.randn(int(rng.integers(1, 4)), 3, rows * side, columns * side)
        yield (cut_patches(images, side), rows * side, columns * side), images


def _rows(count: int) -> Iterator[tuple]:
    """Rows whose picture stands at the beginning, in the middle or at the end."""
    torch.manual_seed(43)
    rng = np.random.default_rng(43)
    for number in range(count):
        length, patches, width = (int(value) for value in rng.integers((3, 1, 2), (12, 9, 7)))
        at = (0, length - 1)[number] if number < 2 else int(rng.integers(0, length))
        ids = torch.randint(3, 90, (length,))
        labels = torch.where(torch.arange(length) > at, ids, IGNORE_INDEX)
        ids[at] = IMAGE_TOKEN_INDEX
        embeds, features = torch.randn(length, width), torch.randn(patches, width)
        seen = torch.ones(1, length, dtype=torch.bool)
        out = put_images(embeds[None], ids[None], seen, labels[None], None, features[None], [0])
        yield (ids, labels, embeds, features), (out.embeds[0], out.labels[0])


def _pair_fault(value, expected) -> str:
    if not isinstance(value, tuple) or len(value) != 2:
        return "expected two tensors: the embeddings and the labels"
    for name, mine, right in zip(("embeddings", "labels"), value, expected, strict=True):
        wrong = array_fault(mine, right)
        if wrong:
            return f"the {name}: {wrong}"
    return ""
