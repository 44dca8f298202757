"""The assistant, on a small random model whose words a script decides: every answer's words, masks and notes agree."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from scripted import GROUNDED

from glamm_mini.assistant.assistant import GroundedAnswer, Request, load
from glamm_mini.assistant.memory import FeatureMemory
from glamm_mini.checkpoints.save import save_model
from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX

# --- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_holds_words_and_masks_that_agree(glamm, picture, says):
    says(GROUNDED)
    answer = glamm.ask(picture, "What is this?")
    assert answer.text == GROUNDED
    assert answer.caption == "a red kite over the sea."
    assert [p.text for p in answer.phrases] == ["a red kite", "the sea"]
    assert [answer.caption[slice(*p.span)] for p in answer.phrases] == ["a red kite", "the sea"]
    assert answer.notes == [] and answer.question == "What is this?" and answer.boxes is None
    np.testing.assert_array_equal(answer.image, picture)
    for phrase in answer.phrases:
        assert phrase.mask.shape == (30, 40) and phrase.mask.dtype == bool
        assert phrase.mask.any() and not phrase.mask.all()
        x0, y0, x1, y1 = phrase.box
        assert phrase.mask[y0:y1, x0:x1].sum() == phrase.mask.sum()
        for edge in (phrase.mask[y0, :], phrase.mask[y1 - 1, :], phrase.mask[:, x0], phrase.mask[:, x1 - 1]):
            assert edge.any()
        assert 0.5 < phrase.score <= 1
    assert (answer.phrases[0].mask != answer.phrases[1].mask).any()


def test_score_is_the_mean_probability_inside_and_an_empty_mask_has_no_box(glamm, picture, says, monkeypatch):
    says("<p> the sea </p> [SEG] [SEG]")
    logits = torch.full((2, 30, 40), -3.0)
    logits[0, 10:20, 5:15] = 2.0
    one_by_one = iter(logits[:, None])

    def next_mask(low_res, size):
        own = next(one_by_one)
        return own > 0, own

    monkeypatch.setattr(glamm.processor, "post_process_masks", next_mask)
    first, second = glamm.ask(picture, "What is this?").phrases
    assert first.box == (5, 10, 15, 20) and first.score == pytest.approx(1 / (1 + np.exp(-2)))
    assert second.text == "" and second.span is None and second.box is None and second.score == 0.0


def test_masks_are_those_of_a_whole_pass_over_the_same_words(glamm, picture, says):
    """Cached generation against `teacher_force`, which reads the finished conversation in one go."""
    says(GROUNDED)
    answer = glamm.ask(picture, "What is this?")
    forced = glamm.teacher_force(picture, [("What is this?", answer.text)])
    assert len(forced) == 2
    for phrase, mask in zip(answer.phrases, forced, strict=True):
        assert mask.shape == (30, 40) and (mask != phrase.mask).mean() < 0.005
    assert glamm.teacher_force(picture, [("What is this?", "the sea.")]) == []
    turns = [("What is this?", "It is [SEG]."), ("And this?", "[SEG] [SEG]")]
    assert len(glamm.teacher_force(picture, turns)) == 3


@pytest.mark.parametrize("conversation", ["abc", None, ["ab"], [("What?",)], [("What?", None)], [[1, 2, 3]]], ids=repr)
def test_a_conversation_of_another_form_is_refused(glamm, picture, conversation):
    with pytest.raises(ValueError, match=r"conversation(\[0\])? is .*question, answer text"):
        glamm.teacher_force(picture, conversation)


def test_batch_answers_equal_single_answers(glamm, picture, monkeypatch):
    monkeypatch.setattr(glamm, "max_new_tokens", 12)
    other = np.random.default_rng(6).integers(0, 256, (50, 20, 3), dtype=np.uint8)
    requests = [
        Request(picture, "What is this?"),
        Request(other, "And this over the sea?", [[2, 3, 18, 40]]),
        Request(picture, "Describe <bbox> with <bbox>.", [[0, 0, 10, 10], [5, 5, 40, 30]]),
        Request(other, "And this?", None, [("What is this?", "<p> a red kite </p> [SEG].")]),
    ]
    together = glamm.answer_batch(requests)
    for request, answer in zip(requests, together, strict=True):
        alone = glamm.answer_batch([request])[0]
        assert alone.text == answer.text and alone.notes == answer.notes
        assert answer.image.shape == np.asarray(request.image).shape
        for a, b in zip(alone.phrases, answer.phrases, strict=True):
            assert (a.text, a.span) == (b.text, b.span) and (a.mask != b.mask).mean() < 0.005
    assert len({a.text for a in together}) > 1
    assert glamm.answer_batch([]) == []


def test_rows_keep_their_own_masks_and_pictures(glamm, picture, says):
    other = np.zeros((50, 20, 3), np.uint8)
    says(GROUNDED, "It is the sea .", "[SEG]")
    requests = [Request(picture, "What is this?"), Request(other, "And?"), Request(other, "What?")]
    answers = glamm.answer_batch(requests)
    assert [len(a.phrases) for a in answers] == [2, 0, 1]
    assert answers[2].phrases[0].mask.shape == (50, 20)
    forced = glamm.teacher_force(other, [("What?", "[SEG]")])[0]
    assert (forced != answers[2].phrases[0].mask).mean() < 0.005


def test_all_kinds_of_pictures_can_be_asked_about(glamm, picture, says, tmp_path):
    says("the sea .")
    Image.fromarray(picture).save(tmp_path / "a.png")
    for image in (picture, Image.fromarray(picture), tmp_path / "a.png", picture[..., 0]):
        assert glamm.describe(image).image.shape == (30, 40, 3)
    assert glamm.describe(picture).question == glamm.wording.describe


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_boxes_are_appended_named_and_normalized(glamm, picture, says, prompts):
    says("a red kite")
    box, bbox = [[4, 3, 20, 24]], glamm.config.tokens.bbox
    answers = [
        glamm.ask(picture, "What is this?", boxes=box),
        glamm.ask(picture, "What is this? <bbox>", boxes=torch.tensor(box)),
        glamm.ask(picture, "What is this?", boxes=[0.1, 0.1, 0.5, 0.8], normalised=True),
    ]
    assert prompts[0] == prompts[1] == prompts[2] and prompts[0].count(bbox) == 1
    for answer in answers:
        np.testing.assert_allclose(answer.boxes, box, atol=1e-4)
    glamm.ask(picture, "What?", boxes=[[0, 0, 5, 5], [1, 1, 9, 9], [2, 2, 3, 3]])
    assert prompts[3].count(bbox) == 3
    glamm.ask(picture, "What?", boxes=[])
    assert prompts[4].count(bbox) == 0
    assert "<bbox>" not in answers[0].question


def test_a_box_changes_what_the_model_sees(glamm, picture):
    states = []
    for box in ([0, 0, 10, 10], [20, 10, 40, 30]):
        batch = glamm.processor([picture], [[("What is <bbox>?", "a red kite")]], [[box]])
        del batch["labels"]
        with torch.no_grad():
            states.append(glamm.model(**batch).last_hidden[0, -1])
    assert (states[0] - states[1]).abs().max() > 1e-3


def test_boxes_reaching_over_the_edge_are_cut(glamm, picture, says):
    says("the sea")
    answer = glamm.ask(picture, "What is this?", boxes=[[-5, -5, 100, 12]])
    assert answer.boxes.tolist() == [[0, 0, 40, 12]] and answer.boxes.dtype == np.float32


@pytest.mark.parametrize(
    ("text", "boxes", "words"),
    [
        ("What is <bbox> over <bbox>?", [[0, 0, 5, 5]], "names 2 <bbox> but 1 boxes were given"),
        ("What is <bbox>?", None, "names 1 <bbox> but 0 boxes"),
        ("What?", [[0, 0, float("nan"), 5]], "box 0 is .*expected finite"),
        ("What?", [[0, 0, float("inf"), 5]], "box 0 is .*expected finite"),
        ("What?", [[0, 0, 5, 5], [9, 0, 5, 5]], "box 1 is .*x0 < x1"),
        ("What?", [[0, 9, 5, 5]], "box 0 is .*y0 < y1"),
        ("What?", [[40, 0, 50, 5]], "box 0 lies outside the picture of 40 x 30"),
        ("What?", [[-9, 0, -1, 5]], "outside the picture"),
        ("What?", [[5, 5, 5, 9]], "box 0 is .*x0 < x1"),
        ("What?", [[1, 2, 3]], "boxes have shape"),
        ("What?", [[1, 2], [3, 4]], "boxes have shape"),
        ("What?", np.zeros((1, 2, 4)), "boxes have shape"),
        ("", None, "the question is empty"),
        (" \n", None, "the question is empty"),
        ("What?", "1 2 3 4", "boxes cannot be read as numbers"),
        ("What?", [[1, 2, 3, 4], [1, 2]], "boxes cannot be read as numbers"),
        ("What?", {"x0": 1}, "boxes cannot be read as numbers"),
        (None, None, "the question is empty"),
        (7, None, "the question is a int; expected text"),
    ],
)
def test_mistakes_in_a_question_are_named(glamm, picture, text, boxes, words):
    with pytest.raises(ValueError, match=words):
        glamm.ask(picture, text, boxes=boxes)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([0.5, 0.1, 0.2, 0.9], "box 0 is .*x0 < x1"),
        ([0.1, 0.1, float("nan"), 0.9], "expected finite"),
        ([4, 3, 20, 24], "box 0 is .4, 3, 20, 24.; normalized boxes are fractions .*leave normalised=True out"),
        ([-0.2, 0, 0.5, 0.5], "normalized boxes are fractions"),
    ],
)
def test_mistakes_in_fractions_are_named(glamm, picture, boxes, words):
    with pytest.raises(ValueError, match=words):
        glamm.ask(picture, "What?", boxes=boxes, normalised=True)


def test_fractions_given_as_pixels_are_noted(glamm, picture, says):
    says("the sea")
    notes = glamm.ask(picture, "What is this?", boxes=[[4, 3, 20, 24], [0, 0, 1, 1], [3, 3, 4, 4.5]]).notes
    assert notes == ["box 1 is not larger than a pixel; boxes in fractions need normalised=True"]


# --- words -----------------------------------------------------------------------------------------------------------


def test_typed_special_tokens_are_plain_text(glamm, picture, says, prompts):
    says("the sea .")
    typed = "What is [SEG] <image> <p> this </p> </s> <s> <im_start> <point> ?"
    answer = glamm.ask(picture, typed)
    clean = glamm.processor.encode([("What?", None)])[0]
    c = glamm.config.tokens
    for i in (c.seg, c.phrase_start, c.phrase_end, c.im_start, c.point, 1, 2, IMAGE_TOKEN_INDEX):
        assert prompts[0].count(i) == clean.count(i)
    assert answer.question == typed and answer.phrases == []


def test_history_is_read_as_earlier_turns(glamm, picture, says, prompts):
    says("the sea .")
    first = glamm.ask(picture, "What is this?")
    history = [(first.question, GROUNDED), ("And <bbox>?", "[SEG] <bbox> </s> <image>")]
    answer = glamm.ask(picture, "And this?", history=history)
    assert answer.phrases == [] and answer.caption == "the sea."
    t, ids = glamm.processor.tokenizer, prompts[1]
    assert ids.count(glamm.config.tokens.seg) == 3 and ids.count(glamm.config.tokens.bbox) == 0
    assert ids.count(IMAGE_TOKEN_INDEX) == 1 and ids.count(t.eos_token_id) == 2
    closed = [("What is this?", GROUNDED)]
    assert ids[: len(glamm.processor.encode(closed)[0])] == glamm.processor.encode(closed)[0]


@pytest.mark.parametrize("history", [["What?"], [("What?",)], [("a", None)], ["ab"]])
def test_a_history_of_another_form_is_refused(glamm, picture, history):
    with pytest.raises(ValueError, match=r"history\[0\] is .*expected a pair"):
        glamm.ask(picture, "What?", history=history)


def test_the_model_reads_its_own_answer_as_it_wrote_it(glamm):
    """A follow-up turn must find the same ids that were generated, or masks of one conversation would drift."""
    t = glamm.processor.tokenizer
    ids = t(GROUNDED + " Zeppelin 42 , kites", add_special_tokens=False).input_ids
    assert t(glamm.processor.decode(ids), add_special_tokens=False).input_ids == ids


def test_notes_tell_unknown_words_cut_answers_and_broken_tags(glamm, picture, says):
    says("<p> the sea")
    answer = glamm.ask(picture, "What is this zeppelin over the Alps <bbox>?", boxes=[[0, 0, 9, 9]])
    assert answer.notes == ["the model was never taught the words: zeppelin, Alps", "the last phrase was not closed"]
    says("the sea over " * 20, end=False)
    [note] = glamm.ask(picture, "What is this?").notes
    assert "16 tokens" in note and "max_new_tokens" in note
    says("the sea . " * 5)  # sixteen tokens, the last of them the end
    assert glamm.ask(picture, "What is this?").notes == []


def test_only_the_row_that_was_cut_says_so(glamm, picture, says):
    says("the sea over " * 20, "the sea .")
    answers = glamm.answer_batch([Request(picture, "What?"), Request(picture, "What is this?")])
    assert [len(a.notes) for a in answers] == [1, 0]
    assert answers[1].caption == "the sea."


@pytest.mark.parametrize("state", ["before", "at"])
def test_there_is_a_mask_for_every_phrase_even_where_the_answer_is_cut(glamm, picture, says, monkeypatch, state):
    monkeypatch.setattr(glamm.config, "seg_state", state)
    for cut in range(1, 13):
        says(GROUNDED)
        answer = glamm.ask(picture, "What is this?", max_new_tokens=cut)
        written = answer.text.count("[SEG]")
        assert len(answer.phrases) == written
        for phrase in answer.phrases:
            assert phrase.mask.shape == (30, 40)
        record = answer.to_dict()
        assert len(record["phrases"]) == len(record["pred_masks"]) == len(record["scores"]) == len(answer.phrases)


# --- memory, records, loading ----------------------------------------------------------------------------------------


def test_an_image_is_encoded_once_for_several_questions(glamm, picture, says, monkeypatch):
    says("the sea .")
    counts, encode = [], glamm.model.encode_images
    monkeypatch.setattr(glamm.model, "encode_images", lambda a, b=None: counts.append(len(a)) or encode(a, b))
    monkeypatch.setattr(glamm, "_memory", FeatureMemory())
    glamm.ask(picture, "What is this?")
    glamm.ask(picture.copy(), "And?")
    glamm.teacher_force(picture, [("What?", "[SEG]")])
    assert counts == [1]
    changed = picture.copy()
    changed[0, 0, 0] ^= 1
    glamm.ask(picture.reshape(40, 30, 3), "What?")  # the same bytes, another picture
    glamm.ask(changed, "What?")
    assert counts == [1, 1, 1]
    glamm.answer_batch([Request(picture, "What?"), Request(changed, "And?"), Request(picture, "And this?")])
    assert counts == [1, 1, 1], "both are known"


def test_remembered_features_give_the_same_answer(glamm, picture, says, monkeypatch):
    says(GROUNDED)
    monkeypatch.setattr(glamm, "_memory", FeatureMemory())
    first, second = (glamm.ask(picture, "What is this?") for _ in range(2))
    for a, b in zip(first.phrases, second.phrases, strict=True):
        np.testing.assert_array_equal(a.mask, b.mask)


def test_the_record_holds_the_masks(glamm, picture, says):
    says(GROUNDED)
    answer = glamm.ask(picture, "What is this?")
    record = json.loads(json.dumps(answer.to_dict("img_1")))
    assert record["image_id"] == "img_1" and record["caption"] == answer.caption
    assert record["phrases"] == ["a red kite", "the sea"]
    for rle, phrase, score in zip(record["pred_masks"], answer.phrases, record["scores"], strict=True):
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), phrase.mask)
        assert score == pytest.approx(phrase.score, abs=1e-4)
    assert GroundedAnswer("", "", []).to_dict()["pred_masks"] == []


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_saved_assistant_is_loaded_in_any_type(glamm, picture, tmp_path, dtype):
    save_model(tmp_path / "m", glamm.model, glamm.processor)
    back = load(tmp_path / "m", device="cpu", dtype=dtype)
    assert back.model.dtype == (torch.bfloat16 if dtype else torch.float32) and not back.model.training
    answer = back.ask(picture, "What is <bbox>?", boxes=[[0, 0, 10, 10]], max_new_tokens=4)
    if dtype is None:
        own = glamm.ask(picture, "What is <bbox>?", boxes=[[0, 0, 10, 10]], max_new_tokens=4)
        assert answer.text == own.text
    masks = back.teacher_force(picture, [("What is this?", GROUNDED)])
    own = glamm.teacher_force(picture, [("What is this?", GROUNDED)])
    for a, b in zip(masks, own, strict=True):
        assert (a != b).mean() < (0.1 if dtype else 0.005)


def test_a_long_history_is_cut_at_its_start_and_noted(glamm, picture, says, prompts, monkeypatch):
    says("the sea .")
    monkeypatch.setattr(glamm.processor.config.prompt, "max_length", 250)
    history = [("What is in the picture ?", "A red balloon . " * 10)] * 12
    answer = glamm.ask(picture, "Where is it ?", history=history)
    assert any("history was too long" in note for note in answer.notes)
    room = 250 - glamm.config.image_tokens + 1
    turn = len(glamm.processor.encode(history[:1])[0])
    assert room - turn < len(prompts[0]) <= room  # as many turns as fit, and no more


def test_a_question_that_no_row_holds_is_refused(glamm, picture, monkeypatch):
    monkeypatch.setattr(glamm.processor.config.prompt, "max_length", 250)
    with pytest.raises(ValueError, match="reads at most"):
        glamm.ask(picture, "What is in the picture ? " * 200)
