"""What notebook 06 builds: two-way attention and prompt codes equal segment-anything's; its graders see near misses."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention
from small_models import small_config
from torch.nn import functional as F
from torch.testing import assert_close

from glamm_mini.course.room_06 import grader as decoder
from glamm_mini.course.room_06 import pictures as views
from glamm_mini.course.room_06.lesson import (
    WORDS,
    NarrowAttention,
    TwoWayDecoder,
    WordPrompts,
    asked_for,
    box_prompt,
    click_prompt,
    decoder_size,
    grid_code,
    like,
    mask_ious,
    position_code,
    single_things,
    word_ids,
)
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.sam import PixelDecoder


@pytest.fixture(scope="module")
def pixel_decoder():
    torch.manual_seed(0)
    return PixelDecoder(small_config()).eval()


def close(mine, theirs):
    assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("narrower", [1, 2])
def test_attention_equals_the_librarys(narrower):
    torch.manual_seed(1)
    theirs = Attention(24, 3, downsample_rate=narrower)
    mine = NarrowAttention(24, 3, narrower)
    mine.load_state_dict(theirs.state_dict())
    q, k, v = (torch.randn(2, n, 24) for n in (5, 7, 7))
    close(mine(q, k, v), theirs(q, k, v))
    close(mine.weights.sum(-1), torch.ones(2, 3, 5))
    with pytest.raises(ValueError, match="5 heads cannot share 24 channels"):
        NarrowAttention(24, 5)


@pytest.mark.parametrize("depth", [1, 3])
def test_two_way_attention_equals_the_librarys(depth):
    torch.manual_seed(2)
    theirs = TwoWayTransformer(depth=depth, embedding_dim=32, num_heads=4, mlp_dim=48)
    mine = like(theirs)
    assert isinstance(mine, TwoWayDecoder) and len(mine.layers) == depth
    image, code, prompts = torch.randn(2, 32, 3, 5), torch.randn(2, 32, 3, 5), torch.randn(2, 6, 32)
    for own, other in zip(mine(image, code, prompts), theirs(image, code, prompts), strict=True):
        close(own, other)


def test_prompts_are_those_of_the_prompt_encoder(pixel_decoder):
    encoder = pixel_decoder.prompt_encoder
    points, boxes = torch.tensor([[3.0, 8.5], [30.0, 0.0]]), torch.tensor([[1.0, 2.0, 20.0, 31.0]])
    close(click_prompt(points, encoder), encoder((points[:, None], torch.ones(2, 1)), None, None)[0])
    close(box_prompt(boxes, encoder), encoder(None, boxes, None)[0])
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
    close(grid_code(encoder.image_embedding_size[0], matrix), encoder.get_dense_pe())
    assert position_code(torch.zeros(5, 4, 2), matrix).shape == (5, 4, 2 * matrix.shape[1])


def test_words_find_their_rows_and_unknown_ones_are_named():
    ids = word_ids(["red kite", "kite", "night sky"])
    assert [[WORDS[i] for i in row] for row in ids.tolist()] == [["red", "kite"], ["", "kite"], ["", "night sky"]]
    assert WordPrompts(12, 8)(ids).shape == (3, 1, 8)
    with pytest.raises(ValueError, match="'red' names no kind"):
        word_ids(["red"])


def test_everything_that_can_be_asked_has_its_mask():
    class Processor:
        def images(self, pictures):
            return {"grounding_images": torch.zeros(len(pictures), 3, 32, 32)}

    torch.manual_seed(0)
    asked = asked_for(GlammForConditionalGeneration(small_config()).eval(), Processor(), "val", 3)
    assert len(asked.texts) == len(asked.masks) == len(asked.image_index) > 9
    assert asked.embeddings.shape[0] == 3 and asked.masks.shape[1:] == (16, 16)
    first = asked.samples[0].extras
    kinds = {text for text, k in zip(asked.texts, asked.image_index.tolist(), strict=True) if k == 0}
    assert kinds <= {t["cls"] for t in first["things"]} | set(first["stuff"]) | {
        f"{t['colour']} {t['cls']}" for t in first["things"]
    }
    for text, mask, k in zip(asked.texts, asked.masks, asked.image_index.tolist(), strict=True):
        truth = asked.samples[k].extras
        rows = [t["mask"] for t in truth["things"] if text in (t["cls"], f"{t['colour']} {t['cls']}") and t["visible"]]
        whole = [
            *truth["thing_masks"][rows],
            *(m for m, s in zip(truth["stuff_masks"], truth["stuff"], strict=True) if s == text),
        ]
        close(mask, decoder_size(np.any(whole, axis=0), 32, 16))
    things = single_things(asked, 32)
    assert len(things.names) == len(things.boxes) > 5 and things.masks.shape[1:] == (16, 16)
    for (x, y), (x0, y0, x1, y1) in zip(things.points.tolist(), things.boxes.tolist(), strict=True):
        assert x0 <= x < x1 and y0 <= y < y1


def test_overlap_counts_and_two_empty_masks_agree():
    logits = torch.tensor([[[1.0, 1.0, -1.0]], [[-1.0, -1.0, -1.0]]])
    masks = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.2]]])
    close(mask_ious(logits, masks), torch.tensor([0.5, 1.0]))


def test_graders_pass_right_functions():
    def upscale(x, weight, bias):
        y = torch.einsum("bchw,cdij->bdhiwj", x, weight)
        return y.flatten(4, 5).flatten(2, 3) + bias[:, None, None]

    def apart(logits):
        return (logits > 0) & (F.one_hot(logits.argmax(0), len(logits)).permute(2, 0, 1) > 0)

    assert decoder.grade_upscale(upscale)
    assert decoder.grade_dice(dice)
    assert decoder.grade_apart(apart)


def dice(logits, target, scale, eps):
    p = logits.sigmoid()
    both, either = 2 * (p * target).sum((1, 2)) / scale, (p.sum((1, 2)) + target.sum((1, 2))) / scale
    return 1 - (both + eps) / (either + eps)


@pytest.mark.parametrize(
    "name, wrong, words",
    [
        ("upscale", lambda x, w, b: F.conv_transpose2d(x, w, stride=2), "is .* expected"),
        ("upscale", lambda x, w, b: F.conv_transpose2d(x, w.flip(2, 3), b, stride=2), "differ"),
        ("upscale", lambda x, w, b: x, "expected shape"),
        ("dice", lambda p, t, s, e: dice(p, t, s, e).mean(), r"expected shape \(\d,\), got \(\)"),
        ("dice", lambda p, t, s, e: dice((p > 0) * 9e3 - 4e3, t, s, e), "expected"),
        ("dice", lambda p, t, s, e: dice(p, t, 1.0, e), "expected"),
        ("apart", lambda x: x > 0, "is 1, expected 0"),
        ("apart", lambda x: (x > 0).float(), "expected dtype torch.bool"),
        ("apart", lambda x: x == x.max(0).values, "expected"),
    ],
)
def test_graders_explain_near_misses(name, wrong, words):
    result = getattr(decoder, f"grade_{name}")(wrong)
    assert not result
    assert re.search(words, result.message), result.message


def test_pictures_have_their_sizes_and_colors():
    field = np.array([[-2.0, 0.0], [0.0, 2.0]])
    corners = np.asarray(views.signed(field, 2.0, side=8))
    assert tuple(corners[0, 0]) == views.BLUE and tuple(corners[-1, -1]) == views.ORANGE
    assert tuple(corners[0, -1]) == (255, 255, 255)
    image = np.full((30, 40, 3), 200, np.uint8)
    warm = np.asarray(views.heat(image, np.eye(30, 40), point=(20, 15)))
    assert warm.shape == image.shape and warm[0, 0, 0] > warm[0, 0, 2]
    mask = np.zeros((30, 40), bool)
    mask[5:20, 5:20] = True
    painted = views.prompted(image, mask, point=(9, 9), box=(4, 4, 21, 21), truth=mask)
    assert painted.size == (40, 30)
    assert views.sum_of_channels(torch.randn(4, 6, 6), torch.randn(4)).width == 1200
    assert views.block_diagram().width == 1600
    [chart] = views.bars({"click": 0.6, "nothing": 0.1}, 1, "IoU").axes
    assert [round(bar.get_width(), 1) for bar in chart.patches] == [0.6, 0.1]
    [chart] = views.curves({"BCE": torch.ones(3), "dice": torch.zeros(3)}, "step", "loss").axes
    assert [line.get_label() for line in chart.lines] == ["BCE", "dice"]
    assert views.upscaled_steps([torch.randn(8, 4, 4), torch.randn(2, 8, 8)]).width == 1200


def test_a_click_draws_a_mask_and_says_how_large_it_is():
    class Processor:
        def images(self, pictures):
            sizes = [p.shape[:2] for p in pictures]
            fitted = [tuple(round(32 * s / max(size)) for s in size) for size in sizes]
            return {"grounding_images": torch.zeros(len(sizes), 3, 32, 32), "resized": fitted, "original": sizes}

    torch.manual_seed(0)
    glamm = GlammForConditionalGeneration(small_config()).eval()
    draw = views.ClickToMask(glamm, Processor(), [3, 4], long_side=64)
    picture, words = draw({"scene": 1, "point": None})
    assert isinstance(picture, Image.Image) and words == "Click on something."
    clicked, words = draw({"scene": 1, "point": (0.999, 1.0)})
    assert clicked.size == picture.size and "% of the picture" in words and "at your click" in words
    scene = draw.scenes[0]
    assert scene.page.thing_masks[0][int(scene.inside(0)[1]), int(scene.inside(0)[0])]
    assert len(draw.good_clicks(2)) == 2 and all(0 <= v < 1 for spot in draw.good_clicks(2) for v in spot)
    masks = torch.zeros(3, *scene.original, dtype=torch.bool)
    assert views.three_ways(scene, masks, (3, 4), (1, 1, 9, 9), "red kite").width == 1200
    rows = views.word_rows([scene], [["kite", "sky"]], [torch.randn(2, *scene.original)])
    assert rows.width == 1200
