"""The processor: geometry of pictures and boxes, ids and labels of conversations, masks back at the picture's size."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import SIDE, SQUARE, small_config
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from glamm_mini import paths
from glamm_mini.checks.parity import weights
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.tokens import ADDED_TOKENS, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from glamm_mini.processing.processor import CLIP_MEAN, CLIP_STD, GlammProcessor, fitted_size
from glamm_mini.processing.prompts import render
from glamm_mini.storybook.language.tokenizer import build_wordpiece

WORDS = "What is this ? It a red kite over the sea . USER ASSISTANT : And".split()
ONE = [("What is this?", "It is <p> a red kite </p> [SEG].")]
TWO = [("What is this?", "It is the sea."), ("And this <bbox>?", "<p> a kite </p> [SEG] over the sea.")]


def processor_of(**changes):
    tokenizer = build_wordpiece(WORDS)
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    return GlammProcessor(small_config(text=text, **changes), tokenizer)


@pytest.fixture(scope="module")
def processor():
    torch.set_num_threads(1)
    return processor_of()


def supervised_text(processor, ids, labels):
    assert len(ids) == len(labels)
    assert all(y in (IGNORE_INDEX, i) for i, y in zip(ids, labels, strict=True))
    return processor.tokenizer.convert_ids_to_tokens([y for y in labels if y != IGNORE_INDEX])


# --- pictures --------------------------------------------------------------------------------------------------------

SHAPES = {
    (64, 64): (SQUARE, SQUARE),
    (48, 64): (24, SQUARE),
    (64, 48): (SQUARE, 24),
    (20, 60): (11, SQUARE),  # 10.67, rounded half up
    (60, 20): (SQUARE, 11),
    (100, 1): (SQUARE, 1),
    (1, 100): (1, SQUARE),
    (1, 1): (SQUARE, SQUARE),
}


@pytest.mark.parametrize(("size", "resized"), SHAPES.items())
def test_fixed_mode_pads_the_whole_picture_to_a_square(processor, size, resized):
    picture = np.full((*size, 3), 200, np.uint8)
    out = processor.images([picture])
    assert out["original"] == [size] and out["resized"] == [resized] == [fitted_size(size, SQUARE)]
    c = processor.config.grounding
    grounding = (200 - torch.tensor(c.pixel_mean)) / torch.tensor(c.pixel_std)
    clip = (200 / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    for name, side, value in (("grounding_images", SQUARE, grounding), ("global_images", SIDE, clip)):
        image = out[name][0]
        assert image.shape == (3, side, side) and image.dtype == torch.float32
        h, w = fitted_size(size, side)
        torch.testing.assert_close(image[:, :h, :w], value[:, None, None].expand(3, h, w), atol=1e-5, rtol=1e-5)
        assert not image[:, h:].any() and not image[:, :, w:].any()  # zero is the mean color


def test_a_picture_of_the_right_size_is_not_resampled(processor):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (SQUARE, 20, 3), dtype=np.uint8)
    c = processor.config.grounding
    image = processor.images([picture])["grounding_images"][0]
    back = image * torch.tensor(c.pixel_std)[:, None, None] + torch.tensor(c.pixel_mean)[:, None, None]
    np.testing.assert_allclose(back[:, :, :20].permute(1, 2, 0), picture, atol=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (48, 64), (64, 48), (20, 60), (60, 20)])
def test_boxes_and_pictures_share_one_square_in_fixed_mode(processor, size):
    """A white box on black must be where the normalized box says, in both encoders' pictures."""
    h, w = size
    picture = np.zeros((h, w, 3), np.uint8)
    box = (w // 4, h // 4, w // 4 * 3, h // 4 * 3)
    picture[box[1] : box[3], box[0] : box[2]] = 255
    out, (fractions,) = processor.images([picture]), processor.normalize_boxes([box], size)
    assert fractions.max() <= 1
    torch.testing.assert_close(fractions, torch.tensor(box) / max(size))
    for name, side in (("grounding_images", SQUARE), ("global_images", SIDE)):
        bright = out[name][0, 1] > 0.1
        ys, xs = bright.nonzero().T
        found = torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / side
        assert (found - fractions).abs().max() <= 1.5 / side


def test_official_mode_crops_the_center_and_squashes_the_boxes():
    """A published quirk that the weights depend on: boxes are fractions of the full picture, pixels of its center."""
    processor = processor_of(mode="official")
    picture = np.zeros((24, 72, 3), np.uint8)
    picture[:, 24:48] = 255
    assert processor.images([picture])["global_images"].min() > 1  # the outer thirds are invisible
    assert processor.images([picture.transpose(1, 0, 2)])["global_images"].min() > 1
    fractions = processor.normalize_boxes([[24, 0, 48, 24]], (24, 72))
    torch.testing.assert_close(fractions, torch.tensor([[1 / 3, 0, 2 / 3, 1]]))


def test_official_mode_takes_a_long_strip_without_blowing_it_up():
    strip = np.zeros((1, 30_000, 3), np.uint8)
    strip[:, 14_900:15_100] = 255
    assert processor_of(mode="official").images([strip])["global_images"].min() > 1


def test_official_preprocessing_is_the_official_numbers():
    """Four pictures, both encoders, against numbers of the official code: equal but for the last bits of float32."""
    meta = json.loads((paths.parity_folder() / "preprocess.json").read_text())
    stored = np.load(paths.parity_folder() / "preprocess.npz")
    processor = GlammProcessor(GlammConfig.of_size("7b"), build_wordpiece(WORDS))
    pictures = [name for name in meta if "resize_hw" in meta[name]]
    assert len(pictures) == 4
    for name in pictures:
        size = tuple(int(n) for n in name.split("x"))
        out = processor.images([weights.rgb_image(name, size)])
        assert out["resized"] == [tuple(meta[name]["resize_hw"])]
        for key, image in (("clip", out["global_images"][0]), ("sam", out["grounding_images"][0])):
            sample, step = stored[f"{name}/{key}__sample"], int(stored[f"{name}/{key}__step"])
            assert tuple(stored[f"{name}/{key}__shape"]) == tuple(image.shape)
            np.testing.assert_allclose(image.numpy().reshape(-1)[::step], sample, atol=1e-5, rtol=1e-5)
            mean, deviation = stored[f"{name}/{key}__stats"][:2]
            assert float(image.double().mean()) == pytest.approx(mean, abs=1e-6)
            assert float(image.double().std(correction=0)) == pytest.approx(deviation, abs=1e-6)


# --- words -----------------------------------------------------------------------------------------------------------


def test_only_answers_are_supervised(processor):
    ids, labels = processor.encode(TWO)
    supervised = supervised_text(processor, ids, labels)
    assert supervised == "It is the sea . </s> <p> a kite </p> [SEG] over the sea . </s>".split()
    assert ids.count(IMAGE_TOKEN_INDEX) == 1 and ids[0] == processor.tokenizer.bos_token_id
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    at = ids.index(IMAGE_TOKEN_INDEX)
    assert [ids[at - 1], ids[at + 1]] == [processor.config.tokens.im_start, processor.config.tokens.im_end]


def test_words_of_the_template_in_an_answer_do_not_move_the_labels(processor):
    turns = [("What ASSISTANT: is USER: this?", "a USER: red ASSISTANT: kite"), ("And", "the sea")]
    ids, labels = processor.encode(turns)
    supervised = supervised_text(processor, ids, labels)
    assert supervised == "a USER : red ASSISTANT : kite </s> the sea </s>".split()


def test_text_alone_has_no_image(processor):
    ids, labels = processor.encode(ONE, has_image=False)
    assert IMAGE_TOKEN_INDEX not in ids and processor.config.tokens.im_start not in ids
    assert supervised_text(processor, ids, labels)[-1] == "</s>"


def test_ids_are_those_of_the_whole_text(processor):
    """Cutting at <image> and tokenizing by pieces must not change a token."""
    text = render(processor.config.prompt, ONE, True).text
    ids, _ = processor.encode(ONE)
    before, after = text.split("<image>")
    tokenize = processor.tokenizer
    expected = [*tokenize(before).input_ids, IMAGE_TOKEN_INDEX, *tokenize(after, add_special_tokens=False).input_ids]
    assert ids == expected


def test_packed_conversations_share_their_beginning(processor):
    conversations = [ONE, TWO, [("And?", "the sea")]]
    ids, labels, segments = processor.encode_packed(conversations)
    single = [processor.encode(turns) for turns in conversations]
    shared = segments.count(0)
    assert ids[shared - 1] == processor.config.tokens.im_end and segments == sorted(segments)
    assert set(labels[:shared]) == {IGNORE_INDEX}
    for k, (own, own_labels) in enumerate(single, 1):
        where = [i for i, s in enumerate(segments) if s == k]
        assert ids[:shared] + [ids[i] for i in where] == own
        assert labels[:shared] + [labels[i] for i in where] == own_labels
    assert max(segments) == 3


def test_packing_leaves_out_what_does_not_fit():
    probe = processor_of()
    whole = len(probe.encode_packed([ONE, TWO])[0]) + probe.config.image_tokens - 1
    for length, fit in ((whole, 2), (whole - 1, 1), (probe.config.image_tokens + 1, 1)):
        packing = processor_of(prompt=dict(max_length=length))
        ids, labels, segments = packing.encode_packed([ONE, TWO, TWO])
        assert max(segments) == fit and len(ids) == len(labels) == len(segments)
        # The row as the model sees it: the image's one id becomes image_tokens positions.
        assert fit == 1 or len(ids) + packing.config.image_tokens - 1 <= length


def test_decoding_keeps_tags_and_drops_begin_end_and_padding(processor):
    t = processor.tokenizer
    ids = t("<p> a red kite </p> [SEG] over Zürich Zed").input_ids
    assert processor.decode([*ids, t.eos_token_id, t.pad_token_id]) == "<p> a red kite </p> [SEG] over Zed"
    assert processor.decode(torch.tensor([t.eos_token_id])) == ""
    assert processor.decode([IMAGE_TOKEN_INDEX, *ids[1:4]]) == "<p> a red"


# --- both ------------------------------------------------------------------------------------------------------------


def test_open_prompts_are_padded_on_the_left(processor):
    rows = [[("What is this?", None)], [*TWO, ("And?", None)]]
    batch = processor.prompts(rows)
    lengths = [len(processor.encode(r)[0]) for r in rows]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, max(lengths))
    assert set(batch) == {"input_ids", "attention_mask"}
    for row, mask, turns, length in zip(batch["input_ids"], batch["attention_mask"], rows, lengths, strict=True):
        assert not mask[:-length].any() and mask[-length:].all()
        assert row[-length:].tolist() == processor.encode(turns)[0]
        assert (row[: len(row) - length] == processor.tokenizer.pad_token_id).all()
    assert processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][:, -1].tolist()) == [":", ":"]


