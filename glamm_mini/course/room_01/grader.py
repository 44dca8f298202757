"""Graders of notebook 01: what is visible, how large a run-length mask is, where phrases stand."""

from collections.abc import Callable, Iterator

import numpy as np

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.course.room_01.lesson import run_lengths


def grade_visible(function: Callable[[np.ndarray], np.ndarray]) -> Grade:
    """`function(whole)`: whole masks (N, H, W) bool from back to front -> the visible part of each, (N, H, W) bool."""
    return grade(function, _stacks(40), fault=array_fault)


def grade_area(function: Callable[[list[int]], int]) -> Grade:
    """`function(counts)`: the number of pixels in a mask that is given as run lengths, without decoding it."""
    return grade(function, _counts(60), lambda value, expected: int(value) == expected)


def grade_spans(function: Callable[[str, list[str]], list[tuple[int, int]]]) -> Grade:
    """`function(caption, phrases)`: (start, end) of each phrase, which stand in the caption in this order."""
    return grade(function, _captions(60), lambda value, expected: [tuple(span) for span in value] == expected)


def _stacks(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(11)
    for _ in range(count):
        whole = rng.random((rng.integers(1, 6), *rng.integers(2, 9, 2))) < 0.5
        covered = np.zeros(whole.shape[1:], bool)
        visible = np.zeros_like(whole)
        for k in range(len(whole) - 1, -1, -1):
            visible[k] = whole[k] & ~covered
            covered |= whole[k]
        yield (whole,), visible
    yield (np.zeros((0, 4, 5), bool),), np.zeros((0, 4, 5), bool)


def _counts(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(12)
    for _ in range(count):
        mask = rng.random(rng.integers(1, 12, 2)) < rng.random()
        yield (run_lengths(mask),), int(mask.sum())
    yield ([12],), 0
    yield ([0, 12],), 12


def _captions(count: int) -> Iterator[tuple]:
    """Sentences in which the same words may come twice, and one phrase may be the beginning of other words, which may
    be no phrase themselves."""
    rng = np.random.default_rng(13)
    nouns = ["a kite", "a kite", "a kitesurfer", "the sea", "two boats", "a red kite"]
    for _ in range(count):
        caption, spans = "", []
        for noun in rng.choice(nouns, rng.integers(1, 6)):
            before = ["And ", "Near ", "Over "] + ["Past a kitesurfer, "] * (noun != "a kitesurfer")
            caption += str(rng.choice(before)) if caption else ""
            spans.append((len(caption), len(caption) + len(noun)))
            caption += noun + str(rng.choice([". ", ", ", "; "]))
        yield (caption, [caption[start:end] for start, end in spans]), spans
