"""Graders of notebook 00: read an answer, compare two masks, find what an answer has missed."""

from collections.abc import Callable, Iterator

import numpy as np

from glamm_mini.course.grading import Grade, close, grade
from glamm_mini.evaluation.masks import iou_matrix
from glamm_mini.processing.tags import parse_grounded
from glamm_mini.storybook.language.tasks import conversation
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import keyed_rng

ENOUGH = 0.5
"""A mask counts as found from this overlap on."""


def grade_phrases(function: Callable[[str], list[str]]) -> Grade:
    """`function(text)`: the phrases of an answer, in order, without tags and without blanks at their ends."""
    return grade(function, _texts(30), lambda value, expected: list(value) == expected)


def grade_overlap(function: Callable[[np.ndarray, np.ndarray], float]) -> Grade:
    """`function(a, b)`: the IoU of two masks (H, W) bool; 1 where both are empty."""
    return grade(function, _pairs(60), close)


def grade_missed(function: Callable[[np.ndarray, np.ndarray], list[int]]) -> Grade:
    """`function(true_masks, masks)`: numbers of the true masks that no mask overlaps with an IoU of at least 0.5."""
    return grade(function, _scenes(40), lambda value, expected: [int(index) for index in value] == expected)


def _texts(count: int) -> Iterator[tuple]:
    yield ("Yes .",), []
    yield ("<p> a red kite </p> [SEG] .",), ["a red kite"]
    yield ("<p> a kite </p> and <p> the sea </p> [SEG] .",), ["a kite", "the sea"]  # a phrase may have no mask
    for index in range(count):
        scene = sample_scene("val", 31, index)
        turns = conversation("gcg", scene, render(scene, long_side=64), keyed_rng("exercise", 0, index))
        answer = turns[0].answer if turns else "Yes."
        yield (answer,), [phrase.text for phrase in parse_grounded(answer).phrases]


def _pairs(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(31)
    empty = np.zeros((6, 9), bool)
    for _ in range(count):
        a, b = rng.random((2, *rng.integers(1, 12, 2))) < rng.random((2, 1, 1))
        yield (a, b), _iou(a[None], b[None]).item()
    yield (empty, ~empty), 0.0
    yield (empty, empty), 1.0


def _scenes(count: int) -> Iterator[tuple]:
    """Rectangles, and the same ones moved a little: about half of them are still found."""
    rng = np.random.default_rng(32)
    none = np.zeros((0, 20, 30), bool)
    for number in range(count):
        corners = rng.integers(0, 12, (rng.integers(1, 6), 2))
        truth = np.stack([_rectangle(*corner) for corner in corners])
        kept = corners[rng.random(len(corners)) < 0.8]
        moved = [_rectangle(*(corner + rng.integers(0, 4, 2))) for corner in kept]
        masks = np.stack(moved) if moved and number + 1 < count else none
        best = _iou(truth, masks).max(axis=1, initial=0.0)
        yield (truth, masks), [int(index) for index in np.flatnonzero(best < ENOUGH)]


def _rectangle(top: int, left: int) -> np.ndarray:
    mask = np.zeros((20, 30), bool)
    mask[top : top + 6, left : left + 9] = True
    return mask


def _iou(truth: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(N, H, W) and (M, H, W) to (N, M)."""
    return np.asarray(iou_matrix(truth, masks)).reshape(len(truth), len(masks))
