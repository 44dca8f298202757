"""Graders of notebook 09: two averages of IoU, a search that goes on, AP over ten bars, an answer said twice."""

from collections.abc import Callable, Iterator

import numpy as np

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.course.room_09.lesson import average_precision
from glamm_mini.evaluation.segmentation import fixed_refseg

BARS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""The bars that an IoU has to reach, one after the other, for COCO's AP."""


def grade_averages(function: Callable[[np.ndarray, np.ndarray], tuple[float, float]]) -> Grade:
    """`function(true_masks, masks)`: both (N, H, W) bool, mask k answers truth k -> (cIoU, gIoU)."""
    return grade(function, _expressions(40), fault=_two_numbers)


def grade_matches(function: Callable[[np.ndarray, np.ndarray], list[tuple[int, int]]]) -> Grade:
    """`function(ious, agree)`: (G, P) in 0..1 and (G, P) bool -> the pairs that count, the largest IoU first."""
    return grade(function, _matrices(60), fault=_pairs_fault)


def grade_mean_ap(function: Callable[[list[np.ndarray], list[np.ndarray]], float]) -> Grade:
    """`function(ious, scores)`: a matrix (G, P) and scores (P,) for each picture -> the mean AP over BARS."""
    return grade(function, _pictures(20), fault=_number_fault)


def grade_twice(function: Callable[[dict], dict]) -> Grade:
    """`function(record)`: a prediction record -> one that says every phrase twice in a row, each with its mask."""
    return grade(function, _records(10), fault=_record_fault)


def patient_matches(ious: np.ndarray, agree: np.ndarray) -> list[tuple[int, int]]:
    """The reference of `grade_matches`: as the official search, but a pair whose words fail is passed over."""
    matches: list[tuple[int, int]] = []
    for place in np.argsort(-ious, axis=None, kind="stable"):
        row, column = (int(index) for index in np.unravel_index(place, ious.shape))
        free = all(row != r and column != c for r, c in matches)
        if free and ious[row, column] >= 0.5 and agree[row, column]:
            matches.append((row, column))
    return matches


# ---- what is wrong with an answer ----


def _two_numbers(value, expected) -> str:
    if not isinstance(value, tuple | list) or len(value) != 2:
        return f"expected two numbers (cIoU, gIoU), got {value!r}"
    for name, mine, right in zip(("cIoU", "gIoU"), value, expected, strict=True):
        wrong = array_fault(np.asarray(float(mine)), np.asarray(right))
        if wrong:
            return f"{name}: {wrong}"
    return ""


def _number_fault(value, expected) -> str:
    return array_fault(np.asarray(float(value)), np.asarray(expected))


def _pairs_fault(value, expected) -> str:
    mine = [tuple(int(index) for index in pair) for pair in value]
    if mine == expected:
        return ""
    first = next((k for k in range(len(mine)) if k >= len(expected) or mine[k] != expected[k]), None)
    if first is None:
        return f"{len(mine)} pairs, expected {len(expected)}: the search ends too early"
    if first >= len(expected):
        return f"{len(mine)} pairs, expected {len(expected)}: pair {mine[first]} does not count"
    return f"pair number {first} is {mine[first]}, expected {expected[first]}"


def _record_fault(value, expected) -> str:
    if not isinstance(value, dict):
        return f"expected a dict, got a {type(value).__name__}"
    for name in expected:
        if name not in value:
            return f"the record has lost {name!r}"
        if isinstance(expected[name], list) and len(value[name]) != len(expected[name]):
            return f"{name!r} has {len(value[name])} entries, expected {len(expected[name])}"
        if value[name] != expected[name]:
            return f"{name!r} is {value[name]!r}, expected {expected[name]!r}"
    return ""


# ---- cases ----


def _expressions(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(91)
    empty = np.zeros((2, 4, 5), bool)
    yield (empty, np.stack([empty[0], ~empty[0]])), (0.0, 0.5)
    for _ in range(count):
        shape = (rng.integers(1, 7), *rng.integers(2, 9, 2))
        truth, masks = rng.random((2, *shape)) < rng.random((2, shape[0], 1, 1))
        figures = fixed_refseg(list(zip(truth, masks, strict=True)))
        yield (truth, masks), (figures["ciou"], figures["giou"])


def _matrices(count: int) -> Iterator[tuple]:
    """IoU matrices in which several predictions lie on one truth, and half of the words are wrong."""
    rng = np.random.default_rng(92)
    yield (np.array([[0.9, 0.6], [0.2, 0.7]]), np.array([[False, True], [True, True]])), [(1, 1)]
    yield (np.zeros((0, 3)), np.zeros((0, 3), bool)), []
    for _ in range(count):
        shape = tuple(rng.integers(1, 6, 2))
        ious, agree = rng.permutation(np.prod(shape)).reshape(shape) / np.prod(shape), rng.random(shape) < 0.5
        yield (ious, agree), patient_matches(ious, agree)


def _pictures(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(93)
    for _ in range(count):
        shapes = rng.integers(1, 6, (rng.integers(1, 5), 2))
        ious = [rng.random(shape) ** 0.3 for shape in shapes]
        scores = [rng.random(shape[1]) for shape in shapes]
        yield (ious, scores), float(np.mean([average_precision(ious, scores, bar) for bar in BARS]))


def _records(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(94)
    for number in range(count):
        phrases = [str(word) for word in rng.choice(["a red kite", "the sea", "a boat"], rng.integers(0, 4))]
        record = {
            "image_id": f"picture_{number}",
            "caption": "".join(f"{phrase}. " for phrase in phrases).strip(),
            "phrases": phrases,
            "pred_masks": [{"size": [4, 5], "counts": f"mask {k}"} for k in range(len(phrases))],
            "scores": [round(float(score), 4) for score in rng.random(len(phrases))],
        }
        lists = [name for name in record if isinstance(record[name], list)]
        twice = {name: [entry for entry in record[name] for _ in (0, 1)] for name in lists}
        yield (record,), record | twice
