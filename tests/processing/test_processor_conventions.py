"""What users of transformers expect of a processor, and what a question costs behind a long history."""

import time

import numpy as np
import pytest
import torch
from small_models import small_config
from transformers import BatchFeature, ProcessorMixin

from glamm_mini import paths
from glamm_mini.model.config import OFFICIAL_SYSTEM
from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX
from glamm_mini.processing.llama_tokenizer import official_tokenizer
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.processing.prompts import render
from glamm_mini.storybook.language.tokenizer import build_wordpiece

WORDS = "What is this ? It a red kite over the sea . USER ASSISTANT : And".split()
PICTURE = np.zeros((20, 30, 3), np.uint8)
TURNS = [
    ("What is this?", "It is <p> a red kite </p> [SEG]."),
    ("And this <bbox>?", " the sea"),
    ('"Quotes" {{ and }} \\ {% braces %}', "é ü 鳥 <p> a kite </p> [SEG]"),
    ("", ""),
    ("And?\n", None),
]


def made(tokenizer, **changes):
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    return GlammProcessor(small_config(text=text, **changes), tokenizer)


def tiny():
    return made(build_wordpiece(WORDS))


def official():
    tokenizer = official_tokenizer(paths.parity_folder() / "tokenizer")
    return made(tokenizer, mode="official", prompt=dict(system=OFFICIAL_SYSTEM))


@pytest.fixture(scope="module", params=[tiny, official], ids=["tiny", "official"])
def processor(request):
    return request.param()


def messages(turns, image=True):
    """The same conversation as chat templates take it."""
    out = []
    for k, (question, answer) in enumerate(turns):
        content = [{"type": "image"}] * (image and k == 0) + [{"type": "text", "text": question}]
        out.append({"role": "user", "content": content if k % 2 == 0 else question})
        out += [] if answer is None else [{"role": "assistant", "content": answer}]
    return out


@pytest.mark.parametrize("count", range(1, len(TURNS) + 1))
@pytest.mark.parametrize("image", [True, False])
def test_the_chat_template_writes_what_we_write(processor, count, image):
    turns = TURNS[:count]
    text = processor.apply_chat_template(messages(turns, image), add_generation_prompt=turns[-1][1] is None)
    assert text == render(processor.config.prompt, turns, image).text


def test_chat_to_ids_and_pictures(processor):
    turns = [*TURNS[:2], TURNS[-1]]
    chat = messages(turns)
    chat[0]["content"][0] = {"type": "image", "image": PICTURE}
    batch = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert isinstance(batch, BatchFeature) and batch["original"] == [(20, 30)]
    assert batch["input_ids"].tolist() == processor.prompts([turns])["input_ids"].tolist()
    assert batch["image_index"].tolist() == [0] and batch["global_images"].shape[0] == 1
    ids = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True)
    assert torch.equal(ids, batch["input_ids"])


def test_a_system_message_takes_the_place_of_ours(processor):
    text = processor.apply_chat_template([{"role": "system", "content": "Be brief."}, *messages(TURNS[:1])])
    assert text == "Be brief. " + render(tiny().config.prompt, TURNS[:1], True).text
    for wrong in (messages(TURNS[:2])[1:], messages(TURNS[:1]) * 2, [{"role": "tool", "content": "x"}]):
        with pytest.raises(ValueError, match="role|image"):
            processor.apply_chat_template(wrong)


def test_text_with_and_without_pictures(processor):
    with_image = render(processor.config.prompt, TURNS[-1:], True).text
    without = render(processor.config.prompt, TURNS[-1:], False).text
    box = [[3, 4, 13, 14]]
    batch = processor(text=[without, with_image], images=[PICTURE], boxes=[None, box])
    expected = processor.prompts([processor.encode(TURNS[-1:], False)[0], processor.encode(TURNS[-1:])[0]])
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])
    assert batch["image_index"].tolist() == [-1, 0] and batch["boxes"][0] is None
    torch.testing.assert_close(batch["boxes"][1], processor.normalize_boxes(box, (20, 30)))
    assert "global_images" not in processor(text=without)
    assert processor(text=with_image, images=PICTURE)["input_ids"].shape[0] == 1
    for wrong in (
        dict(text=with_image),
        dict(text=without, images=[PICTURE]),
        dict(text=with_image, images=[PICTURE] * 2),
        dict(text=with_image * 2, images=[PICTURE] * 2),
        dict(text=[without], boxes=[box]),
        dict(text=[without], boxes=[None, None]),
        dict(text=without, videos=[PICTURE]),
        dict(text=without, return_tensors="np"),
        dict(text=without, conversations=[TURNS[:1]]),
        dict(text=without, masks=[None]),
        dict(text=[without, with_image], images=[PICTURE], padding=False),
    ):
        with pytest.raises(ValueError):
            processor(**wrong)


