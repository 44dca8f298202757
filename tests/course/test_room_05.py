"""What notebook 05 builds: the encoder equals segment-anything's, costs are counted right, graders see near misses."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling import image_encoder as library
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from glamm_mini.course.room_05 import grader as grader
from glamm_mini.course.room_05 import pictures as views
from glamm_mini.course.room_05.lesson import (
    attention_cost,
    cut_windows,
    encoder_cost,
    grid_attention,
    join_windows,
    padded_side,
    position_scores,
    relative_table,
    sam_neck,
    sam_states,
    score_bytes,
    through_grid,
    window_block,
)
from glamm_mini.model.config import GlammConfig, GroundingConfig
from glamm_mini.model.sam import GroundingImageEncoder

NEAR = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def noisy(module):
    """Random weights everywhere: positions are zero at the start of a training, and would test nothing."""
    torch.manual_seed(5)
    for name, parameter in module.named_parameters():
        nn.init.normal_(parameter, std=0.3 if "pos" in name or "bias" in name else 0.15)
    return module.eval()


@pytest.mark.parametrize(("h", "w", "side"), [(9, 9, 4), (8, 12, 4), (5, 13, 7), (3, 2, 5)])
def test_windows_are_the_librarys(h, w, side):
    x = torch.randn(2, h, w, 3)
    windows = cut_windows(x, side)
    theirs, _ = library.window_partition(x, side)
    assert torch.equal(windows, theirs)
    assert torch.equal(join_windows(windows, h, w), x)


@pytest.mark.parametrize("length", [9, 27, 5])
def test_relative_positions_are_the_librarys(length):
    table, columns, q = torch.randn(length, 6), torch.randn(2 * 4 - 1, 6), torch.randn(2, 3, 5, 4, 6)
    torch.testing.assert_close(relative_table(table, 5), library.get_rel_pos(5, 5, table), **NEAR)
    zeros = torch.zeros(6, 20, 20)
    flat = q.flatten(0, 1).flatten(1, 2)  # (B * heads, P, d)
    theirs = library.add_decomposed_rel_pos(zeros, flat, table, columns, (5, 4), (5, 4))
    torch.testing.assert_close(position_scores(q, table, columns).flatten(0, 1), theirs, **NEAR)


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("positions", [True, False])
def test_attention_and_blocks_are_the_librarys(window, positions):
    block = noisy(library.Block(12, 3, use_rel_pos=positions, window_size=window, input_size=(6, 6)))
    x, near = torch.randn(2, 6, 6, 12), torch.randn(3, 4 if window else 6, 4 if window else 6, 12)
    out, weights = grid_attention(near, block.attn)
    torch.testing.assert_close(out, block.attn(near), **NEAR)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), **NEAR)
    torch.testing.assert_close(window_block(x, block), block(x), **NEAR)


def test_the_whole_encoder_is_the_librarys_and_the_packages():
    grounding = GroundingConfig(
        image_size=96, patch_size=8, hidden=24, depth=3, heads=2, window=5, global_attention=(2,), prompt_dim=16
    )
    config = GlammConfig.of_size("tiny")
    config.grounding = grounding
    encoder = noisy(GroundingImageEncoder(config))
    plain = ImageEncoderViT(
        96, 8, 3, 24, 3, 2, out_chans=16, norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
        use_rel_pos=True, window_size=5, global_attn_indexes=(2,),
    )  # fmt: skip
    plain.load_state_dict(encoder.vit.state_dict())
    images = torch.randn(2, 3, 96, 96)
    states = sam_states(images, plain)
    assert len(states) == 4 and states[-1].shape == (2, 12, 12, 24)
    mine = sam_neck(states[-1], plain.neck)
    torch.testing.assert_close(mine, plain(images), **NEAR)
    torch.testing.assert_close(mine, encoder(images), **NEAR)
    with FlopCounterMode(display=False) as counter:
        plain(images[:1])
    assert counter.get_total_flops() == 2 * encoder_cost(grounding)


@pytest.mark.parametrize(("grid", "window"), [(8, 0), (9, 4), (8, 4)])
def test_costs_are_what_torch_counts(grid, window):
    block = library.Block(16, 2, use_rel_pos=True, window_size=window, input_size=(grid, grid))
    with FlopCounterMode(display=False) as counter:
        block(torch.randn(1, grid, grid, 16))
    assert counter.get_total_flops() / 2 == sum(attention_cost(grid, 16, window)) + 8 * grid**2 * 16**2
    assert padded_side(grid, window) % (window or 1) == 0 <= padded_side(grid, window) - grid < (window or 1)
    assert attention_cost(grid, 16, window, positions=False)[2] == 0


def test_sam_at_1024_pixels_is_what_it_is():
    official = GlammConfig.of_size("7b").grounding
    assert official.grid == 64 and padded_side(64, 14) == 70
    assert score_bytes(64, 16) == 4096**2 * 16 * 4 and score_bytes(64, 16, 14) == 4 * 16 * 25 * 196**2
    all_global = dataclasses.replace(official, global_attention=tuple(range(official.depth)))
    assert 1.2 < encoder_cost(all_global) / encoder_cost(official) < 1.5


def test_a_coarser_grid_keeps_less_of_a_mask():
    y, x = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
    mask = (y - 40) ** 2 / 400 + (x - 70) ** 2 / 900 < 1
    kept = [through_grid(mask, side) for side in (16, 32, 128)]
    assert all(rough.shape == mask.shape and rough.dtype == torch.bool for rough in kept)
    ious = [float((rough & mask).sum() / (rough | mask).sum()) for rough in kept]
    assert 0.7 < ious[0] < ious[1] < ious[2] == 1


def count(h, w, side):
    rows, columns = -(-h // side), -(-w // side)
    return rows * columns, 1 - h * w / (rows * columns * side**2)


def real(h, w, side):
    return cut_windows(torch.ones(1, h, w, 1), side).flatten(1) > 0


def bias(table, side):
    place = torch.arange(side * side)
    down, across = (p[:, None] - p + side - 1 for p in (place // side, place % side))
    return table[down, across]


def test_graders_see_what_is_nearly_right():
    assert grader.grade_count(count) and grader.grade_real(real) and grader.grade_pair_bias(bias)
    assert "number of windows" in grader.grade_count(lambda h, w, s: ((h // s) * (w // s), 0.0)).message
    assert "share of padding" in grader.grade_count(lambda h, w, s: (count(h, w, s)[0], 0.0)).message
    assert "expected a tuple" in grader.grade_count(lambda h, w, s: count(h, w, s)[0]).message
    assert "expected dtype" in grader.grade_real(lambda h, w, s: real(h, w, s).float()).message
    assert "expected shape" in grader.grade_real(lambda h, w, s: real(h, w, s).unflatten(1, (s, s))).message
    assert "element" in grader.grade_real(lambda h, w, s: real(w, h, s).reshape(len(real(h, w, s)), -1)).message
    assert "element" in grader.grade_pair_bias(lambda table, side: bias(table, side).T).message
    assert not grader.grade_pair_bias(lambda table, side: bias(table.T, side))
    assert "not written yet" in grader.grade_pair_bias(stub).message


def stub(table, side):
    raise NotImplementedError


def test_views_show_windows_padding_and_costs():
    square = Image.new("RGB", (100, 100), (40, 90, 60))
    plain = views.windows_picture(square, 16, width=320)
    cut = views.windows_picture(square, 16, 6, width=320)
    assert plain.width == 320 and cut.width == 17 * 18
    assert views.ORANGE in {cut.getpixel((1, 50)), cut.getpixel((6 * 17, 50))}
    assert cut.getpixel((cut.width - 20, cut.height - 40)) in (views.GROUND, views.HATCH)
    draw = views.windows_view(square, GlammConfig.of_size("7b").grounding)
    picture, words = draw({"window": 14, "pixels": 1024})
    assert "25 windows of 14 x 14: 70 x 70, 16% padding" in words and "(global 1,073.7)" in words
    assert "0% padding" in draw({"window": 16, "pixels": 1024})[1] and picture.width == 630


def test_maps_and_close_ups():
    values = np.arange(12.0).reshape(3, 4)
    drawn = views.number_map(values, marked=(1, 2), window=2, width=80)
    assert drawn.size == (80, 60) and drawn.getpixel((50, 30)) == views.ORANGE
    assert drawn.getpixel((70, 50)) == views.BLUE
    assert views.number_map(np.ones((2, 2), bool), width=80).getpixel((40, 20)) == views.BLUE
    mask = np.zeros((60, 90), bool)
    mask[10:20, 70:88] = True
    shown = views.close_up(np.full((60, 90, 3), 255, np.uint8), mask, mask, width=120)
    assert shown.size == (120, 120) and (np.asarray(shown) == views.BLUE).all(-1).any()
