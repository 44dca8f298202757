"""Samples to batches: every mask, box and word lands in the row of its own image, or an error names the sample."""

import numpy as np
import pytest
import torch
from small_models import small_config, small_model

from glamm_mini.data.collate import Collate
from glamm_mini.data.sample import Sample, Turn
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from glamm_mini.storybook.language.tokenizer import build_wordpiece

WORDS = "What is this ? It a red kite over the sea . USER ASSISTANT : And".split()


@pytest.fixture(scope="module")
def processor():
    torch.set_num_threads(1)
    tokenizer = build_wordpiece(WORDS)
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    return GlammProcessor(small_config(text=text), tokenizer)


def masks(count, size, value):
    """Masks that are told apart by how many pixels they have."""
    out = np.zeros((count, *size), bool)
    for k in range(count):
        out[k].flat[: value + k] = True
    return out


def picture(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def two_pictures():
    """Image a: two conversations, three masks, two boxes; image b: one of two turns, one mask, one box."""
    a, b = (20, 30), (24, 16)
    kite = Turn("What is this?", "<p> a red kite </p> [SEG] over <p> the sea </p> [SEG].", masks=masks(2, a, 1))
    boxes = np.array([[1, 2, 9, 9], [0, 0, 5, 4]], np.float32)
    boxed = Turn("And <bbox> <bbox>?", "It is [SEG].", boxes, masks(1, a, 5))
    plain = Turn("What is this?", "the sea.")
    late = Turn("And <bbox>?", "a kite [SEG]", np.array([[2, 2, 8, 8]], np.float32), masks(1, b, 9))
    return [Sample(picture(a), [[kite], [boxed]], "a"), Sample(picture(b, 1), [[plain, late]], "b")]


def test_packed_batch_counts_and_order(processor):
    batch = Collate(processor)(two_pictures())
    assert batch["input_ids"].shape[0] == 2 and batch["image_index"].tolist() == [0, 1]
    assert [m.flatten(1).sum(1).tolist() for m in batch["masks"]] == [[1, 2, 5], [9]]
    assert [len(b) for b in batch["boxes"]] == [2, 1]
    torch.testing.assert_close(batch["boxes"][0], torch.tensor([[1, 2, 9, 9], [0, 0, 5, 4]]) / 30)
    torch.testing.assert_close(batch["boxes"][1], torch.tensor([[2, 2, 8, 8]]) / 24)
    assert batch["original"] == [(20, 30), (24, 16)]
    assert (batch["num_masks"], batch["num_images"]) == (4, 2)
    assert batch["num_tokens"] == int((batch["labels"] != IGNORE_INDEX).sum())
    assert batch["segment_ids"].max(1).values.tolist() == [2, 1]
    seg, box = processor.config.tokens.seg, processor.config.tokens.bbox
    assert (batch["input_ids"] == seg).sum(1).tolist() == [3, 1]
    assert (batch["input_ids"] == box).sum(1).tolist() == [2, 1]


def test_unpacked_batch_has_a_row_for_each_conversation(processor):
    batch = Collate(processor, pack=False)(two_pictures())
    assert batch["image_index"].tolist() == [0, 0, 1]
    assert "segment_ids" not in batch
    assert [None if b is None else len(b) for b in batch["boxes"]] == [None, 2, 1]
    assert batch["global_images"].shape[0] == 2
    assert [m.flatten(1).sum(1).tolist() for m in batch["masks"]] == [[1, 2, 5], [9]]
    assert ((batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(1) == 1).all()
    packed = Collate(processor)(two_pictures())
    for count in ("num_tokens", "num_masks", "num_images"):
        assert batch[count] == packed[count]


def loss_of(model, batch):
    return model(**{k: v for k, v in batch.items() if not k.startswith("num_")})


def test_packed_and_unpacked_give_one_loss(processor):
    model = small_model(text=processor.config.text, tokens=processor.config.tokens)
    samples = two_pictures()
    with torch.no_grad():
        packed, unpacked = (loss_of(model, Collate(processor, pack)(samples)) for pack in (True, False))
    torch.testing.assert_close(packed.loss, unpacked.loss, atol=1e-5, rtol=1e-5)
    for a, b in zip(packed.mask_logits, unpacked.mask_logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pack", [True, False])
def test_text_alone_and_pictures_share_a_batch(processor, pack):
    words = Sample(None, [[Turn("What is this?", "the sea.")], [Turn("And?", "a kite.")]], "words")
    a, b = two_pictures()
    batch = Collate(processor, pack)([words, a, words, b])
    assert batch["image_index"].tolist() == ([-1, -1, 0, -1, -1, 1] if pack else [-1, -1, 0, 0, -1, -1, 1])
    assert batch["num_images"] == 2 and len(batch["masks"]) == 2
    images_of = (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(1)
    assert torch.equal(images_of, (batch["image_index"] >= 0).long())
    model = small_model(text=processor.config.text, tokens=processor.config.tokens)
    with torch.no_grad():
        mixed = loss_of(model, batch)
        parts = [Collate(processor, pack)(s) for s in ([words], [words], [a, b])]
        weights = torch.tensor([p["num_tokens"] for p in parts], dtype=torch.float32)
        single = torch.stack([loss_of(model, p).losses["ce"] for p in parts])
    assert weights.sum() == batch["num_tokens"]
    torch.testing.assert_close(mixed.losses["ce"], (single * weights).sum() / weights.sum(), atol=1e-5, rtol=1e-5)


def test_text_alone_needs_no_picture(processor):
    batch = Collate(processor)([Sample(None, [[Turn("What is this?", "the sea.")]], "words")])
    assert "global_images" not in batch and "masks" not in batch
    assert (batch["num_masks"], batch["num_images"]) == (0, 0) and batch["num_tokens"] == 4


def test_a_conversation_that_does_not_fit_takes_its_masks_along(processor):
    a, b = two_pictures()
    whole = int(Collate(processor)([a])["attention_mask"].sum()) + processor.config.image_tokens - 1
    prompt = processor.config.prompt.__dict__ | {"max_length": whole - 1}
    small = GlammProcessor(small_config(text=processor.config.text, prompt=prompt), processor.tokenizer)
    batch = Collate(small)([a, b])
    assert [len(m) for m in batch["masks"]] == [2, 1]
    assert batch["boxes"][0] is None and batch["num_masks"] == 3
    assert (batch["input_ids"] == processor.config.tokens.seg).sum(1).tolist() == [2, 1]


@pytest.mark.parametrize("pack", [True, False])
def test_a_row_that_is_too_long_is_cut_with_its_masks_and_boxes(processor, pack):
    """Image a's first answer ends in its second [SEG]; the cut stands before that, and before b's only <bbox>."""
    a, b = two_pictures()
    ids, _ = processor.encode([(t.question, t.answer) for t in a.conversations[0]])
    kept = [i for i, token in enumerate(ids) if token == processor.config.tokens.seg][1]
    prompt = processor.config.prompt.__dict__ | {"max_length": kept + processor.config.image_tokens - 1}
    small = GlammProcessor(small_config(text=processor.config.text, prompt=prompt), processor.tokenizer)
    batch = Collate(small, pack)([Sample(a.image, a.conversations[:1], "a")])
    assert batch["input_ids"].tolist() == [ids[:kept]]
    assert [m.flatten(1).sum(1).tolist() for m in batch["masks"]] == [[1]] and batch["num_masks"] == 1
    model = small_model(text=processor.config.text, tokens=processor.config.tokens)
    assert torch.isfinite(loss_of(model, batch).loss)
    asked, _ = processor.encode([(t.question, t.answer) for t in b.conversations[0]])
    at = asked.index(processor.config.tokens.bbox)
    small.config.prompt.max_length = at + processor.config.image_tokens - 1
    assert Collate(small, pack)([b])["boxes"] == [None]
    boxes = np.array([[0, 0, 4, 4], [1, 1, 5, 5]], np.float32)
    both = Turn("What are <bbox> and <bbox>?", "a kite and a boat", boxes)
    asked, _ = processor.encode([(both.question, both.answer)])
    first, second = [i for i, token in enumerate(asked) if token == processor.config.tokens.bbox]
    small.config.prompt.max_length = second + processor.config.image_tokens - 1
    [held] = Collate(small, pack)([Sample(b.image, [[both]], "b")])["boxes"]
    assert first < second and torch.equal(held, small.normalize_boxes(boxes[:1], b.image.shape[:2]))


@pytest.mark.parametrize(
    ("turn", "image", "words"),
    [
        (Turn("What?", "a kite [SEG]"), True, r"sample 'odd': 0 masks for \[SEG\] of the answer, which holds 1"),
        (Turn("What?", "a kite", masks=masks(1, (8, 9), 3)), True, "sample 'odd': 1 masks"),
        (Turn("What <bbox>?", "a kite"), True, "sample 'odd': 0 boxes for <bbox> of the question, which holds 1"),
        (Turn("What?", "a kite", np.ones((2, 4), np.float32)), True, "sample 'odd': 2 boxes"),
        (Turn("What?", "[SEG]", masks=masks(1, (9, 8), 3)), True, r"sample 'odd': masks of \(9, 8\) for an image"),
        (Turn("What?", "[SEG]", masks=masks(1, (9, 8), 3)), False, "sample 'odd' has masks or boxes but no image"),
        (Turn("<bbox>?", "a", np.ones((1, 4), np.float32)), False, "sample 'odd' has masks or boxes but no image"),
    ],
)
def test_a_mismatch_names_the_sample(processor, turn, image, words):
    odd = Sample(picture((8, 9)) if image else None, [[turn]], "odd")
    with pytest.raises(ValueError, match=words):
        Collate(processor)([*two_pictures(), odd])


@pytest.mark.parametrize("pack", [True, False])
def test_a_sample_without_words_is_named(processor, pack):
    with pytest.raises(ValueError, match="sample 'mute' has no conversation"):
        Collate(processor, pack)([Sample(picture((8, 8)), [], "mute")])
