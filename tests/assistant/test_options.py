"""Length, drawing, streaming and details of an answer, and several pictures in one call."""

import copy
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from scripted import GROUNDED
from transformers import TextIteratorStreamer, TextStreamer

from glamm_mini.assistant.assistant import Request
from glamm_mini.assistant.generation import MAX_NEW_TOKENS, TokenChooser

BOX = [4, 3, 20, 24]


def calls(glamm, image):
    """Every call of an assistant about `image`, as functions of its options."""
    return {
        "ask": lambda **how: glamm.ask(image, "What is this?", **how),
        "describe": lambda **how: glamm.describe(image, **how),
        "segment": lambda **how: glamm.segment(image, "the sea", **how),
        "describe_region": lambda **how: glamm.describe_region(image, BOX, **how),
        "caption": lambda **how: glamm.caption(image, **how),
        "ground": lambda **how: glamm.ground(image, "a red kite over the sea.", **how),
        "say": lambda **how: glamm.chat(image).say("What is this?", **how),
        "answer_batch": lambda **how: glamm.answer_batch([Request(image, "What is this?")], **how)[0],
    }


def test_every_call_takes_every_option(glamm, picture, says):
    for name, call in calls(glamm, picture).items():
        says(GROUNDED)
        heard = []
        streamer = Heard(glamm, heard)
        answer = call(max_new_tokens=7, temperature=0.5, seed=3, streamer=streamer, details=True)
        assert len(answer.token_ids) == 7 and any("7 tokens" in note for note in answer.notes), name
        assert "".join(heard).strip() == answer.text, name
        assert answer.token_scores.shape == (7,) and answer.phrases[0].logits.shape == (30, 40), name


class Heard(TextStreamer):
    """Keeps what a TextStreamer would print."""

    def __init__(self, glamm, heard: list, **how):
        super().__init__(glamm.processor.tokenizer, **how)
        self.heard, self.ends = heard, 0

    def on_finalized_text(self, text, stream_end=False):
        self.heard.append(text)
        self.ends += stream_end


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_new_tokens", value) for value in (0, -1, 1.5, "8", True, 2**70)),
        *(("temperature", value) for value in (-0.1, float("nan"), float("inf"), "0.5", True, [1])),
        *(("seed", value) for value in (-1, 0.5, "1", False, 2**70)),
        *(("streamer", value) for value in (5, "print", [])),
        *(("details", value) for value in (1, "yes")),
    ],
)
def test_a_bad_value_is_one_error_that_names_the_option(glamm, picture, says, option, value):
    says("the sea")
    with pytest.raises(ValueError, match=option) as error:
        glamm.describe(picture, **{option: value})
    assert repr(value)[:10] in str(error.value)


def test_an_unknown_option_is_named_beside_the_known_ones(glamm, picture):
    with pytest.raises(TypeError, match="max_tokens.*max_new_tokens"):
        glamm.describe(picture, max_tokens=5)
    assert glamm.answer_batch([]) == []


def test_the_length_is_the_released_evaluations_in_official_mode(glamm, picture, says, monkeypatch):
    says("the sea over " * 400, end=False)
    monkeypatch.setattr(glamm, "max_new_tokens", None)
    assert MAX_NEW_TOKENS == {"fixed": 256, "official": 512}
    for mode, length in (("fixed", 20), ("official", 30)):
        monkeypatch.setattr(glamm.config, "mode", mode)
        monkeypatch.setitem(MAX_NEW_TOKENS, mode, length)
        assert len(glamm.caption(picture, details=True).token_ids) == length
        assert len(glamm.caption(picture, max_new_tokens=np.int64(5), details=True).token_ids) == 5


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_draws_are_repeated_by_their_seed_and_touch_no_other(glamm, picture):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    how = {"temperature": 1.5, "max_new_tokens": 12}
    drawn = [glamm.ask(picture, "What is this?", seed=seed, **how).text for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) == 3
    assert len({glamm.ask(picture, "What is this?", **how).text for _ in range(3)}) > 1, "no seed, no repetition"
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert glamm.ask(picture, "What is this?", seed=1, **how).text == drawn[0]
    greedy = {
        glamm.ask(picture, "What?", temperature=t, max_new_tokens=12, seed=s).text for t in (None, 0) for s in (1, 2)
    }
    assert len(greedy) == 1


