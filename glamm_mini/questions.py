"""What people ask, checked and put into words that the conversation template takes."""

from dataclasses import dataclass

import numpy as np

from glamm_mini.processor import GlammProcessor
from glamm_mini.text.prompts import plain_words
from glamm_mini.text.tokens import BBOX, PHRASE_END, PHRASE_START, SEG
from glamm_mini.text.wordpiece import unknown_words


@dataclass
class Request:
    """One question about one image; boxes (N, 4) in pixels; history: earlier (question, answer text) pairs."""

    image: object
    question: str
    boxes: object = None
    history: list[tuple[str, str]] | None = None


@dataclass
class Prepared:
    """A checked request: turns for the template, the last one open; boxes (N, 4) or None; notes for the reader."""

    turns: list[tuple[str, str | None]]
    boxes: np.ndarray | None
    notes: list[str]


def prepare(request: Request, size: tuple[int, int], processor: GlammProcessor) -> Prepared:
    """Check one request about a picture of `size` (height, width); ValueError names what is wrong with it."""
    if not isinstance(request.question, str) or not request.question.strip():
        raise ValueError("the question is empty; ask something such as 'What is in the picture?'")
    boxes = _check_boxes(box_array(request.boxes), size)
    question = plain_words(request.question.strip())
    named, given = question.count(BBOX), 0 if boxes is None else len(boxes)
    if named == 0 and given:
        question = f"{question} {' '.join([BBOX] * given)}"
    elif named != given:
        raise ValueError(f"the text names {named} <bbox> but {given} boxes were given; give one box for each <bbox>")
    words = unknown_words(processor.tokenizer, question.replace(BBOX, " "))
    notes = [f"the model was never taught the words: {', '.join(words)}"] if words else []
    turns, left_out = _fitting([*_history(request.history), (question, None)], processor)
    if left_out:
        notes.append(f"the history was too long; its first {left_out} turns were left out")
    return Prepared(turns, boxes, notes)


def _fitting(turns: list, processor: GlammProcessor) -> tuple[list, int]:
    """The latest turns that fit into the model's longest row, and how many were left out before them."""
    c = processor.config
    room = c.prompt.max_length - c.image_tokens + 1
    for left_out in range(len(turns)):
        length = len(processor.encode(turns[left_out:])[0])
        if length <= room:
            return turns[left_out:], left_out
    raise ValueError(f"the question takes {length} tokens, the model reads at most {room}; ask a shorter one")


def _history(history) -> list[tuple[str, str]]:
    """Earlier turns; their boxes are gone, so that `<bbox>` is a word there, but the tags of answers stay tags."""
    for k, turn in enumerate(history or []):
        if not isinstance(turn, (tuple, list)) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise ValueError(f"history[{k}] is {turn!r}; expected a pair (question, answer text)")
    tags = (PHRASE_START, PHRASE_END, SEG)
    return [(plain_words(question, keep=()), plain_words(answer, keep=tags)) for question, answer in history or []]


def box_array(boxes) -> np.ndarray | None:
    """One box or several as (N, 4) float32; None for none; ValueError for anything else."""
    if boxes is None or np.size(boxes) == 0:
        return None
    array = np.asarray(boxes, np.float32)
    if array.ndim not in (1, 2) or array.shape[-1] != 4:
        raise ValueError(f"boxes have shape {array.shape}; expected (N, 4): x0 y0 x1 y1 of each box")
    return array.reshape(-1, 4)


def _check_boxes(array: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    """Boxes (N, 4) in pixels, clipped to the picture; ValueError if empty, swapped, outside or not finite."""
    if array is None:
        return None
    h, w = size
    for k, (x0, y0, x1, y1) in enumerate(array.tolist()):
        if not np.isfinite([x0, y0, x1, y1]).all() or not (x0 < x1 and y0 < y1):
            raise ValueError(f"box {k} is ({x0}, {y0}, {x1}, {y1}); expected finite numbers with x0 < x1 and y0 < y1")
        if x1 <= 0 or y1 <= 0 or x0 >= w or y0 >= h:
            raise ValueError(f"box {k} lies outside the picture of {w} x {h} pixels")
    return np.clip(array, 0, [w, h, w, h]).astype(np.float32)
