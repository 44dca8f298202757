"""The pixel decoder: position codes in both modes and every precision, and masks by the hundred."""

import pytest
import torch
from small_models import small_model

from glamm_mini.checks.parity import weights
from glamm_mini.model import sam as module
from glamm_mini.model.sam import PixelDecoder

MATRIX = "model.grounding_encoder.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def decoder_of(mode: str, dtype=torch.float32) -> PixelDecoder:
    """A decoder of the small case's grid, 16 x 16, and of its Gaussian matrix."""
    grounding = dict(small_model().config.grounding.__dict__, image_size=256, patch_size=16, prompt_dim=64)
    decoder = small_model(mode=mode, grounding=grounding).pixel_decoder
    matrix = torch.from_numpy(weights.param(MATRIX, (2, 32)))
    decoder.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.copy_(matrix)
    return decoder.to(dtype)


@pytest.mark.parametrize("mode", ["official", "fixed"])
def test_positions_in_float32_are_the_librarys(mode):
    decoder = decoder_of(mode)
    assert torch.equal(decoder.positions(), decoder.prompt_encoder.get_dense_pe())


@pytest.mark.parametrize("mode", ["official", "fixed"])
def test_autocast_leaves_positions_alone(mode):
    """It would round the product whose sine is taken, so that training and answering would differ."""
    decoder = decoder_of(mode)
    with torch.autocast("cpu", torch.bfloat16):
        positions = decoder.positions()
    assert torch.equal(positions, decoder.prompt_encoder.get_dense_pe())


def test_official_positions_in_bfloat16_are_as_far_off_as_the_official_ones():
    """The released code's are up to 0.072 away from its float32 ones on this grid, 0.006 on average."""
    exact = decoder_of("official").positions()
    code = decoder_of("official", torch.bfloat16).positions()
    assert code.dtype == torch.bfloat16
    away = (code.float() - exact).abs()
    assert float(away.max()) == pytest.approx(0.072, abs=1e-3) and float(away.mean()) == pytest.approx(0.006, abs=5e-4)


@pytest.mark.parametrize("dtype, near", [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_fixed_positions_are_rounded_once(dtype, near):
    decoder = decoder_of("fixed", dtype)
    code = decoder.positions()
    assert code.dtype == dtype
    exact = decoder.float().positions()  # of the rounded matrix
    assert float((code.float() - exact).abs().max()) < near


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_masks_in_turns_are_the_masks_in_one_call(at_once, monkeypatch):
    model = small_model()
    decoder, c = model.pixel_decoder, model.config.grounding
    torch.manual_seed(2)
    images, prompts = torch.randn(2, c.prompt_dim, c.grid, c.grid), torch.randn(5, 1, c.prompt_dim)
    which, sizes = torch.tensor([0, 1, 1, 0, 1]), []
    decoder.mask_decoder.register_forward_hook(lambda module, args, out: sizes.append(len(out[0])))
    with torch.no_grad():
        masks, quality = decoder(images, prompts, which)
        decoder.masks_at_once = at_once
        again, same = decoder(images, prompts, which)
        none, _ = decoder(images, prompts[:0], which[:0])
    assert sizes == [5] + [min(at_once, 5 - k) for k in range(0, 5, at_once)] + [0]
    torch.testing.assert_close(again, masks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(same, quality, atol=1e-5, rtol=1e-5)
    assert none.shape == (0, *masks.shape[1:])


def test_as_many_masks_at_once_as_memory_allows(monkeypatch):
    c = small_model().config.grounding
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 3 * c.prompt_dim * c.grid**2 + 1)
    assert small_model().pixel_decoder.masks_at_once == 3
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 1)
    assert small_model().pixel_decoder.masks_at_once == 1