def test_batches_go_to_a_device(processor):
    masks = [np.ones((1, 20, 30), bool)]
    batch = processor([PICTURE], [TURNS[:1]], [[[1, 2, 3, 4]]], masks)
    moved = batch.to("meta")
    for name in ("input_ids", "labels", "global_images"):
        assert moved[name].device.type == "meta"
    assert moved["boxes"][0].device.type == moved["masks"][0].device.type == "meta"
    assert moved["original"] == [(20, 30)]
    half = processor.images([PICTURE]).to(torch.bfloat16)
    assert half["global_images"].dtype == torch.bfloat16
    assert processor.prompts([TURNS[-1:]]).to("cpu", torch.bfloat16)["input_ids"].dtype == torch.long


def test_a_processor_of_transformers(processor, tmp_path, monkeypatch):
    assert isinstance(processor, ProcessorMixin) and "GlammProcessor" in repr(processor)
    ids = [processor.encode(TURNS[:1])[0], processor.encode(TURNS[1:2])[0]]
    assert processor.batch_decode(ids) == [processor.decode(row) for row in ids]
    assert "input_ids" in processor.model_input_names
    processor.save_pretrained(tmp_path)
    back = GlammProcessor.from_pretrained(tmp_path)
    assert back.chat_template == processor.chat_template
    pushed = []
    monkeypatch.setattr(GlammProcessor, "push_to_hub", lambda self, repo, **more: pushed.append((repo, more)))
    processor.save_pretrained(tmp_path / "b", push_to_hub=True, repo_id="me/mine", private=True)
    assert pushed == [("me/mine", {"private": True})] and (tmp_path / "b" / "config.json").is_file()


# --- long conversations ----------------------------------------------------------------------------------------------


def test_the_latest_turns_are_those_that_fit(processor):
    """Equal to encoding every beginning in turn, at every length of the row."""
    whole = [*TURNS[:3], *TURNS[:2], TURNS[-1]]
    lengths = [len(processor.encode(whole[n:])[0]) for n in range(len(whole))]
    for room in sorted({n + d for n in lengths for d in (-1, 0)}):
        processor.config.prompt.max_length = room + processor.config.image_tokens - 1
        fitting = [n for n, length in enumerate(lengths) if length <= room]
        if not fitting:
            with pytest.raises(ValueError, match=str(lengths[-1])):
                processor.encode_latest(whole)
            continue
        assert processor.encode_latest(whole) == (processor.encode(whole[fitting[0] :])[0], fitting[0])
    processor.config.prompt.max_length = 1536


def test_a_history_of_thousands_of_turns_costs_no_more_than_what_fits(processor):
    turns = [*[TURNS[0]] * 20_000, TURNS[-1]]
    start = time.process_time()
    ids, left_out = processor.encode_latest(turns)
    assert time.process_time() - start < 5 and 19_000 < left_out < 20_000
    assert ids.count(IMAGE_TOKEN_INDEX) == 1
    batch = processor.prompts([ids])
    assert batch["input_ids"].tolist() == [ids]


CLOSED = [[TURNS[:1]], [TURNS[-1:], TURNS[:2]], [[("What?", "")]]]


@pytest.mark.parametrize("rows", [*CLOSED, [[]], [], "rows", 5, None], ids=repr)
def test_prompts_are_open_conversations(processor, rows):
    with pytest.raises(ValueError, match="rows|turn"):
        processor.prompts(rows)


def test_half_of_a_letter_is_named(processor):
    with pytest.raises(ValueError, match="udcff") as seen:
        processor.encode([("what \udcff is", None)])
    assert not isinstance(seen.value, UnicodeError)
