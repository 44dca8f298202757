"""Everything odd that people hand in, through the public calls: a right answer, or one error that says what to do."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from scripted import GROUNDED

import glamm_mini
from glamm_mini.assistant.answer import GroundedAnswer, GroundedPhrase
from glamm_mini.visuals.overlay import LONGEST_RATIO


def odd_pictures(folder):
    """name: (what to hand in, height, width of the upright picture)."""
    rng = np.random.default_rng(3)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("RGBA").save(folder / "rgba.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)).save(folder / "sixteen.png")
    frames = [rgb, rgb.rotate(180), rgb]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=40)
    return {
        "grey": (np.asarray(rgb.convert("L")), 20, 30),
        "rgba": (folder / "rgba.png", 20, 30),
        "cmyk": (str(folder / "cmyk.jpg"), 20, 30),
        "sixteen bits": (folder / "sixteen.png", 20, 30),
        "turned": (folder / "turned.jpg", 30, 20),
        "moving": (folder / "moving.gif", 20, 30),
        "one pixel wide": (np.zeros((40, 1, 3), np.uint8), 40, 1),
        "one pixel high": (np.zeros((1, 40, 3), np.uint8), 1, 40),
        "one pixel": (np.zeros((1, 1, 3), np.uint8), 1, 1),
    }


def test_odd_pictures_are_answered_and_shown_in_their_own_size(glamm, says, tmp_path):
    says(GROUNDED)
    for name, (image, h, w) in odd_pictures(tmp_path).items():
        answer = glamm.describe(image)
        assert answer.image.shape == (h, w, 3), name
        assert [p.mask.shape for p in answer.phrases] == [(h, w)] * 2, name
        record = answer.to_dict(name)
        assert [mask["size"] for mask in record["pred_masks"]] == [[h, w]] * 2, name


def test_very_long_pictures_are_shown_at_a_size_that_one_can_see(glamm, says):
    says(GROUNDED)
    for shape in ((400, 1, 3), (1, 400, 3)):
        answer = glamm.ask(np.zeros(shape, np.uint8), "What is this?", boxes=[[0, 0, shape[1], shape[0]]])
        card = answer.picture()
        assert 150 < card.height < 1100
        [width] = re.findall(r"flex:0 1 (\d+(?:px|%));line-height", answer._repr_html_())
        assert width == (f"{440 / LONGEST_RATIO:.0f}px" if shape[1] == 1 else "100%")


def test_twenty_megapixels_are_answered_at_full_size(glamm, says):
    says(GROUNDED)
    image = np.full((4000, 5000, 3), 90, np.uint8)
    answer = glamm.describe(image)
    assert [p.mask.shape for p in answer.phrases] == [(4000, 5000)] * 2
    assert answer.picture().width == 1200 and len(answer._repr_html_()) < 400_000


def calls(glamm, image):
    return [
        lambda: glamm.ask(image, "What is this?"),
        lambda: glamm.describe(image),
        lambda: glamm.segment(image, "the sea"),
        lambda: glamm.describe_region(image, [0, 0, 1, 1]),
        lambda: glamm.caption(image),
        lambda: glamm.ground(image, "the sea."),
        lambda: glamm.chat(image),
    ]


def test_no_picture_is_one_clear_error_in_every_call(glamm, tmp_path):
    (tmp_path / "words.png").write_text("no picture")
    for image, error, words in (
        (None, ValueError, "no image was given, but None; give a path"),
        ("", ValueError, "no image was given, but ''; give a path"),
        (np.zeros((0, 0, 3), np.uint8), ValueError, "holds no pixel; give a path"),
        (tmp_path, FileNotFoundError, "is a folder.*give the path of one of its files"),
        (tmp_path / "none.png", FileNotFoundError, "no image at .*none.png; give the path"),
        (tmp_path / "words.png", ValueError, "words.png .*damaged"),
    ):
        for call in calls(glamm, image):
            with pytest.raises(error, match=words):
                call()


@pytest.mark.parametrize(
    ("written", "masks", "notes"),
    [
        ("the sea", 0, []),
        ("[SEG] [SEG] <p> the sea </p> [SEG]", 3, []),
        ("<p> the sea </p> <p> a kite </p> [SEG]", 1, ["a phrase is not followed by a [SEG], and so has no mask"]),
        ("the sea </p> [SEG]", 1, ["a phrase was closed that was never opened"]),
        ("<p> the sea [SEG]", 1, ["a [SEG] stands inside a phrase that was not closed"]),
        ("<p> <p> the sea", 0, ["a phrase was opened inside another; the first was never closed",
                                "the last phrase was not closed"]),
        ("", 0, ["the model wrote nothing"]),
        ("</s>", 0, ["the model wrote nothing"]),
        ("<p> </p> [SEG]", 1, []),
    ],
)  # fmt: skip
def test_answers_with_tags_in_disorder_are_shown_all_the_same(glamm, says, written, masks, notes):
    says(written)
    answer = glamm.ask(np.zeros((20, 30, 3), np.uint8), "What is this?")
    assert len(answer.phrases) == masks and answer.notes == notes
    assert not any(tag in answer.caption for tag in ("<p>", "</p>", "[SEG]"))
    for phrase in answer.phrases:
        assert phrase.text == ("" if phrase.span is None else answer.caption[slice(*phrase.span)])
    html = answer._repr_html_()
    assert html.count("<span") == masks and ("(no words)" in html) == (not answer.caption and not masks)
    assert answer.picture().width == 1200
    assert len(answer.to_dict()["pred_masks"]) == masks


def test_html_that_a_model_writes_or_a_user_types_is_never_markup():
    evil = '<script>alert(1)</script><img src=x onerror="alert(1)">'
    phrase = GroundedPhrase(evil, (0, len(evil)), np.ones((9, 9), bool), (0, 0, 9, 9), 0.9)
    html = GroundedAnswer(evil, evil, [phrase], [evil], np.zeros((9, 9, 3), np.uint8), evil)._repr_html_()
    assert "<script" not in html and "<img src=x" not in html and html.count("&lt;script&gt;") >= 3


def test_unknown_words_are_listed_but_not_all_of_a_long_text(glamm, says):
    says("the sea .")
    image = np.zeros((20, 30, 3), np.uint8)
    [note] = glamm.ask(image, "What is this zeppelin \U0001f388 ?").notes
    assert note == "the model was never taught the words: zeppelin, \U0001f388"
    [note] = glamm.ask(image, " ".join(f"z{'y' * (k + 1)}" for k in range(20))).notes
    assert note.endswith(" and 8 more") and note.count(",") == 11


def test_a_device_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match="cuda:0.*cpu"):
        glamm_mini.load("tiny", device="cuda:0")


def test_the_bundled_model_takes_every_call():
    glamm = glamm_mini.load("tiny", device="cpu")
    image = np.full((60, 80, 3), (120, 170, 230), np.uint8)
    chat = glamm.chat(image)
    answers = [
        glamm.describe(image),
        glamm.segment(image, "the sky"),
        glamm.describe_region(image, [0.1, 0.1, 0.5, 0.5], normalised=True),
        glamm.caption(image),
        glamm.ground(image, "The sky."),
        chat.say("What is in <bbox>?", boxes=[8, 8, 40, 40]),
        chat.say("Where is it?"),
    ]
    for answer in answers:
        assert isinstance(answer, GroundedAnswer) and answer.question
        assert not any("never taught" in note for note in answer.notes)
        assert "<div" in answer._repr_html_()
    assert len(chat.turns) == 2


@pytest.mark.parametrize("name", [5, b"tiny", None, "", " ", ["tiny"]])
def test_a_model_without_a_name_is_refused(name):
    with pytest.raises(ValueError, match="model"):
        glamm_mini.load(name)


def test_boxes_may_be_tensors_of_any_kind(glamm, says):
    says("the sea .")
    for boxes in (torch.tensor([[1.0, 1, 9, 9]], requires_grad=True), torch.tensor([1, 1, 9, 9])):
        assert glamm.ask(np.zeros((20, 30, 3), np.uint8), "What?", boxes).boxes.tolist() == [[1, 1, 9, 9]]
