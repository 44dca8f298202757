"""Graders of notebook 05: how many windows, which of their places are real, a bias for each pair of places."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.course.room_05.lesson import cut_windows


def grade_count(function: Callable[[int, int, int], tuple[int, float]]) -> Grade:
    """`function(h, w, side)`: how many windows a grid needs, and the share of their places that is padding."""
    return grade(function, _sizes(40), fault=_count_fault)


def grade_real(function: Callable[[int, int, int], torch.Tensor]) -> Grade:
    """`function(h, w, side)`: (N, side * side) bool, true where a place of a window is a patch of the grid."""
    cases = ((size, _real(*size)) for size, _ in _sizes(40))
    return grade(function, cases, fault=array_fault)


def grade_pair_bias(function: Callable[[torch.Tensor, int], torch.Tensor]) -> Grade:
    """`function(table, side)`: (P, P), for each query and key of a window the entry of their offset.

    table: (2 * side - 1, 2 * side - 1); the offset query - key, counted from -(side - 1), is row and column.
    """
    return grade(function, _tables(20), fault=array_fault)


def _sizes(count: int) -> Iterator[tuple]:
    """Grids that windows fit, that they do not fit, and that are smaller than one window."""
    rng = np.random.default_rng(51)
    sizes = [(4, 4, 2), (3, 5, 7), (64, 64, 14)]
    sizes += [tuple(int(side) for side in rng.integers(1, (30, 30, 9))) for _ in range(count)]
    for size in sizes:
        real = _real(*size)
        yield size, (len(real), float((~real).float().mean()))


def _real(h: int, w: int, side: int) -> torch.Tensor:
    return cut_windows(torch.ones(1, h, w, 1), side).flatten(1) > 0  # (N, side, side, 1) -> (N, side * side)


def _tables(count: int) -> Iterator[tuple]:
    torch.manual_seed(52)
    for number in range(count):
        side = (number + 1) % 5 + 1
        table = torch.randn(2 * side - 1, 2 * side - 1)
        bias = torch.empty(side * side, side * side)
        for query in range(side * side):
            for key in range(side * side):
                down, across = query // side - key // side, query % side - key % side
                bias[query, key] = table[down + side - 1, across + side - 1]
        yield (table, side), bias


def _count_fault(value, expected) -> str:
    if not isinstance(value, tuple) or len(value) != 2:
        return "expected a tuple: the number of windows and the share of padding"
    if int(value[0]) != expected[0]:
        return f"the number of windows is {value[0]}, expected {expected[0]}"
    if abs(float(value[1]) - expected[1]) > 1e-5:
        return f"the share of padding is {float(value[1]):.4f}, expected {expected[1]:.4f}"
    return ""
