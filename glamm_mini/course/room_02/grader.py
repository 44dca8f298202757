"""Graders of notebook 02: what the loss asks for, which tokens are a mask's phrase, what is learned of a chat."""

from collections.abc import Callable, Iterator

import numpy as np

from glamm_mini.course.grading import Grade, grade
from glamm_mini.model.tokens import IGNORE_INDEX

START, END, SEG, EOS = 91, 92, 93, 2
OPENING = [4, 7]
"""Ids that the cases use: of <p>, </p>, [SEG] and </s>, and of the tokens of "ASSISTANT:"."""


def grade_asked(function: Callable[[list[int]], list[tuple[int, int]]]) -> Grade:
    """`function(labels)`: (position, token) for every position at which the loss asks for a token, and which."""
    return grade(function, _labels(40), lambda value, expected: [tuple(pair) for pair in value] == expected)


def grade_phrase_tokens(function: Callable[[list[int], int, int, int], list[tuple[int, int] | None]]) -> Grade:
    """`function(ids, start, end, seg)`: for each [SEG], from which id to before which its phrase goes; None without."""
    return grade(function, _answers(60), lambda value, expected: _plain(value) == expected)


def grade_learned(function: Callable[[list[int], list[int], int], list[int]]) -> Grade:
    """`function(ids, opening, eos)`: the labels of a conversation, found by searching for the ids of "ASSISTANT:"."""
    return grade(function, _chats(60), lambda value, expected: [int(label) for label in value] == expected)


def _plain(value) -> list[tuple[int, int] | None]:
    return [None if span is None else tuple(span) for span in value]


def _labels(count: int) -> Iterator[tuple]:
    rng = np.random.default_rng(21)
    for _ in range(count):
        learned = rng.random(rng.integers(2, 12)) < 0.5
        labels = [int(rng.integers(2, 90)) if one else IGNORE_INDEX for one in learned]
        asked = [(at - 1, label) for at, label in enumerate(labels) if at and label != IGNORE_INDEX]
        yield (labels,), asked
    yield ([5],), []
    yield ([IGNORE_INDEX] * 3,), []


def _answers(count: int) -> Iterator[tuple]:
    """Answers with phrases that have a mask, phrases that have none, and masks without a phrase."""
    rng = np.random.default_rng(22)
    ids, spans = [10, START, 11, 12, END, SEG, 13, START, 14, END, SEG], [(2, 4), (8, 9)]
    yield (ids, START, END, SEG), spans
    for _ in range(count):
        ids, spans = [], []
        for _ in range(rng.integers(0, 5)):
            ids += rng.integers(10, 90, rng.integers(0, 3)).tolist()
            kind, words = rng.choice(["both", "phrase", "mask"], p=[0.6, 0.2, 0.2]), rng.integers(1, 4)
            at = len(ids) + 1
            if kind != "mask":
                ids += [START, *rng.integers(10, 90, words).tolist(), END]
            if kind != "phrase":
                ids.append(SEG)
                spans.append((at, at + int(words)) if kind == "both" else None)
            if kind == "phrase":
                # A word and a new phrase follow: a phrase without a mask must not claim the mask of the next.
                ids += [int(rng.integers(10, 90)), START, 50, END, SEG]
                spans.append((len(ids) - 3, len(ids) - 2))
        yield (ids, START, END, SEG), spans


def _chats(count: int) -> Iterator[tuple]:
    """Conversations of some turns. An answer may hold the opening again, a question may hold parts of it."""
    rng = np.random.default_rng(23)
    yield ([1, 3, 7, 20, *OPENING, 30, EOS], OPENING, EOS), [IGNORE_INDEX] * 6 + [30, EOS]
    for _ in range(count):
        ids, labels = [1], [IGNORE_INDEX]
        for _ in range(rng.integers(1, 4)):
            question = [3, 7, *rng.integers(10, 90, rng.integers(1, 4)).tolist(), OPENING[0], 33]
            answer = rng.integers(10, 90, rng.integers(0, 4)).tolist()
            answer += [*OPENING, 40] if rng.random() < 0.3 else []
            ids += question + OPENING + [*answer, EOS]
            labels += [IGNORE_INDEX] * (len(question) + len(OPENING)) + [*answer, EOS]
        yield (ids, OPENING, EOS), labels
