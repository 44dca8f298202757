"""Answers without phrases, with empty masks, about tiny and very long pictures: shown, saved, recorded."""

import json

import numpy as np
import pytest
from PIL import Image

from glamm_mini.assistant.answer import WRITTEN, GroundedAnswer, GroundedPhrase
from glamm_mini.course.drawing.widgets import PhraseExplorer

SHAPES = [(1, 1), (3, 1500), (1500, 3), (40, 60)]


def bare_answers(h: int, w: int) -> dict[str, GroundedAnswer]:
    image = np.full((h, w, 3), 120, np.uint8)
    empty = GroundedPhrase("the sea", (0, 7), np.zeros((h, w), bool), None, 0.0)
    whole = GroundedPhrase("", None, np.ones((h, w), bool), (0, 0, w, h), 0.9)
    one = np.zeros((h, w), bool)
    one[-1, -1] = True
    pixel = GroundedPhrase("the sea", (0, 7), one, (w - 1, h - 1, w, h), 0.6)
    return {
        "no phrase": GroundedAnswer("the sea.", "the sea.", [], ["a note"], image, "What?"),
        "no word": GroundedAnswer("", "", [], [], image),
        "empty mask": GroundedAnswer("the sea.", "the sea.", [empty], [], image, "What?", np.array([[0, 0, w, h]])),
        "no words, a mask": GroundedAnswer("[SEG]", "", [whole], [], image),
        "one pixel": GroundedAnswer("the sea.", "the sea.", [pixel, empty], [], image),
        "no picture": GroundedAnswer("the sea.", "the sea.", [], [], None),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bare_answers_show_themselves(shape, tmp_path):
    for name, answer in bare_answers(*shape).items():
        html, png = answer._repr_html_(), answer._repr_png_()
        assert "<div" in html and ("<img" in html) == (answer.image is not None), name
        assert png[:4] == b"\x89PNG" and answer.picture().width == 1200, name
        record = json.loads(json.dumps(answer.to_dict("x")))
        assert len(record["pred_masks"]) == len(record["scores"]) == len(answer.phrases), name
        if name in ("no phrase", "empty mask"):
            widget = PhraseExplorer(answer)
            assert max(widget.static_picture().size) < 12_000 and isinstance(widget.static_words(), str), name


@pytest.mark.parametrize("ending", WRITTEN)
def test_bare_answers_are_saved_in_every_format(ending, tmp_path):
    for name, answer in bare_answers(3, 50).items():
        path = answer.save(tmp_path / f"{name}{ending}")
        with Image.open(path) as back:
            assert back.size == answer.picture().size, name
