"""Graders of notebook 04: boxes on a crop, the half cell, the ancestor of RoIAlign."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torchvision.ops import roi_pool

from glamm_mini.course.grading import Grade, array_fault, grade


def grade_cells(function: Callable[[torch.Tensor, int, int], torch.Tensor]) -> Grade:
    """`function(boxes, h, w)`: boxes (N, 4), fractions of the picture -> cells of a grid h x w, 0 at the middle of the
    first cell."""
    return grade(function, _fractions(40), fault=array_fault)


def grade_crop(function: Callable[[np.ndarray, tuple[int, int]], np.ndarray]) -> Grade:
    """`function(boxes, size)`: boxes (N, 4) in pixels of a picture (height, width) -> fractions of its middle square,
    cut at the square's edges."""
    return grade(function, _pictures(40), fault=array_fault)


def grade_pool(function: Callable[[torch.Tensor, list[int], int], torch.Tensor]) -> Grade:
    """`function(features, box, size)`: features (C, h, w) and a box of whole cells x0 y0 x1 y1, its last cells included
    -> (C, size, size), the largest value of each part; parts overlap where they share a cell."""
    return grade(function, _grids(40), fault=array_fault)


def _fractions(count: int) -> Iterator[tuple]:
    torch.manual_seed(41)
    for _ in range(count):
        h, w = torch.randint(2, 40, (2,)).tolist()
        boxes = _boxes(int(torch.randint(1, 5, ())))
        yield (boxes, h, w), boxes * torch.tensor([w, h, w, h], dtype=torch.float32) - 0.5


def _pictures(count: int) -> Iterator[tuple]:
    torch.manual_seed(42)
    for number in range(count):
        h, w = torch.randint(40, 400, (2,)).tolist()
        w = h if number == 0 else w
        boxes = (_boxes(4) * torch.tensor([w, h, w, h])).numpy()
        side = min(h, w)
        corner = np.array([w - side, h - side] * 2, np.float32) / 2
        yield (boxes, (h, w)), ((boxes - corner) / side).clip(0, 1).astype(np.float32)


def _grids(count: int) -> Iterator[tuple]:
    torch.manual_seed(43)
    for _ in range(count):
        size = int(torch.randint(1, 5, ()))
        h, w = torch.randint(size + 1, 14, (2,)).tolist()
        features = torch.randn(2, h, w)
        x0, y0 = int(torch.randint(0, w - size + 1, ())), int(torch.randint(0, h - size + 1, ()))
        x1, y1 = int(torch.randint(x0 + size - 1, w, ())), int(torch.randint(y0 + size - 1, h, ()))
        box = [x0, y0, x1, y1]
        yield (features, box, size), roi_pool(features[None], [torch.tensor([box]).float()], size)[0]


def _boxes(count: int) -> torch.Tensor:
    """Boxes (count, 4), fractions; corners in order."""
    corners = torch.rand(count, 2, 2).sort(dim=1).values  # (N, 2 corners, 2 axes)
    return corners.reshape(count, 4)
