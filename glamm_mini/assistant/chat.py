"""A conversation about one picture: the picture is encoded once, every turn reads the turns before it."""

from dataclasses import replace
from typing import Unpack

from PIL import Image

from glamm_mini.assistant.answer import GroundedAnswer, Shown, source_of
from glamm_mini.assistant.generation import Options
from glamm_mini.assistant.memory import Lock
from glamm_mini.assistant.requests import Request
from glamm_mini.processing.images import load_image
from glamm_mini.visuals.answer_html import chat_html
from glamm_mini.visuals.answer_png import answer_png, compose
from glamm_mini.visuals.encode import BYTES


class Chat(Shown):
    """Made by `glamm.chat(image)`. turns: the answers so far, each with its question and boxes, oldest first.

    image: (H, W, 3) uint8. Raises what `load_image` raises for what is no picture.
    """

    def __init__(self, assistant, image):
        self.image, self.source = load_image(image), source_of(image)
        self.turns: list[GroundedAnswer] = []
        self._assistant = assistant
        self._lock = Lock()

    def say(self, text: str, boxes=None, normalised: bool = False, **options: Unpack[Options]) -> GroundedAnswer:
        """Ask the next question; arguments and errors as those of `glamm.ask`. An error leaves the turns as they were.

        "it" and "them" may speak of earlier turns. A `<bbox>` means a box of this call; boxes of earlier turns stay
        where they were named. Threads that share a chat take turns.
        """
        with self._lock:
            request = Request(self.image, text, boxes, self.history, normalised)
            answer = self._assistant.answer_batch([request], **options)[0]
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