def test_answers_of_a_batch_are_drawn_apart(glamm, picture):
    how = {"temperature": 1.5, "max_new_tokens": 12}
    together = glamm.ask([picture, picture, picture], "What is this?", seed=4, **how)
    alone = [glamm.ask(picture, "What is this?", seed=seed, **how) for seed in (4, 5, 6)]
    assert [a.text for a in together] == [a.text for a in alone] and len({a.text for a in alone}) == 3


def test_what_is_drawn_follows_the_probabilities_at_the_temperature():
    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).expand(4000, 4)
    for temperature in (0.5, 1.0, 2.0):
        chooser = TokenChooser(4000, temperature, 11)
        drawn = chooser(torch.zeros(4000, 0, dtype=torch.long), scores).argmax(1)
        share = torch.bincount(drawn, minlength=4) / 4000
        assert (share - (scores[0] / temperature).softmax(0)).abs().max() < 0.03
        assert share[3] == 0, "a forbidden token is never drawn"


# --- streaming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_prompt", [False, True])
def test_a_streamer_gets_the_answer_and_its_tags_alone(glamm, picture, says, skip_prompt):
    says(GROUNDED)
    heard = []
    streamer = Heard(glamm, heard, skip_prompt=skip_prompt)
    answer = glamm.ask(picture, "What is this?", streamer=streamer)
    assert "".join(heard) == answer.text == GROUNDED and streamer.ends == 1
    assert len([piece for piece in heard if piece]) > 3, "piece by piece"
    with pytest.raises(ValueError, match="streamer.*one"):
        glamm.ask([picture, picture], "What?", streamer=streamer)


def test_a_stream_ends_once_even_where_a_mask_fails(glamm, picture, says, monkeypatch):
    says(GROUNDED)
    monkeypatch.setattr(glamm, "_answer", lambda *rest: (_ for _ in ()).throw(ValueError("a mask")))
    streamer = Heard(glamm, [])
    with pytest.raises(ValueError, match="a mask"):
        glamm.ask(picture, "What?", streamer=streamer)
    assert streamer.ends == 1


def test_a_reader_of_a_stream_never_waits_for_an_answer_that_failed(glamm, picture, says):
    says(GROUNDED)
    for image, text in ((None, "What?"), (picture, "")):
        streamer = TextIteratorStreamer(glamm.processor.tokenizer, timeout=5)
        with pytest.raises(ValueError):
            glamm.ask(image, text, streamer=streamer)
        assert "".join(streamer) == ""
    streamer = TextIteratorStreamer(glamm.processor.tokenizer, timeout=20)
    thread = threading.Thread(target=glamm.ask, args=(picture, "What?"), kwargs={"streamer": streamer})
    thread.start()
    assert "".join(streamer) == GROUNDED
    thread.join()


def test_a_streamer_that_asks_its_own_chat_gets_an_error(glamm, picture, says):
    says(GROUNDED)
    chat, streamer = glamm.chat(picture), Heard(glamm, [])
    streamer.on_finalized_text = lambda text, stream_end=False: chat.say("And now?")
    with pytest.raises(RuntimeError, match="chat is answering"):
        chat.say("What is this?", streamer=streamer)
    assert not chat.turns
    says(GROUNDED)
    assert chat.say("What is this?").text == GROUNDED and len(chat.turns) == 1


# --- tags ------------------------------------------------------------------------------------------------------------


def test_a_tag_that_is_spelled_in_letters_is_noted(glamm, picture, says, monkeypatch):
    """Pieces of a big tokenizer can spell it; the model has made no mask for it."""
    says(GROUNDED)
    assert not glamm.ask(picture, "What?").notes
    decode = glamm.processor.decode
    monkeypatch.setattr(glamm.processor, "decode", lambda ids: f"[SEG] {decode(ids)}")
    says(GROUNDED)
    assert any("[SEG] in letters" in note for note in glamm.ask(picture, "What?").notes)