def test_a_batch_of_closed_conversations(processor):
    pictures = [np.zeros((40, 30, 3), np.uint8), Image.new("RGB", (16, 16))]
    masks = [np.ones((1, 40, 30), bool), None]
    batch = processor(pictures, [TWO, [("And?", "the sea")]], [[[3, 4, 13, 24]], None], masks)
    assert batch["original"] == [(40, 30), (16, 16)]
    assert batch["boxes"][1] is None
    torch.testing.assert_close(batch["boxes"][0], torch.tensor([[3, 4, 13, 24]]) / 40)
    assert [m.shape for m in batch["masks"]] == [(1, 40, 30), (0, 16, 16)]
    for r, turns in enumerate((TWO, [("And?", "the sea")])):
        ids, labels = processor.encode(turns)
        n = int(batch["attention_mask"][r].sum())
        assert batch["attention_mask"][r, :n].all()
        assert batch["input_ids"][r, :n].tolist() == ids and batch["labels"][r, :n].tolist() == labels
        assert (batch["labels"][r, n:] == IGNORE_INDEX).all()


def test_masks_come_back_at_the_size_of_the_picture(processor):
    """A square of low-resolution logits, padding included; only the picture's part of it may show."""
    low_res = torch.full((2, 16, 16), -4.0)
    low_res[0, :, :8] = 4.0  # left half of the square
    low_res[1, 8:] = 4.0  # lower half: padding for a picture twice as wide as high
    masks, logits = processor.post_process_masks(low_res, (50, 100))
    assert masks.shape == logits.shape == (2, 50, 100) and masks.dtype == torch.bool
    assert masks[0, :, :49].all() and not masks[0, :, 51:].any()
    assert not masks[1, :48].any()
    torch.testing.assert_close(masks, logits > 0)
    masks, _ = processor.post_process_masks(low_res, (100, 50))
    assert masks[0, :, :48].all() and masks[1, 51:].all() and not masks[1, :49].any()


