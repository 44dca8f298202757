"""A conversation about one picture: the picture is encoded once, every turn reads the turns before it."""

from typing import Unpack

from glamm_mini.assistant.answer import GroundedAnswer, source_of, write_picture
from glamm_mini.assistant.generation import Options
from glamm_mini.assistant.memory import Lock
from glamm_mini.assistant.requests import Request
from glamm_mini.processing.images import load_image


class Chat:
    """Made by `glamm.chat(image)`. turns: the answers so far, each with its question and boxes, oldest first.

    image: (H, W, 3) uint8. Raises what `load_image` raises for what is no picture.
    """

    def __init__(self, assistant, image):
        self.image, self._source = load_image(image), source_of(image)
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
            answer.source = self._source
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
        """The turns; of a chat without any, its picture and that it waits."""
        return self.turns or [GroundedAnswer("", "Nothing has been asked yet.", [], image=self.image)]

    def picture(self):
        """All turns below one another in one PIL image."""
        from glamm_mini.visuals.chat_view import chat_png

        return chat_png(self._shown())

    def save(self, path):
        """Write all turns as one image file; the ending of `path` decides the format."""
        return write_picture(self.picture(), path, self._source)

    def show(self) -> None:
        """Display the conversation in a notebook."""
        from IPython.display import display

        display(self)

    def _repr_html_(self) -> str:
        from glamm_mini.visuals.chat_view import chat_html

        return chat_html(self._shown())

    def _repr_png_(self) -> bytes:
        from glamm_mini.visuals.encode import BYTES, png_bytes

        return png_bytes(self.picture(), min(200_000, BYTES * max(1, len(self.turns))))
