"""Graders of notebook 06: transposed convolution by hand, the dice loss, masks that share no pixel."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.model.losses import mask_dice_sum


def grade_upscale(function: Callable[..., torch.Tensor]) -> Grade:
    """`function(x, weight, bias)`: a transposed convolution whose kernel and stride are 2.

    x (B, C, h, w), weight (C, D, 2, 2), bias (D,) -> (B, D, 2h, 2w).
    """
    return grade(function, _grids(20), fault=array_fault)


def grade_dice(function: Callable[..., torch.Tensor]) -> Grade:
    """`function(logits, target, scale, eps)`: 1 - dice of each mask, (M, H, W) twice -> (M,)."""
    return grade(function, _masks(30), fault=array_fault)


def grade_apart(function: Callable[[torch.Tensor], torch.Tensor]) -> Grade:
    """`function(logits)`: (M, H, W) -> bool masks of the same shape, of which at most one holds any pixel: the one of
    the largest logit, if that is above 0; of equal ones, the first."""
    return grade(function, _stacks(30), fault=array_fault)


def _grids(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(61)
    for number in range(count):
        b, c, d, h, w = (int(size) for size in torch.randint(1, 5, (5,), generator=generator))
        # From the third case on all sides differ, so that axes in the wrong order cannot pass.
        b, c, d, h, w = (b, c, d, h, w) if number < 2 else (2, c, c + 1, h, h + 2)
        x, weight, bias = (torch.randn(*s, generator=generator) for s in ((b, c, h, w), (c, d, 2, 2), (d,)))
        yield (x, weight, bias), F.conv_transpose2d(x, weight, bias, stride=2)


def _masks(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(62)
    nothing = torch.full((1, 4, 5), -200.0)
    for number in range(count):
        m, h, w = (int(size) for size in torch.randint(1, 6, (3,), generator=generator))
        logits = 4 * torch.randn(m, h, w, generator=generator)
        target = (torch.rand(m, h, w, generator=generator) < 0.4).float()
        scale, eps = (1000.0, 1e-6) if number % 2 else (1.0, 1.0)
        yield (logits, target, scale, eps), _dice(logits, target, scale, eps)
    yield (nothing, torch.zeros(1, 4, 5), 1000.0, 1e-6), torch.zeros(1)
    yield (-nothing, torch.zeros(1, 4, 5), 1000.0, 1e-6), _dice(-nothing, torch.zeros(1, 4, 5), 1000.0, 1e-6)


def _dice(logits: torch.Tensor, target: torch.Tensor, scale: float, eps: float) -> torch.Tensor:
    """The package's loss, mask by mask."""
    return torch.stack([mask_dice_sum(a[None], b[None], scale, eps) for a, b in zip(logits, target, strict=True)])


def _stacks(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(63)
    for _ in range(count):
        m, h, w = (int(size) for size in torch.randint(1, 6, (3,), generator=generator))
        logits = torch.randn(m, h, w, generator=generator)
        best, which = logits.max(dim=0)
        yield (logits,), (torch.arange(m)[:, None, None] == which) & (best > 0)
    yield (torch.zeros(2, 3, 4),), torch.zeros(2, 3, 4, dtype=torch.bool)
    yield (torch.ones(3, 2, 5),), torch.tensor([True, False, False])[:, None, None].expand(3, 2, 5)
