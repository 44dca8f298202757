"""What GLaMM answers: words and the masks that belong to them; chats of answers; how both are shown and saved."""

import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import get_ident
from typing import Unpack

import numpy as np
from PIL import Image

from glamm_mini.assistant.generation import Options
from glamm_mini.assistant.memory import Lock
from glamm_mini.assistant.requests import Request
from glamm_mini.processing.images import encode_mask, load_image
from glamm_mini.visuals.answer_html import answer_html, chat_html
from glamm_mini.visuals.answer_png import answer_png, compose
from glamm_mini.visuals.encode import BYTES, png_bytes

WRITTEN = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Endings of the files that an answer is saved to: those of the pictures that are read, too."""


class _Comparable:
    """Equal when all fields are, arrays by their values: a dataclass's own `==` fails on arrays."""

    def __eq__(self, other) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        for one in fields(self):
            a, b = getattr(self, one.name), getattr(other, one.name)
            has_array = isinstance(a, np.ndarray) or isinstance(b, np.ndarray)
            if one.compare and not (np.array_equal(a, b) if has_array else a == b):
                return False
        return True

    __hash__ = None


class Shown:
    """What has a `picture()`, shows it in a notebook and saves it: an answer, a chat. source: the path of the picture
    that was asked about, or None."""

    source: str | None

    def save(self, path: str | Path) -> Path:
        """Write picture and words as one image file; the ending of `path` decides the format.

        Missing folders are made; a file that is there is replaced. Raises ValueError for an ending that names no image
        format, and for the file of the picture that was asked about.
        """
        if not isinstance(path, str | os.PathLike) or "\0" in str(path):
            raise ValueError(f"the answer cannot be saved to {path!r}; give the path of a file, such as 'answer.png'")
        path = Path(path)
        if self.source is not None and path.exists() and Path(self.source).exists() and path.samefile(self.source):
            raise ValueError(f"{path} is the picture that was asked about; save the answer under another name")
        if path.suffix.lower() not in WRITTEN:
            kinds = f"no image format that answers are written in; expected one of {', '.join(WRITTEN)}"
            raise ValueError(f"{path} ends in {path.suffix!r}, which names {kinds}")
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the path of a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.picture().save(path)
        return path

    def show(self) -> None:
        """Display it in a notebook."""
        from IPython.display import display

        display(self)

    def _repr_png_(self, limit: int = BYTES) -> bytes:
        return png_bytes(self.picture(), limit)


@dataclass(eq=False)
class GroundedPhrase(_Comparable):
    """text and span index the caption ("" and None for a [SEG] without phrase). mask: (H, W) bool. box: (x0, y0, x1,
    y1) pixels around the mask, None if it is empty. score: mean probability inside the mask, 0 if it is empty.
    logits: (H, W) float32, above 0 inside the mask; None unless the question was asked with details=True."""

    text: str
    span: tuple[int, int] | None
    mask: np.ndarray = field(repr=False)
    box: tuple[int, int, int, int] | None
    score: float
    logits: np.ndarray | None = field(default=None, repr=False)


@dataclass(eq=False)
class GroundedAnswer(Shown, _Comparable):
    """What GLaMM answered. text: as written, tags included. caption: tags removed. phrases: one per mask.
    notes: what the reader should know. image: (H, W, 3) uint8 that was asked about. question: as asked.
    boxes: (N, 4) pixels that the question referred to, cut at the picture's edges; None without boxes.
    source: the picture's path, where it was given by one; takes no part in `==`.
    token_ids: (T,) int64, what was generated, the end with it, and token_scores: (T,) float32, the logarithm of the
    probability that the model gave to each; both None unless asked with details=True."""

    text: str
    caption: str
    phrases: list[GroundedPhrase]
    notes: list[str] = field(default_factory=list)
    image: np.ndarray | None = field(default=None, repr=False)
    question: str = ""
    boxes: np.ndarray | None = None
    source: str | None = field(default=None, repr=False, compare=False)
    token_ids: np.ndarray | None = field(default=None, repr=False)
    token_scores: np.ndarray | None = field(default=None, repr=False)

    def to_dict(self, image_id=None) -> dict:
        """The official prediction record: image_id, caption, phrases, and one compressed RLE a phrase."""
        return {
            "image_id": image_id,
            "caption": self.caption,
            "phrases": [p.text for p in self.phrases],
            "pred_masks": [encode_mask(p.mask) for p in self.phrases],
            "scores": [round(p.score, 4) for p in self.phrases],
        }

    def picture(self) -> Image.Image:
        """Picture and sentence in one PIL image."""
        return answer_png(self)

    def _repr_html_(self) -> str:
        return answer_html(self)


class Chat(Shown):
    """Made by `glamm.chat(image)`. turns: the answers so far, each with its question and boxes, oldest first.

    image: (H, W, 3) uint8. Raises what `load_image` raises for what is no picture.
    """

    def __init__(self, assistant, image):
        self.source, self.image = source_of(image), load_image(image)
        self.turns: list[GroundedAnswer] = []
        self._assistant = assistant
        self._lock = Lock()
        self._answering: int | None = None  # the thread that does

    def say(self, text: str, boxes=None, normalised: bool = False, **options: Unpack[Options]) -> GroundedAnswer:
        """Ask the next question; arguments and errors as those of `glamm.ask`. An error leaves the turns as they were.

        "it" and "them" may speak of earlier turns. A `<bbox>` means a box of this call; boxes of earlier turns stay
        where they were named. Threads that share a chat take turns; a streamer that asks the chat whose answer it gets
        would wait for itself, which is a RuntimeError.
        """
        if self._answering == get_ident():
            raise RuntimeError("this chat is answering: a streamer cannot ask it; ask when the answer has come")
        with self._lock:
            self._answering = get_ident()
            try:
                request = Request(self.image, text, boxes, self.history, normalised)
                answer = self._assistant.answer_batch([request], **options)[0]
            finally:
                self._answering = None
            answer.source = self.source
            self.turns.append(answer)
        return answer

    @property
    def history(self) -> list[tuple]:
        """The turns as (question, answer text, boxes), as `glamm.ask(history=...)` takes them."""
        return [(turn.question, turn.text, turn.boxes) for turn in self.turns]

    def __repr__(self) -> str:
        h, w = self.image.shape[:2]
        return f"Chat about a picture of {w} x {h} pixels, {len(self.turns)} turns"

    def _shown(self) -> list[GroundedAnswer]:
        """The turns; those with neither masks nor boxes without their picture, except the first. At least one."""
        first, *others = self.turns or [GroundedAnswer("", "Nothing has been asked yet.", [], image=self.image)]
        return [first, *(t if t.phrases or t.boxes is not None else replace(t, image=None) for t in others)]

    def picture(self) -> Image.Image:
        """All turns below one another in one PIL image."""
        return compose([answer_png(turn) for turn in self._shown()], columns=1, gap=0)

    def _repr_html_(self) -> str:
        return chat_html(self._shown())

    def _repr_png_(self) -> bytes:
        return super()._repr_png_(min(200_000, BYTES * max(1, len(self.turns))))


def source_of(image) -> str | None:
    """The whole path that an image was given by, or that a PIL image (not read yet) or a file was opened from."""
    path = image
    if not isinstance(image, str | os.PathLike):
        path = getattr(image, "filename", "") or getattr(getattr(image, "fp", None) or image, "name", None)
    return os.path.abspath(path) if isinstance(path, str | os.PathLike) and os.fspath(path) else None


def box_around(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) of the smallest box that holds all pixels of a mask (H, W) bool; None for an empty one."""
    return Image.fromarray(mask).getbbox()