def test_no_masks_are_no_error(processor):
    masks, logits = processor.post_process_masks(torch.zeros(0, 16, 16), (30, 40))
    assert masks.shape == logits.shape == (0, 30, 40)


def test_saved_processor_comes_back_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    back = GlammProcessor.from_pretrained(tmp_path)
    assert back.encode(TWO) == processor.encode(TWO)
    assert back.config.tokens == processor.config.tokens and back.config.prompt == processor.config.prompt
    picture = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    for key in ("global_images", "grounding_images"):
        assert torch.equal(back.images([picture])[key], processor.images([picture])[key])


def test_ids_of_the_added_tokens_come_from_the_tokenizer(processor):
    t, ids = processor.tokenizer, processor.config.tokens
    names = ("im_start", "im_end", "bbox", "point", "seg", "phrase_start", "phrase_end")
    assert [getattr(ids, n) for n in names] == [t.convert_tokens_to_ids(token) for token in ADDED_TOKENS]
    plain = Tokenizer(models.WordPiece({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    with pytest.raises(ValueError, match="each needs an id of its own"):
        GlammProcessor(small_config(), bare)


def test_mistakes_in_a_batch_are_named(processor):
    picture = np.zeros((8, 8, 3), np.uint8)
    for arguments, words in (
        (([picture], []), "list of lists"),
        (([picture, picture], [ONE]), "images has 2 entries for 1"),
        ((None, [ONE], [[[0, 0, 1, 1]]]), "boxes were given without images"),
        (([picture], [ONE], [None, None]), "boxes has 2 entries for 1"),
        (([picture], [ONE], None, []), "masks has 0 entries for 1"),
        (([picture], [[]]), "no turn"),
    ):
        with pytest.raises(ValueError, match=words):
            processor(*arguments)
    with pytest.raises(ValueError, match="no picture"):
        processor.images([])
