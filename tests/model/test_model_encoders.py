"""Attention of the encoders: no (P x P) scores in memory, fused kernels only, the library's numbers and gradients."""

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention
from small_models import SEG, images, row, small_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.clip import modeling_clip
from transformers.models.llama import modeling_llama

from glamm_mini.model import sam as grounding_encoder
from glamm_mini.model.sam import FusedAttention

HEADS, WIDTH = 2, 80  # ViT-H's width of a head


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor holds that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return out


def pair(side: int, kernel: bool = False, dtype=torch.float32):
    """The library's attention on a grid, and ours with the same weights; `kernel`: as a GPU would compute it."""
    torch.manual_seed(side)
    library = Attention(HEADS * WIDTH, HEADS, use_rel_pos=True, input_size=(side, side))
    with torch.no_grad():
        for p in library.parameters():
            p.normal_(0, 0.1)
    ours = FusedAttention(HEADS * WIDTH, HEADS, use_rel_pos=True, input_size=(side, side))
    ours.load_state_dict(library.state_dict())
    if kernel:
        ours.in_blocks = ours.in_one_kernel
    return library.to(dtype), ours.to(dtype)


@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("scores", [40, 500, 2**20])
def test_every_way_equals_the_library(kernel, scores, monkeypatch):
    """40 scores at once are less than two queries' 36 each; 500 are no whole head; 2**20 are all heads."""
    monkeypatch.setattr(grounding_encoder, "SCORES_AT_ONCE", scores)
    library, ours = pair(6, kernel)
    x = torch.randn(3, 6, 6, HEADS * WIDTH)
    got, expected = ours(x), library(x)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    got.square().mean().backward()
    expected.square().mean().backward()
    for (name, a), b in zip(ours.named_parameters(), library.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [False, True])
def test_half_precision_is_as_good_as_the_librarys(dtype, kernel):
    library, ours = pair(7, kernel, dtype)
    x = torch.randn(2, 7, 7, HEADS * WIDTH, dtype=dtype)
    with torch.no_grad():
        exact = library.float()(x.float())
        theirs = (library.to(dtype)(x).float() - exact).abs().max()
        mine = (ours(x).float() - exact).abs().max()
    assert ours(x).dtype == dtype and mine <= 1.5 * theirs


def test_scores_are_never_whole_in_memory():
    library, ours = pair(40)
    x = torch.randn(1, 40, 40, HEADS * WIDTH)
    with torch.no_grad(), Largest() as plain:
        library(x)
    with torch.no_grad(), Largest() as blocks:
        ours(x)
    assert plain.numbers == HEADS * 40**4
    assert blocks.numbers <= grounding_encoder.SCORES_AT_ONCE < plain.numbers / 4


@pytest.mark.parametrize("side", [5, 14])
def test_one_kernel_takes_widths_that_flash_attention_takes(side):
    _, ours = pair(side, kernel=True)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert ours(torch.randn(1, side, side, HEADS * WIDTH)).isfinite().all()  # a RuntimeError without a kernel


def test_no_norm_of_the_grounding_encoder_reads_scattered_channels():
    model, seen = small_model(), []
    for block in model.grounding_encoder.vit.blocks:
        block.norm1.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    with torch.no_grad():
        model.grounding_encoder(images(2)["grounding_images"])
    assert seen == [True, True]


def test_clip_and_llama_never_attend_eagerly(monkeypatch):
    def eager(*args, **kwargs):
        raise AssertionError("eager attention")

    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(modeling_clip, "eager_attention_forward", eager)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", eager)
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    model = small_model()
    image = images(1)
    with torch.no_grad():
        features = model.encode_images(image["global_images"])
        assert len(calls) == model.config.vision.num_hidden_layers
        model(row(5, "seg")[None], image_features=features)
        assert len(calls) == model.config.vision.num_hidden_layers + model.config.text.num_hidden_layers
        segments = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2]])
        model(row(5, SEG, 6, SEG)[None], segment_ids=segments, image_features=features)
    clip = model.global_encoder.clip
    assert clip.config._attn_implementation == model.language_model.config._attn_implementation == "sdpa"
    clip.set_attn_implementation("eager")
    with pytest.raises(AssertionError, match="eager attention"):
        model.encode_images(image["global_images"])
