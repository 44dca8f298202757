"""Calls that cannot work, through the public names: each ends in one error that names what is wrong."""

import copy
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import small_model
from transformers import GenerationConfig, GPT2Config, TextStreamer

import glamm_mini
from glamm_mini import GlammConfig, GlammForConditionalGeneration, GlammProcessor, Request
from glamm_mini.assistant.assistant import Assistant
from glamm_mini.checkpoints.lora import add_lora, load_lora, save_lora
from glamm_mini.checkpoints.save import save_model

BAD = (ValueError, FileNotFoundError)
NAN = float("nan")


@pytest.fixture(scope="module")
def w(tmp_path_factory):
    """What all calls share: the tiny model, one picture, one prompt, one batch to learn from."""
    glamm = glamm_mini.load("tiny", device="cpu")
    pic = np.full((48, 64, 3), 90, np.uint8)
    p, t = glamm.processor, tmp_path_factory.mktemp("bad")
    (t / "file").write_text("mine")
    prompt = {**p.prompts([[("What is this?", None)]]), **p.images([pic]), "max_new_tokens": 2}
    batch = p([pic], [[("What?", "<p> sea </p> [SEG]")]], masks=[np.ones((1, 48, 64), bool)])
    return SimpleNamespace(g=glamm, m=glamm.model, p=p, pic=pic, t=t, prompt=prompt, batch=dict(batch))


def check(call, named: str, kinds=BAD) -> None:
    with pytest.raises(kinds) as error:
        call()
    assert named in str(error.value), str(error.value)


# --- questions --------------------------------------------------------------------------------------------------------

