"""Graders of notebook 14: numbers of LoRA, bytes by DeepSpeed's stages, the largest batch, who holds a row."""

import random
from collections.abc import Callable, Iterator

import torch
from torch import nn

from glamm_mini.course.grading import Grade, grade
from glamm_mini.course.room_08.lesson import LoRALinear
from glamm_mini.course.room_14.lesson import rows_of

SIDES = (64, 160, 256, 1024, 2048, 4096, 11008)


def grade_lora_numbers(function: Callable[[list[tuple[int, int]], int], int]) -> Grade:
    """`function(shapes, rank)`: how many numbers LoRA trains beside matrices of these shapes (out, in)."""
    return grade(function, _matrices(30), fault=_number_fault)


def grade_stage_bytes(function: Callable[[int, int, int, int], float]) -> Grade:
    """`function(frozen, trained, gpus, stage)`: bytes on each GPU, by the arithmetic of the official run."""
    return grade(function, _stages(60), fault=_number_fault)


def grade_largest_batch(function: Callable[[float, float, float], int]) -> Grade:
    """`function(card, fixed, per_row)`: the most rows that fit beside what is fixed into nine tenths of a card."""
    return grade(function, _cards(60), fault=_rows_fault)


def grade_holder(function: Callable[[int, int, int], tuple[int, int]]) -> Grade:
    """`function(row, rows, processes)`: the process that holds a row of a matrix, and the row's place there."""
    return grade(function, _rows(80), fault=_holder_fault)


# ---- cases ----


def _matrices(count: int) -> Iterator[tuple]:
    rng = random.Random(141)
    for _ in range(count):
        shapes = [(rng.choice(SIDES), rng.choice(SIDES)) for _ in range(rng.randint(1, 5))]
        rank = rng.choice((1, 4, 8, 64))
        with torch.device("meta"):
            layers = [LoRALinear(nn.Linear(inside, out), rank) for out, inside in shapes]
        trained = sum(p.numel() for layer in layers for p in layer.parameters() if p.requires_grad)
        yield (shapes, rank), trained


def _stages(count: int) -> Iterator[tuple]:
    rng = random.Random(142)
    for _ in range(count):
        frozen, trained = rng.randint(0, 10**10), rng.randint(1, 10**9)
        gpus, stage = rng.choice((1, 2, 4, 8, 64)), rng.randint(0, 3)
        parts = {3: 2 * (frozen + trained), 2: 2 * trained, 1: 12 * trained}  # from which stage on each part is cut
        yield (frozen, trained, gpus, stage), sum(b / gpus if stage >= least else b for least, b in parts.items())


def _cards(count: int) -> Iterator[tuple]:
    rng = random.Random(143)
    yield (16.0, 15.0, 0.1), 0
    yield (80.0, 22.0, 10.0), 5
    for _ in range(count):
        card = rng.choice((16.0, 24.0, 40.0, 80.0))
        fixed, per_row = round(rng.uniform(1, 60), 3), round(rng.uniform(0.05, 3), 3)
        yield (card, fixed, per_row), _most(card, fixed, per_row)


def _most(card: float, fixed: float, per_row: float) -> int:
    rows = 0
    while fixed + (rows + 1) * per_row <= 0.9 * card:
        rows += 1
    return rows


def _rows(count: int) -> Iterator[tuple]:
    rng = random.Random(144)
    yield (4, 5, 4), _where(4, 5, 4)
    for _ in range(count):
        rows, processes = rng.randint(1, 200), rng.choice((1, 2, 3, 4, 8))
        row = rng.randrange(rows)
        yield (row, rows, processes), _where(row, rows, processes)


def _where(row: int, rows: int, processes: int) -> tuple[int, int]:
    for process in range(processes):
        held = rows_of(torch.arange(rows), process, processes).tolist()
        if row in held:
            return process, held.index(row)
    raise ValueError(f"row {row} of {rows} is held by none of {processes}")


# ---- what is wrong ----


def _number_fault(value, expected: float) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"expected a number, got {type(value).__name__}"
    if abs(value - expected) < max(1.0, 1e-9 * abs(expected)):  # who rounds to whole bytes is right, too
        return ""
    return f"got {value:,.0f}, expected {expected:,.0f} ({value / expected:.6g} times as much)"


def _rows_fault(value, expected: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"expected a whole number of rows, an int; got {value!r}"
    if value < 0:
        return f"got {value} rows; where not one row fits the answer is 0"
    return "" if value == expected else f"got {value} rows, expected {expected}"


def _holder_fault(value, expected: tuple[int, int]) -> str:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return f"expected two whole numbers, process and place, got {value!r}"
    for name, mine, right in zip(("process", "place"), value, expected, strict=True):
        if mine != right:
            return f"the {name} is {mine}, expected {right}"
    return ""
