"""What people ask, checked and put into words that the conversation template takes."""

import unicodedata
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import models

from glamm_mini.model.tokens import BBOX, PHRASE_END, PHRASE_START, SEG
from glamm_mini.processing.boxes import checked_boxes
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.processing.prompts import plain_words

LISTED, LONGEST = 12, 40
"""A note names at most so many unknown words, and of each so many letters."""


@dataclass(frozen=True)
class Wording:
    """How a model is asked for each task; `{x}` stands for the words of the user."""

    describe: str
    segment: str
    describe_region: str
    caption: str
    ground: str


WORDINGS = {
    "official": Wording(
        # The five blanks stand in the official evaluation, and the published numbers were measured with them.
        describe="Could you please give me a detailed description of the image? Please respond with interleaved     "
        "segmentation masks for the corresponding parts of the answer.",
        segment="Please segment {x} in this image.",
        describe_region="Can you provide me with a detailed description of the region in the picture marked by <bbox>?",
        caption="Please describe in detail the contents of the image.",
        # The official model was never trained to ground a given sentence; this comes closest to what it was asked.
        ground="{x} Please respond with interleaved segmentation masks for the corresponding phrases.",
    ),
    "fixed": Wording(
        describe="Describe the image with masks.",
        segment="Segment {x}.",
        describe_region="Describe the region <bbox>.",
        caption="Describe the image.",
        ground="Ground this sentence: {x}",
    ),
}
"""By `config.mode`: questions that the weights have met in training or, where there is one, in the evaluation."""


@dataclass
class Request:
    """One question about one image.

    boxes: (N, 4) pixels of the upright picture, fractions of its sides if `normalised`, or None.
    history: earlier turns, oldest first: (question, answer text), or (question, answer text, boxes in pixels).
    """

    image: object
    question: str
    boxes: object = None
    history: list[tuple] | None = None
    normalised: bool = False


def requests_for(image, question, boxes=None, normalised: bool = False, history=None) -> tuple[list[Request], bool]:
    """A request for each picture, and whether several were given: as a list, a tuple or one array (N, H, W, C).

    With several pictures, a list of questions, boxes and histories holds one for each; one question may do for all.
    Raises ValueError that names what has another length.
    """
    if not isinstance(image, (list, tuple)) and getattr(image, "ndim", 0) != 4:
        return [Request(image, question, boxes, history, normalised)], False
    count, columns = len(image), {"texts": question, "boxes": boxes, "history": history}
    for name, given in columns.items():
        kinds = (list, tuple, np.ndarray, torch.Tensor)  # a table would give its names, a text its letters
        if given is None or (name == "texts" and isinstance(given, str)):
            columns[name] = [given] * count
        elif not isinstance(given, kinds) or len(given) != count:
            raise ValueError(f"{name} is {given!r:.80}; with {count} pictures give a list of {count}, one for each")
    return [Request(*row, normalised) for row in zip(image, *columns.values(), strict=True)], True


def question_of(words, template: str, what: str):
    """A task's question with the words of a user in it, or one for each of a list of them.

    Blanks around the words go, and the capital letter of an article. what: "sentence", which gets its full stop, or
    "expression", which loses it. Raises ValueError if there are no words.
    """
    if isinstance(words, (list, tuple, np.ndarray)):
        return [question_of(one, template, what) for one in words]
    text = " ".join(words.split()) if isinstance(words, str) else ""
    first, _, rest = text.partition(" ")
    text = f"{first.lower()} {rest}" if rest and first in ("The", "A", "An") else text
    if what == "expression":
        text = text.rstrip(".?!").rstrip()
    elif text[-1:].isalnum():
        text += "."
    if not text:
        raise ValueError(f"the {what} is {words!r}; expected words such as 'the red balloon'")
    return template.format(x=text)


