"""A language model in 4 or 8 bits: smaller weights, nearly the same states; clear errors without the library."""

import importlib.util
import sys

import pytest
import torch
from small_models import images, row, small_config, small_model

import glamm_mini
from glamm_mini.checkpoints.quantise import KINDS, quantise

WIDE = small_config().text.to_dict() | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (the extra quantize) is not installed"
)


def states(model):
    pictures = images(1)
    with torch.no_grad():
        features = model.encode_images(pictures["global_images"], pictures["grounding_images"])
        return model(row(5, 6, 7, "seg")[None], image_features=features).last_hidden


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_layers_shrink_and_states_stay_close(kind):
    model = small_model(text=WIDE)
    before = states(model)
    quantise(model, kind)
    model.to("cpu")
    layer = model.language_model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == (torch.uint8 if kind == "4bit" else torch.int8)
    assert type(model.language_model.lm_head) is torch.nn.Linear and model.dtype == torch.float32
    after = states(model)
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).min() > (0.9 if kind == "4bit" else 0.99)
    assert not torch.equal(before, after)


@needs_library
def test_a_model_without_wide_layers_is_left_alone():
    with pytest.raises(ValueError, match="finds no layer .*leave quantize out"):
        quantise(small_model(), "4bit")


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="quantize is '2bit'; expected None, '4bit' or '8bit'"):
        glamm_mini.load("tiny", quantize="2bit")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glamm-mini\[quantize\]'"):
        glamm_mini.load("tiny", quantize="4bit")
