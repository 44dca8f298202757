"""Graders of notebook 07: places after the splice, states from a cached generation, the whole loss."""

from collections.abc import Callable, Iterator

import torch

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.model.config import LossConfig
from glamm_mini.model.losses import cross_entropy_sum, mask_bce_sum, mask_dice_sum
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

SEG_ID = 7


def grade_places(function: Callable[[list[int], int], list[int]]) -> Grade:
    """`function(ids, patches)`: for each id of a row, the position at which it stands after the splice; for `<image>`
    (IMAGE_TOKEN_INDEX; there is at most one), that of the first of its `patches` positions."""
    return grade(function, _rows(30), lambda value, expected: [int(place) for place in value] == expected)


def grade_states(function: Callable[..., torch.Tensor]) -> Grade:
    """`function(steps, new, seg)`: the state before each `seg` of `new`, (M, D), from a generation with a cache.

    steps: what each step returned: (1, T, D) for the prompt, then (1, 1, D) for each new id but the last.
    """
    return grade(function, _generations(30), fault=array_fault)


def grade_loss(function: Callable[..., torch.Tensor]) -> Grade:
    """`function(logits, labels, mask_logits, masks, weights)`: the whole loss of one row.

    logits (T, V), labels (T,) with ignored ones, mask_logits and masks (M, H, W), weights: a LossConfig. M may be 0.
    """
    return grade(function, _losses(20), fault=array_fault)


def _rows(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(71)
    yield ([1, IMAGE_TOKEN_INDEX, 5], 4), [0, 1, 5]
    yield ([1, 5, 6], 4), [0, 1, 2]
    for _ in range(count):
        length, at, patches = (int(torch.randint(1, 12, (1,), generator=generator)) for _ in range(3))
        ids = torch.randint(1, 50, (length + at,), generator=generator).tolist()
        ids[at] = IMAGE_TOKEN_INDEX
        yield (ids, patches), [k if k <= at else k + patches - 1 for k in range(len(ids))]


def _generations(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(72)
    for number in range(count):
        prompt, new = (int(torch.randint(2, 9, (1,), generator=generator)) for _ in range(2))
        states = torch.randn(1, prompt + new - 1, 3, generator=generator)
        ids = torch.randint(5, 9, (new,), generator=generator)
        # A [SEG] right at the beginning, another as the last word, and an answer without any: the ends of the range.
        ids[[0, -1]] = torch.tensor([SEG_ID if number % 2 else 5, SEG_ID if number % 3 else 6])
        ids = ids.clamp(max=SEG_ID - 1) if number == 6 else ids
        steps = list(states.split([prompt] + [1] * (new - 1), dim=1))
        at = (ids == SEG_ID).nonzero()[:, 0] + prompt - 1
        yield (steps, ids.tolist(), SEG_ID), states[0, at]


def _losses(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(73)
    for number in range(count):
        t, v, m, h, w = (int(torch.randint(2, 7, (1,), generator=generator)) for _ in range(5))
        m = m if number + 1 < count else 0  # at last an answer that has no mask
        logits, mask_logits = torch.randn(t, v, generator=generator), torch.randn(m, h, w, generator=generator)
        labels = torch.randint(0, v, (t,), generator=generator)
        labels[: t // 2] = IGNORE_INDEX
        masks = torch.rand(m, h, w, generator=generator) < 0.4
        weights = LossConfig(mask_dice=2.0) if number % 2 else LossConfig(1.5, 1.0, 0.5, 100.0, 1e-3)
        yield (logits, labels, mask_logits, masks, weights), _loss(logits, labels, mask_logits, masks, weights)


def _loss(logits, labels, mask_logits, masks, weights: LossConfig) -> torch.Tensor:
    words = cross_entropy_sum(logits[:-1], labels[1:]) / (labels[1:] != IGNORE_INDEX).sum()
    bce = mask_bce_sum(mask_logits, masks) / max(len(masks), 1)
    dice = mask_dice_sum(mask_logits, masks, weights.dice_scale, weights.dice_eps) / max(len(masks), 1)
    return weights.cross_entropy * words + weights.mask_bce * bce + weights.mask_dice * dice