def prepare(request: Request, size: tuple[int, int], processor: GlammProcessor) -> tuple:
    """Check one request about a picture of `size` (height, width); ValueError names what is wrong with it.

    Returns ids of the prompt, its last turn open; boxes (N, 4) of all turns as the model takes them, or None; boxes
    (N, 4) of the question in pixels, or None; and notes for the reader.
    """
    asked = "" if request.question is None else request.question
    if not isinstance(asked, str):
        raise ValueError(f"the question is a {type(asked).__name__}; expected text")
    if all(c.isspace() or unicodedata.category(c) == "Cc" for c in asked):
        raise ValueError("the question is empty; ask something such as 'What is in the picture?'")
    boxes = checked_boxes(request.boxes, size, request.normalised)
    question = _with_boxes(asked, boxes)
    turns = [*_history(request.history, size), (question, None, boxes)]
    ids, left_out = processor.encode_latest([turn[:2] for turn in turns])
    every = [own for _, _, own in turns[left_out:] if own is not None]
    fractions = processor.normalize_boxes(np.concatenate(every), size) if every else None
    return ids, fractions, boxes, _notes(question, boxes, left_out, processor)


def _with_boxes(text: str, boxes: np.ndarray | None) -> str:
    """A question in plain words in which every box has its `<bbox>`; ValueError if their numbers differ."""
    question = plain_words(text.strip())
    named, given = question.count(BBOX), 0 if boxes is None else len(boxes)
    if named == 0 and given:
        return f"{question} {' '.join([BBOX] * given)}"
    if named != given:
        raise ValueError(f"the text names {named} <bbox> but {given} boxes were given; give one box for each <bbox>")
    return question


def _notes(question: str, boxes: np.ndarray | None, left_out: int, processor: GlammProcessor) -> list[str]:
    """What the reader should know of a question, its boxes (N, 4) and the turns of the history that were left out."""
    notes, words = [], unknown_words(processor.tokenizer, question.replace(BBOX, " "))
    if words:
        shown = [word if len(word) <= LONGEST else word[:LONGEST] + "..." for word in words[:LISTED]]
        more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
        notes.append(f"the model was never taught the words: {', '.join(shown)}{more}")
    for k, (x0, y0, x1, y1) in enumerate([] if boxes is None else boxes):
        if x1 - x0 <= 1 and y1 - y0 <= 1:
            notes.append(f"box {k} is not larger than a pixel; boxes in fractions need normalised=True")
    if left_out:
        notes.append(f"the history was too long; its first {left_out} turns were left out")
    return notes


def _history(history, size: tuple[int, int]) -> list[tuple[str, str, np.ndarray | None]]:
    """Earlier turns in words that are safe to encode, and the boxes (N, 4) that their `<bbox>` stand for.

    Where a turn's boxes are not given, `<bbox>` is a word there; the tags of answers stay tags.
    """
    turns = []
    for k, (asked, said, *given) in enumerate(checked_turns("history", () if history is None else history, (2, 3))):
        try:
            boxes = checked_boxes(given[0], size) if given else None
            question = plain_words(asked, keep=()) if boxes is None else _with_boxes(asked, boxes)
        except ValueError as error:
            raise ValueError(f"history[{k}]: {error}") from error
        turns.append((question, plain_words(said, keep=(PHRASE_START, PHRASE_END, SEG)), boxes))
    return turns


def checked_turns(name: str, turns, lengths: tuple[int, ...] = (2,)) -> list:
    """Turns (question, answer text), or longer, as they are; ValueError that names the first of another form."""
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"{name} is a {type(turns).__name__}; expected a list of (question, answer text)")
    for k, turn in enumerate(turns):
        fits = isinstance(turn, (list, tuple)) and len(turn) in lengths
        if not fits or not all(isinstance(text, str) for text in turn[:2]):
            more = ", or boxes as a third" if 3 in lengths else ""
            raise ValueError(f"{name}[{k}] is {turn!r:.80}; expected a pair (question, answer text){more}")
    return turns


def unknown_words(tokenizer, text: str) -> list[str]:
    """Words of the text that the tokenizer can only spell, or not even that; the model has hardly ever seen them.

    A tokenizer that cuts all words into pieces, as those of the big models do, was taught them all: none are listed.
    """
    if not isinstance(tokenizer.backend_tokenizer.model, models.WordPiece):
        return []
    words = dict.fromkeys(w for w, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text))
    vocabulary = tokenizer.get_vocab()
    return [w for w in words if (w.isalpha() or not w.isascii()) and w not in vocabulary]