PICTURES = {
    "a number": (5, "int"),
    "a table": ({}, "dict"),
    "a set": ({"a"}, "set"),
    "data": (b"abc", "given data"),
    "no data": (b"", "given data"),
    "a closed file": (BytesIO(b"a"), "closed"),
    "0 dimensions": (np.array(3, np.uint8), "()"),
    "1 dimension": (np.zeros(9, np.uint8), "(9,)"),
    "2 channels": (np.zeros((4, 5, 2), np.uint8), "(4, 5, 2)"),
    "channels first": (np.zeros((3, 40, 50), np.uint8), "(3, 40, 50)"),
    "no pixel": (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
    "truth values": (np.zeros((4, 4), bool), "bool"),
    "half": (np.zeros((4, 4, 3), np.float16), "float16"),
    "sixteen bits in color": (np.zeros((4, 4, 3), np.uint16), "uint16"),
    "objects": (np.array([None]), "object"),
    "a sparse tensor": (torch.zeros(4, 4, 3, dtype=torch.uint8).to_sparse(), "sparse"),
    "a tensor without memory": (torch.zeros(4, 4, 3, dtype=torch.uint8, device="meta"), "meta"),
    "a tensor of fractions": (torch.rand(4, 4, 3), "float32"),
    "a letter of zero": ("a\0b.png", "a\0b.png"),
    "an address": ("https://example.org/a.png", "download"),
    "a long name": ("a" * 5000, "aaa"),
    "a picture in two lists": ([[np.zeros((4, 4, 3), np.uint8)]], "list"),
    "hidden pixels": (np.ma.masked_array(np.full((4, 4, 3), 90, np.uint8), np.eye(4)[..., None] * np.ones(3)), "mask"),
    "no number": (Image.fromarray(np.full((4, 4), NAN, np.float32)), "finite"),
    "below black": (Image.fromarray(np.full((4, 4), -5, np.int32)), "at least 0"),
    "one of two": ([np.zeros((4, 4), np.uint8), None], "picture 1 of 2"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_that_is_none(w, name):
    picture, named = PICTURES[name]
    if isinstance(picture, BytesIO):
        picture.close()
    check(lambda: w.g.describe(picture), named)


def test_a_file_that_claims_a_huge_picture_is_not_read(w):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    check(lambda: w.g.describe(data), "pixels")


BOXES = {
    "nan": ((0, 0, NAN, 5), "nan"),
    "endless": ((0, 0, float("inf"), 5), "inf"),
    "swapped": ((9, 9, 3, 3), "box 0"),
    "outside": ((100, 0, 200, 9), "outside"),
    "words": ("0 0 5 5", "0 0 5 5"),
    "three": ((1, 2, 3), "(3,)"),
    "five": ((1, 2, 3, 4, 5), "(5,)"),
    "ragged": ([(1, 2, 3, 4), (1, 2)], "numbers"),
    "a table": ({"x": 1}, "dict"),
    "a gap": ((None, 0, 5, 5), "nan"),
    "complex": ((0, 0, 1j, 1j), "complex"),
    "one number": (3, "()"),
    "too large a number": ((0, 0, 10**400, 5), "numbers"),
    "dates": (np.array([0, 0, 5, 5], "M8[s]"), "datetime64"),
    "spans of time": (np.array([0, 0, 5, 5], "m8[s]"), "timedelta64"),
    "columns": ([[0], [0], [5], [5]], "(4, 1)"),
    "a box too many": ([(0, 0, 5, 5), (1, 1, 6, 6)], "2"),
    "none": (None, "0"),
    "without memory": (torch.zeros(4, device="meta"), "meta"),
    "numbers in words": (("0", "0", "5", "5"), "'5'"),
    "truth values": ((False, False, True, True), "bool"),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_that_is_none(w, name):
    box, named = BOXES[name]
    check(lambda: w.g.describe_region(w.pic, box), named)
    check(lambda: w.g.ask(w.pic, "What is <bbox>?", boxes=box), named)


@pytest.mark.parametrize("value", ["False", "yes", None, 2, [True]])
def test_whether_boxes_are_fractions_is_true_or_false(w, value):
    check(lambda: w.g.describe_region(w.pic, (0, 0, 0.5, 0.5), normalised=value), "normalised")


QUESTIONS = {
    "none": (None, "question"),
    "empty": ("", "question"),
    "a number": (5, "int"),
    "data": (b"what", "bytes"),
    "half a letter": ("\udcff", "\\udcff"),
    "what no one sees": ("\x01\x02", "question"),
    "too long": ("what " * 5000, "tokens"),
    "a box that is not given": ("<bbox>?", "<bbox>"),
    "a list for one picture": (["what"], "list"),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_that_is_none(w, name):
    question, named = QUESTIONS[name]
    chat = w.g.chat(w.pic)
    check(lambda: w.g.ask(w.pic, question), named)
    check(lambda: chat.say(question), named)
    assert chat.turns == []


@pytest.mark.parametrize("words", [None, "", " ", "?!.", 5, b"sea"])
def test_an_expression_that_is_none(w, words):
    check(lambda: w.g.segment(w.pic, words), "expression")


HISTORIES = {
    "words": ("hi", "str"),
    "a table": ({"a": "b"}, "dict"),
    "one word": (["hi"], "history[0]"),
    "one pair": (("a", "b"), "history[0]"),
    "messages": ([{"role": "user", "content": "x"}], "history[0]"),
    "an open turn": ([("a", "b"), ("a", None)], "history[1]"),
    "numbers": ([(1, 2)], "history[0]"),
    "a swapped box": ([("<bbox>", "b", (9, 9, 1, 1))], "history[0]"),
    "words as boxes": ([("a", "b", "c")], "history[0]"),
    "too few boxes": ([("<bbox> <bbox>", "b", [(0, 0, 5, 5)])], "history[0]"),
    "one thing after another": (iter([]), "iterator"),
}


@pytest.mark.parametrize("name", HISTORIES)
def test_a_history_that_is_none(w, name):
    history, named = HISTORIES[name]
    check(lambda: w.g.ask(w.pic, "What?", history=history), named)


OPTIONS = [
    {"max_new_tokens": 0},
    {"max_new_tokens": "5"},
    {"max_new_tokens": 5.0},
    {"max_new_tokens": True},
    {"max_new_tokens": 2**70},
    {"temperature": -1},
    {"temperature": NAN},
    {"temperature": "1"},
    {"temperature": [0.5]},
    {"temperature": 1j},
    {"temperature": np.True_},
    {"temperature": torch.tensor(True)},
    {"seed": -1},
    {"seed": 0.5},
    {"seed": "1"},
    {"seed": 2**64},
    {"streamer": True},
    {"streamer": TextStreamer},
    {"streamer": SimpleNamespace(put=print, end=None)},
    {"details": 1},
    {"details": "yes"},
    {"num_beams": 3},
    {"do_sample": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_option_that_is_none(w, options):
    [name] = options
    check(lambda: w.g.describe(w.pic, **options), name, (*BAD, TypeError))


BATCHES = {
    "texts in a table": (lambda w: w.g.ask([w.pic] * 2, {"a": 1, "b": 2}), "texts"),
    "too few texts": (lambda w: w.g.ask([w.pic] * 2, ["a"]), "texts"),
    "boxes in words": (lambda w: w.g.ask([w.pic] * 4, "<bbox>", boxes="abcd"), "boxes"),
    "too few histories": (lambda w: w.g.ask([w.pic] * 2, "a", history=[[]]), "history"),
    "an empty one": (lambda w: w.g.segment([w.pic] * 2, ["the sea", ""]), "expression"),
    "a bad second box": (lambda w: w.g.describe_region([w.pic] * 2, [(0, 0, 5, 5), (9, 9, 1, 1)]), "question 1 of 2"),
    "nothing": (lambda w: w.g.answer_batch(None), "NoneType"),
    "one request": (lambda w: w.g.answer_batch(Request(w.pic, "a")), "Request"),
    "one after another": (lambda w: w.g.answer_batch(Request(w.pic, "a") for _ in "ab"), "generator"),
    "pairs": (lambda w: w.g.answer_batch([(w.pic, "a")]), "requests[0]"),
    "one streamer for two": (lambda w: w.g.describe([w.pic] * 2, streamer=TextStreamer(w.p.tokenizer)), "streamer"),
    "a chat about two": (lambda w: w.g.chat([w.pic] * 2), "list"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_that_is_none(w, name):
    call, named = BATCHES[name]
    check(lambda: call(w), named)


@pytest.mark.parametrize("turn", [("<bbox>?", "[SEG]"), ("What?", "sea " * 5000 + "[SEG]")], ids=["bbox", "long"])
def test_a_given_answer_that_cannot_be_read(w, turn):
    check(lambda: w.g.teacher_force(w.pic, [turn]), "conversation has")


@pytest.mark.parametrize("place", [None, 5, "", "a\0.png", "answer", "answer.svg", b"a.png", "folder.png"], ids=repr)
def test_a_place_where_no_answer_can_be_saved(w, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    answer = w.g.ask(w.pic, "What?", max_new_tokens=1)
    check(lambda: answer.save(place), "folder.png" if place == "folder.png" else "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


# --- the model and the processor --------------------------------------------------------------------------------------

GENERATE = {
    "no ids": (dict(input_ids=None), "input_ids"),
    "a list": (dict(input_ids=[[1]]), "input_ids"),
    "fractions": (dict(input_ids=torch.ones(1, 3)), "input_ids"),
    "attention of another shape": (dict(attention_mask=torch.ones(1, 3)), "attention_mask"),
    "another image": (dict(image_index=[5]), "image_index"),
    "small images": (dict(global_images=torch.zeros(1, 3, 5, 5)), "global images"),
    "boxes of one row": (dict(boxes=torch.zeros(1, 4)), "boxes"),
    "boxes in lists": (dict(boxes=[[0, 0, 1, 1]]), "boxes"),
    "no beams": (dict(num_beams=0), "num_beams"),
    "beams in words": (dict(num_beams="x"), "num_beams"),
    "tokens in words": (dict(max_new_tokens="x"), "max_new_tokens"),
    "settings in a table": (dict(generation_config={"num_beams": 2}), "generation_config"),
    "an unknown option": (dict(foo=1), "foo"),
    "look-up": (dict(prompt_lookup_num_tokens=3), "prompt_lookup"),
    "chunks": (dict(prefill_chunk_size=2), "prefill_chunk_size"),
    "an assistant": (dict(generation_config=GenerationConfig(penalty_alpha=0.6, top_k=4)), "penalty_alpha"),
    "a streamer of no kind": (dict(streamer=5), "streamer"),
    "a processor of no kind": (dict(logits_processor=[5]), "logits_processor"),
    "an end that is no word": (dict(forced_eos_token_id=10**6), "forced_eos_token_id"),
    "an end in words": (dict(eos_token_id="x"), "eos_token_id"),
    "ends in words": (dict(eos_token_id=[2, "x"]), "eos_token_id"),
    "an end in words, by config": (
        dict(max_new_tokens=None, generation_config=GenerationConfig(eos_token_id="x", max_new_tokens=2)),
        "eos_token_id",
    ),
    "padding in words": (dict(pad_token_id="x"), "pad_token_id"),
    "an id too large": (dict(input_ids=torch.tensor([[1, 10**6]]), attention_mask=None), "1000000"),
    "an id below 0": (dict(input_ids=torch.tensor([[1, -5]]), attention_mask=None), "-5"),
    "an image that is not given": (dict(global_images=None, grounding_images=None), "<image>"),
    "a size too many": (dict(original=[(48, 64)] * 2), "original"),
    "no pixel": (dict(resized=[(0, 0)]), "resized"),
    "more than the square": (dict(resized=[(48, 9999)]), "resized"),
    "half a pixel": (dict(original=[(48.5, 64)]), "original"),
    "one number": (dict(original=[48]), "original"),
    "no sizes": (dict(resized=3), "resized"),
}


@pytest.mark.parametrize("name", GENERATE)
def test_what_generate_cannot_do(w, name):
    given, named = GENERATE[name]
    check(lambda: w.m.generate(**w.prompt | given), named)


@pytest.mark.parametrize("name", ["global_images", "grounding_images", "attention_mask"])
def test_generate_answers_nothing_about_what_cannot_be_seen(w, name):
    value = w.prompt[name]
    broken = torch.zeros_like(value) if name == "attention_mask" else value.clone().index_fill_(3, torch.tensor(5), NAN)
    words = {"attention_mask": "attention_mask", "global_images": "not finite", "grounding_images": "grounding images"}
    check(lambda: w.m.generate(**w.prompt | {name: broken}), words[name])


FORWARD = {
    "labels of another shape": (lambda b: dict(labels=b["labels"][:, :-1]), "labels"),
    "segments of another shape": (lambda b: dict(segment_ids=torch.zeros(1, 3, dtype=torch.long)), "segment_ids"),
    "a mask too many": (lambda b: dict(masks=[torch.ones(2, 48, 64)]), "masks"),
    "masks of another size": (lambda b: dict(masks=[torch.ones(1, 4, 6)]), "masks"),
    "masks of nan": (lambda b: dict(masks=[torch.full((1, 48, 64), NAN)]), "masks"),
    "masks of 255": (lambda b: dict(masks=[torch.full((1, 48, 64), 255.0)]), "masks"),
    "masks below 0": (lambda b: dict(masks=[torch.full((1, 48, 64), -0.1)]), "masks"),
    "masks of NumPy": (lambda b: dict(masks=[np.ones((1, 48, 64), bool)]), "ndarray"),
    "masks of bytes": (lambda b: dict(masks=[torch.full((1, 48, 64), 255, dtype=torch.uint8)]), "masks"),
    "masks that are a number": (lambda b: dict(masks=5), "masks"),
    "pictures of nan": (lambda b: dict(global_images=b["global_images"] * NAN), "global images"),
    "grounding of nan": (lambda b: dict(grounding_images=b["grounding_images"] * NAN), "grounding images"),
    "pictures of bytes": (lambda b: dict(global_images=b["global_images"].to(torch.uint8)), "uint8"),
    "pictures in a list": (lambda b: dict(global_images=[1]), "list"),
    "grounding of two": (lambda b: dict(grounding_images=torch.cat([b["grounding_images"]] * 2)), "grounding images"),
    "half an image": (lambda b: dict(image_index=[0.7]), "image_index"),
    "an image below none": (lambda b: dict(image_index=[-2]), "image_index"),
    "attention to nothing": (lambda b: dict(attention_mask=torch.zeros_like(b["input_ids"])), "attention_mask"),
    "attention below 0": (lambda b: dict(attention_mask=-torch.ones_like(b["input_ids"])), "attention_mask"),
    "attention of nan": (lambda b: dict(attention_mask=b["input_ids"] * NAN), "attention_mask"),
    "labels in a list": (lambda b: dict(labels=[1]), "labels"),
    "segments that fall": (lambda b: dict(segment_ids=-torch.ones_like(b["input_ids"]).cumsum(1)), "segment_ids"),
    "segments of fractions": (lambda b: dict(segment_ids=b["input_ids"] * 0.5), "segment_ids"),
    "ids without memory": (lambda b: dict(input_ids=b["input_ids"].to("meta")), "input_ids"),
    "features that are a number": (lambda b: dict(image_features=5), "image_features"),
    "sizes of truth": (lambda b: dict(original=[(True, True)]), "original"),
    "a side without end": (lambda b: dict(original=[(10**9, 64)]), "original"),
    "no words": (lambda b: dict(normalizers={"tokens": 0}), "tokens"),
    "a count of truth": (lambda b: dict(normalizers={"tokens": True}), "tokens"),
    "two counts": (lambda b: dict(normalizers={"tokens": torch.ones(2)}), "tokens"),
    "an id too large": (lambda b: dict(input_ids=b["input_ids"] + 10**6), "input_ids"),
    "a label too large": (lambda b: dict(labels=b["labels"] + 10**6), "labels"),
    "sizes of two": (lambda b: dict(resized=b["resized"] * 2), "resized"),
    "less than no words": (lambda b: dict(normalizers={"tokens": -5}), "-5"),
    "a count of nan": (lambda b: dict(normalizers={"masks": NAN}), "nan"),
    "a misspelled count": (lambda b: dict(normalizers={"token": 5}), "'token'"),
    "counts that are a number": (lambda b: dict(normalizers=3), "3"),
    "a count in words": (lambda b: dict(normalizers={"tokens": "5"}), "'5'"),
    "two images in a row": (
        lambda b: dict.fromkeys(()) | {k: torch.cat([b[k]] * 2, 1) for k in ("input_ids", "labels", "attention_mask")},
        "<image>",
    ),
}


@pytest.mark.parametrize("name", FORWARD)
def test_what_the_model_cannot_learn_from(w, name):
    change, named = FORWARD[name]
    check(lambda: w.m(**w.batch | change(w.batch)), named)


BAD_BOXES = {
    "nan": torch.full((1, 4), NAN),
    "inf": torch.tensor([[0, 0, float("inf"), 1]]),
    "reversed": torch.tensor([[0.5, 0.5, 0.1, 0.1]]),
    "negative": torch.tensor([[-0.5, 0, 0.5, 1]]),
    "pixels": torch.tensor([[0.0, 0, 40, 40]]),
    "without size": torch.tensor([[0.5, 0.5, 0.5, 0.5]]),
    "truth": torch.tensor([[False, False, True, True]]),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_boxes_that_lie_in_no_picture_do_not_reach_the_model(w, name):
    check(lambda: w.m(**w.batch | {"boxes": [BAD_BOXES[name]]}), "row 0")
    check(lambda: w.m.generate(**w.prompt | {"boxes": [BAD_BOXES[name]]}), "row 0")


TALK = [[("What is <bbox>?", "A fish.")]]
PROCESSOR = {
    "one pair": (dict(conversations=[("a", "b")]), "conversations"),
    "words": (dict(conversations="ab"), "conversations"),
    "messages": (dict(conversations=[[{"role": "user", "content": "x"}]]), "conversations"),
    "three": (dict(conversations=[[("a", "b", "c")]]), "conversations"),
    "numbers": (dict(conversations=[[(1, 2)]]), "conversations"),
    "an open turn": (dict(conversations=[[("a", None), ("b", "c")]]), "turn 0"),
    "a box of nan": (dict(conversations=TALK, boxes=[[(0, 0, NAN, 5)]]), "row 0"),
    "a swapped box": (dict(conversations=TALK, boxes=[[(9, 9, 3, 3)]]), "row 0"),
    "a box outside": (dict(conversations=TALK, boxes=[[(900, 0, 999, 9)]]), "row 0"),
    "eight numbers": (dict(conversations=TALK, boxes=[list(range(8))]), "(8,)"),
    "a box in words": (dict(conversations=TALK, boxes=["abcd"]), "row 0"),
    "boxes that are a number": (dict(conversations=TALK, boxes=5), "boxes"),
    "masks of another size": (dict(conversations=[[("a", "[SEG]")]], masks=[np.ones((1, 4, 4), bool)]), "row 0"),
    "masks in words": (dict(conversations=[[("a", "[SEG]")]], masks=["x"]), "row 0"),
    "masks of 255": (dict(conversations=[[("a", "[SEG]")]], masks=[np.full((1, 48, 64), 255)]), "row 0"),
    "a conversation that is a number": (dict(conversations=5), "conversations"),
    "truncation in words": (dict(conversations=[[("a", "b")]], truncate="no"), "truncate"),
    "another padding": (dict(text="x", padding="max_length"), "padding"),
    "no prompts": (dict(text=[]), "text"),
    "a number": (dict(text=3), "text"),
    "numbers for prompts": (dict(text=[3]), "text"),
    "a film": (dict(text="x", videos=[1]), "videos"),
    "NumPy": (dict(text="x", return_tensors="np"), "np"),
}


@pytest.mark.parametrize("name", PROCESSOR)
def test_what_the_processor_cannot_read(w, name):
    given, named = PROCESSOR[name]
    check(lambda: w.p(**({} if "text" in given else {"images": [w.pic]}) | given), named)


def test_one_picture_is_not_a_list_of_rows(w):
    check(lambda: w.p.images(w.pic), "list")


CHATS = {
    "nothing": None,
    "words": "x",
    "no message": [],
    "no message of one": [[]],
    "a number": [3],
    "no role": [{"content": "x"}],
    "no content": [{"role": "user"}],
    "a number for content": [{"role": "user", "content": 3}],
    "a number for a part": [{"role": "user", "content": [3]}],
    "a film": [{"role": "user", "content": [{"type": "video"}]}],
    "a part without its words": [{"role": "user", "content": [{"type": "text"}]}],
    "a tool": [{"role": "tool", "content": "x"}],
    "two questions": [{"role": "user", "content": "x"}] * 2,
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_that_is_none(w, name):
    check(lambda: w.p.apply_chat_template(CHATS[name]), "expected messages")


@pytest.mark.parametrize("ids", [None, 3, "12", [1.5], ["x"], torch.ones(2, 3, dtype=torch.long)], ids=str)
def test_ids_that_are_none(w, ids):
    check(lambda: w.p.decode(ids), "ids")


def test_a_processor_is_made_of_settings_and_a_tokenizer(w):
    check(lambda: GlammProcessor(w.m.config, None), "tokenizer is a NoneType")
    check(lambda: GlammProcessor(None, w.p.tokenizer), "config is a NoneType")


@pytest.mark.parametrize("name", [3, None, [], b"tiny"], ids=str)
def test_what_names_no_model_is_not_asked_of_the_hub(name):
    start = time.monotonic()
    for cls in (GlammConfig, GlammForConditionalGeneration, GlammProcessor):
        check(lambda cls=cls: cls.from_pretrained(name), "no model was named")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("kind", [3, True, ["sdpa"]], ids=str)
def test_attention_of_no_kind(kind):
    load = GlammForConditionalGeneration.from_pretrained
    check(lambda: load("tiny", attn_implementation=kind), "attn_implementation")


SETTINGS = [
    {"mode": "x"},
    {"seg_state": 3},
    {"hidden_size": 3},
    {"vision": 3},
    {"vision": [1]},
    {"text": GPT2Config()},
    {"region": "x"},
    {"region": {"chanels": 3}},
    {"grounding": (1, 2)},
    {"grounding": {"heads": 7}},
    {"grounding": {"pixel_std": (1,)}},
    {"vision": {"hiden_size": 3}},
    {"text": {"hiden_size": 3}},
    {"text": {"hidden_size": "x"}},
    {"losses": {"mask_dice": NAN}},
    {"losses": {"mask_dice": -1.0}},
    {"losses": {"mask_bce": "x"}},
    {"tokens": {"seg": 32001}},
    {"tokens": {"seg": -1}},
    {"tokens": {"seg": True}},
    {"vision": {"image_size": 0}},
    {"vision": {"patch_size": 0}},
    {"vision": {"num_attention_heads": 0}},
    {"text": {"vocab_size": 0}},
    {"text": {"num_key_value_heads": 3}},
    {"text": {"rope_theta": 0}},
    {"text": {"hidden_act": "x"}},
    {"text": {"pad_token_id": 40000}},
    {"region": {"channels": 0}},
    {"region": {"scales": (0,)}},
    {"region": {"rounds": -1}},
    {"grounding": {"patch_size": 7}},
    {"grounding": {"global_attention": (99,)}},
    {"grounding": {"decoder_heads": 7}},
    {"grounding": {"pixel_mean": 5}},
    {"grounding": {"relative_positions": "no"}},
    {"losses": {"dice_scale": 0}},
    {"losses": {"mask_bce": True}},
    {"prompt": {"max_length": 0}},
    {"prompt": {"user": None}},
    {"prompt": {"image_line": "no picture"}},
    {"level_step": 0},
    {"level_step": "3"},
    {"feature_layer": -1.5},
    {"size_name": 5},
    {"dtype": "zz"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_no_model_can_be(settings):
    with pytest.raises(ValueError):
        GlammConfig(**settings)


@pytest.mark.parametrize("length", [0, -5, 5, "x", 5.5])
def test_a_vocabulary_without_the_added_tokens(length):
    check(lambda: small_model().resize_token_embeddings(length), "new_num_tokens")


@pytest.mark.parametrize("rows", [5, "a", [], [5], [[1, "x"]]], ids=str)
def test_rows_that_are_no_prompts(w, rows):
    check(lambda: w.p.prompts(rows), "")


@pytest.mark.parametrize("size", [5, (0, 5), (0, 0), ("a", "b")], ids=str)
def test_a_size_that_is_none(w, size):
    check(lambda: w.p.normalize_boxes([(0, 0, 1, 1)], size), "size")
    check(lambda: w.p.post_process_masks(torch.zeros(1, 4, 4), size), "size")


def test_a_folder_without_settings_is_not_the_default_model(tmp_path):
    check(lambda: GlammConfig.from_pretrained(tmp_path), "config.json")


PLACES = {
    "nowhere": lambda w: save_model(None, w.m, w.p),
    "an empty name": lambda w: save_model("", w.m, w.p),
    "no processor": lambda w: save_model(w.t / "new", w.m, None),
    "the assistant": lambda w: save_model(w.t / "new", w.g, w.p),
    "swapped": lambda w: save_model(w.t / "new", w.p, w.m),
    "whole numbers": lambda w: save_model(w.t / "new", w.m, w.p, torch.int8),
    "a type in words": lambda w: save_model(w.t / "new", w.m, w.p, "bfloat16"),
    "files of nothing": lambda w: save_model(w.t / "new", w.m, w.p, max_shard_size=0),
    "files of half a byte": lambda w: save_model(w.t / "new", w.m, w.p, max_shard_size=1.5),
    "a type that is never loaded": lambda w: save_model(w.t / "new", w.m, w.p, torch.float8_e4m3fn),
    "another kind of model": lambda w: save_model(w.t / "new", torch.nn.Linear(2, 2), w.p),
    "a processor of another mode": lambda w: save_model(w.t / "new", w.m, of_another_mode(w.p)),
    "files of much": lambda w: save_model(w.t / "new", w.m, w.p, max_shard_size="much"),
    "transformers' way, onto a file": lambda w: w.m.save_pretrained(w.t / "file"),
    "the processor, onto a file": lambda w: w.p.save_pretrained(w.t / "file"),
}


def of_another_mode(processor) -> GlammProcessor:
    other = copy.deepcopy(processor)
    other.config.mode = "official"
    return other


ASSISTANTS = {
    "nothing": (lambda w: (None, None), "model is a NoneType"),
    "swapped": (lambda w: (w.p, w.m), "model is a GlammProcessor"),
    "a tokenizer": (lambda w: (w.m, w.p.tokenizer), "processor is a"),
    "a wrapped model": (lambda w: (torch.nn.DataParallel(w.m), w.p), "DataParallel"),
    "another mode": (lambda w: (w.m, of_another_mode(w.p)), "mode is official"),
}


@pytest.mark.parametrize("name", ASSISTANTS)
def test_an_assistant_is_a_model_and_its_own_processor(w, name):
    pair, named = ASSISTANTS[name]
    check(lambda: Assistant(*pair(w)), named)


def test_a_model_without_values_answers_nothing(w):
    check(lambda: Assistant(copy.deepcopy(w.m).to("meta"), w.p).describe(w.pic), "meta")


@pytest.mark.parametrize("place", [None, 5, "", b"x", "a\0b", "loop"], ids=repr)
@pytest.mark.parametrize("way", ["save_model", "model", "processor", "save_lora", "load_lora"])
def test_a_place_that_is_no_folder(w, place, way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    with_lora = small_model()
    add_lora(with_lora, rank=1)
    calls = {
        "save_model": lambda: save_model(place, w.m, w.p),
        "model": lambda: w.m.save_pretrained(place),
        "processor": lambda: w.p.save_pretrained(place),
        "save_lora": lambda: save_lora(place, with_lora),
        "load_lora": lambda: load_lora(small_model(), place),
    }
    check(calls[way], "loop" if place == "loop" else repr(place), (*BAD, OSError))
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


@pytest.mark.parametrize("way", ["model", "processor"])
def test_another_kind_of_model_is_not_overwritten(w, way, tmp_path):
    names = ("config.json", "model.safetensors", "tokenizer.json")
    for name in names:
        (tmp_path / name).write_text('{"model_type": "bert"}')
    saved = w.m if way == "model" else w.p
    check(lambda: saved.save_pretrained(tmp_path), "config.json of something else", FileExistsError)
    assert {path.read_text() for path in tmp_path.iterdir()} == {'{"model_type": "bert"}'}
    assert len(list(tmp_path.iterdir())) == len(names)


def test_model_and_processor_are_saved_over_older_ones_in_either_order(w, tmp_path):
    for saved in (w.p, w.m, w.p, w.m):
        saved.save_pretrained(str(tmp_path))
    assert glamm_mini.load(tmp_path, device="cpu").describe(w.pic, max_new_tokens=2).text


@pytest.mark.parametrize("name", PLACES)
def test_a_save_that_cannot_be_done_writes_nothing(w, name):
    check(lambda: PLACES[name](w), "")
    assert not (w.t / "new").exists() and (w.t / "file").read_text() == "mine"
