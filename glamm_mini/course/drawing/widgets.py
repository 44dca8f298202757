"""An answer to click: the chosen phrase keeps its mask light, the rest goes dark."""

from pathlib import Path

import traitlets
from PIL import Image

from glamm_mini.course.drawing.panels import phrase_panels
from glamm_mini.course.drawing.pictured import PicturedWidget
from glamm_mini.visuals.encode import data_url
from glamm_mini.visuals.overlay import mask_path
from glamm_mini.visuals.palette import color, hex_color, ink_on
from glamm_mini.visuals.sentence import loose_phrases, question_words, sentence_runs

LONG_SIDE = 640


class PhraseExplorer(PicturedWidget):
    """An answer whose phrases can be clicked: the mask of the chosen one stays light, the rest goes dark.

    answer: a GroundedAnswer with its image. `selected` is the number of the chosen phrase, -1 for none; it can be
    read and set from Python.

    Raises ValueError for an answer without an image.
    """

    _esm = (Path(__file__).parent / "phrase_explorer.js").read_text(encoding="utf-8")

    picture = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)
    question = traitlets.Unicode().tag(sync=True)
    runs = traitlets.List().tag(sync=True)
    phrases = traitlets.List().tag(sync=True)
    selected = traitlets.Int(-1).tag(sync=True)

    def __init__(self, answer):
        if answer.image is None:
            raise ValueError("the answer has no image to explore; ask about a picture first")
        self.answer = answer
        runs = [*sentence_runs(answer), *loose_phrases(answer)]
        super().__init__(
            picture=data_url(_resized(answer.image)),
            alt=f"The picture that was asked about, with {len(answer.phrases)} masks",
            question=question_words(answer),
            runs=[{"text": run.text, "phrase": -1 if run.phrase is None else run.phrase} for run in runs],
            phrases=[_record(index, phrase) for index, phrase in enumerate(answer.phrases)],
        )

    def __repr__(self) -> str:
        return f"PhraseExplorer({len(self.answer.phrases)} phrases)"

    @property
    def phrase(self):
        """The chosen GroundedPhrase, or None."""
        return self.answer.phrases[self.selected] if self.selected >= 0 else None

    @traitlets.validate("selected")
    def _in_range(self, proposal):
        if not -1 <= proposal["value"] < len(self.phrases):
            raise traitlets.TraitError(f"phrase {proposal['value']} of {len(self.phrases)}; -1 chooses none")
        return proposal["value"]

    def static_picture(self) -> Image.Image:
        """One panel for each phrase."""
        return phrase_panels(self.answer)

    def static_words(self) -> str:
        """The phrases."""
        words = ", ".join(phrase.text or "a mask without words" for phrase in self.answer.phrases)
        return f"The mask of each phrase alone: {words}"


def _record(index: int, phrase) -> dict:
    """What the page needs to know about a phrase."""
    rgb = color(index)
    share = f"{phrase.mask.mean():.1%} of the picture, score {phrase.score:.2f}"
    return {
        "path": mask_path(phrase.mask),
        "color": hex_color(rgb),
        "ink": hex_color(ink_on(rgb)),
        "about": share if phrase.mask.any() else "no pixel was found for this phrase",
    }


def _resized(image) -> Image.Image:
    scale = LONG_SIDE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in (image.shape[1], image.shape[0])]
    return Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