def test_a_tag_in_a_question_has_no_mask_of_its_own(glamm, picture):
    forced = [glamm.teacher_force(picture, [(q, "It is [SEG] .")]) for q in ("Where [SEG]?", "Where?")]
    assert [len(masks) for masks in forced] == [1, 1]
    with pytest.raises(ValueError, match="bbox"):
        glamm.teacher_force(picture, [("Where is <bbox>?", "It is [SEG] .")])


def test_expressions_may_stand_in_an_array(glamm, picture):
    words = ["the sea", "The sky."]
    asked = [glamm.segment([picture, picture], given, max_new_tokens=1) for given in (words, np.array(words))]
    assert asked[0] == asked[1] and [answer.question for answer in asked[0]] == ["Segment the sea.", "Segment the sky."]


# --- details, comparing ----------------------------------------------------------------------------------------------


def test_details_hold_what_the_answer_was_made_of(glamm, picture):
    plain = glamm.ask(picture, "What is this?", max_new_tokens=12)
    full = glamm.ask(picture, "What is this?", max_new_tokens=12, details=True)
    assert plain.token_ids is None and plain.token_scores is None and full.text == plain.text
    assert glamm.processor.decode(full.token_ids) == full.text
    prompt = glamm.processor.prompts([[("What is this?", None)]])["input_ids"]
    ids = torch.cat([prompt, torch.tensor(full.token_ids)[None]], 1)
    with torch.no_grad():
        logits = glamm.model(ids, image_features=glamm.encode(picture)).logits[0]
    own = logits[-len(full.token_ids) - 1 : -1].log_softmax(-1)
    expected = own.gather(1, torch.tensor(full.token_ids)[:, None])[:, 0]
    np.testing.assert_allclose(full.token_scores, expected, atol=1e-3)


def test_mask_logits_belong_to_the_masks(glamm, picture, says):
    says(GROUNDED, "the sea [SEG]")
    first, second = glamm.ask([picture, picture[:20]], "What is this?", details=True)
    assert [p.logits.shape for p in (*first.phrases, *second.phrases)] == [(30, 40)] * 2 + [(20, 40)]
    for phrase in (*first.phrases, *second.phrases):
        assert phrase.logits.dtype == np.float32 and ((phrase.logits > 0) == phrase.mask).all()
    eos = glamm.processor.tokenizer.eos_token_id
    assert first.token_ids[-1] == eos and second.token_ids[-1] == eos and len(first.token_ids) > len(second.token_ids)
    assert len(second.token_scores) == len(second.token_ids) and (second.token_scores <= 0).all()
    assert glamm.ask(picture, "What is this?").phrases[0].logits is None


def test_answers_can_be_compared_and_copied(glamm, picture, says):
    says(GROUNDED)
    answer = glamm.ask(picture, "What is this?", boxes=BOX, details=True)
    other = copy.deepcopy(answer)
    assert answer == other and answer.phrases[0] == other.phrases[0] and not answer != other
    other.phrases[1].mask[0, 0] ^= True
    assert answer != other and answer.phrases[0] == other.phrases[0] != other.phrases[1]
    for name, value in (("text", ""), ("boxes", None), ("image", None), ("token_scores", None), ("notes", ["x"])):
        changed = copy.deepcopy(answer)
        setattr(changed, name, value)
        assert answer != changed, name
    assert answer != "an answer" and answer in [other, answer]
    with pytest.raises(TypeError):
        hash(answer)


# --- several pictures ------------------------------------------------------------------------------------------------


