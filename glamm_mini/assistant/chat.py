"""A conversation about one picture: the picture is encoded once, every turn reads the turns before it."""

from glamm_mini.assistant.answer import GroundedAnswer, write_picture
from glamm_mini.assistant.requests import Request
from glamm_mini.processing.images import load_image


class Chat:
    """Made by `glamm.chat(image)`. turns: the answers so far, each with its question and boxes, oldest first.

    image: (H, W, 3) uint8. Raises what `load_image` raises for what is no picture.
    """

    def __init__(self, assistant, image):
        self.image = load_image(image)
        self.turns: list[GroundedAnswer] = []
        self._assistant = assistant
        self._features = None

    def say(self, text: str, boxes=None, normalised: bool = False) -> GroundedAnswer:
        """Ask the next question; arguments and errors as those of `glamm.ask`. An error leaves the turns as they were.

        "it" and "them" may speak of earlier turns. A `<bbox>` means a box of this call; boxes of earlier turns stay
        where they were named.
        """
        request = Request(self.image, text, boxes, self.history, normalised)
        if self._features is None:
            self._features = self._assistant.encode(self.image)
        answer = self._assistant.answer_batch([request], self._features)[0]
        self.turns.append(answer)
        return answer

    @property
    def history(self) -> list[tuple]:
        """The turns as (question, answer text, boxes), as `glamm.ask(history=...)` takes them."""
        return [(turn.question, turn.text, turn.boxes) for turn in self.turns]

    def __repr__(self) -> str:
        h, w = self.image.shape[:2]
        return f"Chat about a picture of {w} x {h} pixels, {len(self.turns)} turns"

    def picture(self):
        """All turns below one another in one PIL image."""
        from glamm_mini.visuals.chat_view import chat_png

        return chat_png(self)

    def save(self, path):
        """Write all turns as one image file; the ending of `path` decides the format."""
        return write_picture(self.picture(), path)

    def show(self) -> None:
        """Display the conversation in a notebook."""
        from IPython.display import display

        display(self)

    def _repr_html_(self) -> str:
        from glamm_mini.visuals.chat_view import chat_html

        return chat_html(self)

    def _repr_png_(self) -> bytes:
        from glamm_mini.visuals.encode import BYTES, png_bytes

        return png_bytes(self.picture(), min(200_000, BYTES * max(1, len(self.turns))))