def test_a_list_of_pictures_gives_a_list_of_answers(glamm, picture, says, tmp_path):
    says(GROUNDED)
    Image.fromarray(picture).save(tmp_path / "a.png")
    other = np.zeros((50, 20, 3), np.uint8)
    given = [picture, str(tmp_path / "a.png"), Image.fromarray(other)]
    for name, call in calls(glamm, given).items():
        if name not in ("say", "answer_batch", "describe_region"):
            answers = call()
            assert [a.image.shape[:2] for a in answers] == [(30, 40), (30, 40), (50, 20)], name
            assert [p.mask.shape for a in answers for p in a.phrases] == [(30, 40)] * 4 + [(50, 20)] * 2, name
    regions = glamm.describe_region(given, [BOX, [BOX], [1, 1, 9, 9]])
    assert [a.boxes.tolist() for a in regions] == [[BOX], [BOX], [[1, 1, 9, 9]]]
    assert len(glamm.describe(tuple(given))) == 3 and glamm.describe([]) == []
    assert [a.image.shape for a in glamm.describe(np.stack([picture, picture]))] == [(30, 40, 3)] * 2
    assert len(glamm.describe([picture])) == 1


def test_each_picture_may_have_words_of_its_own(glamm, picture, says):
    says(GROUNDED)
    two = [picture, picture[:20]]
    assert [a.question for a in glamm.segment(two, ["the sea", "The kite."])] == [
        "Segment the sea.",
        "Segment the kite.",
    ]
    grounded = glamm.ground(two, ["a red kite over the sea.", "a sea."])
    assert ["word by word" in " ".join(a.notes) for a in grounded] == [False, True]
    asked = glamm.ask(
        two, ["What is <bbox>?", "And this?"], boxes=[BOX, None], history=[None, [("What?", "the sea .")]]
    )
    assert [a.question for a in asked] == ["What is <bbox>?", "And this?"] and asked[1].boxes is None
    for wrong in ({"text": ["a"]}, {"boxes": [BOX]}, {"history": [None]}):
        with pytest.raises(ValueError, match="2 pictures"):
            glamm.ask(two, **{"text": "What?", **wrong})


def test_a_mistake_in_one_of_several_pictures_says_which(glamm, picture, tmp_path):
    with pytest.raises(FileNotFoundError, match="picture 1 of 2.*none.png"):
        glamm.describe([picture, tmp_path / "none.png"])
    with pytest.raises(ValueError, match="picture 0 of 2"):
        glamm.describe([np.zeros((0, 0, 3), np.uint8), picture])
    for wrong in ("abc", [(picture, "What?")], [None]):
        with pytest.raises(ValueError, match=r"requests( is a str|.0.)"):
            glamm.answer_batch(wrong)


def test_a_picture_is_read_once_and_a_prompt_tokenized_once(glamm, picture, says, tmp_path, monkeypatch):
    says("the sea .")
    Image.fromarray(picture).save(tmp_path / "a.png")
    opened, tokenized, real = [], [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    encode = type(glamm.processor)._encode
    monkeypatch.setattr(type(glamm.processor), "_encode", lambda self, p: tokenized.append(p.text) or encode(self, p))
    path = str(tmp_path / "a.png")
    glamm.answer_batch([Request(path, "What is this?"), Request(tmp_path / "a.png", "And this?")])
    assert len(opened) == 1
    assert (
        sum(len(text) for text in tokenized) < 3 * len("USER: <im_start><image><im_end>\nWhat is this? ASSISTANT:") * 2
    )


@pytest.mark.parametrize("history", [5, "ab", np.array([["a", "b"]]), {"a": "b"}])
def test_a_history_that_is_not_a_list_is_refused(glamm, picture, history):
    with pytest.raises(ValueError, match="history"):
        glamm.ask(picture, "What?", history=history)


@pytest.mark.parametrize("text", ["what \udcff is", "\ud800"])
def test_half_a_letter_is_refused_by_name(glamm, picture, text):
    for call in (
        lambda: glamm.ask(picture, text),
        lambda: glamm.segment(picture, text),
        lambda: glamm.ask(picture, "What?", history=[(text, "x")]),
        lambda: glamm.ask(picture, "What?", history=[("x", text)]),
    ):
        with pytest.raises(ValueError, match="half") as error:
            call()
        assert not isinstance(error.value, UnicodeError)
