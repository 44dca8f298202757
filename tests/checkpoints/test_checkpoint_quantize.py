"""A language model in 4 or 8 bits: smaller weights, nearly the same states; clear errors without the library."""

import copy
import importlib.util
import sys

import pytest
import torch
from small_models import images, row, small_config, small_model

import glamm_mini
from glamm_mini.checkpoints.folder import load_model, save_model
from glamm_mini.checkpoints.quantize import KINDS, quantize

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
    quantize(model, kind)
    model.to("cpu")
    layer = model.language_model.model.layers[0].self_attn.q_proj
    assert layer.weight.dtype == (torch.uint8 if kind == "4bit" else torch.int8)
    assert type(model.language_model.lm_head) is torch.nn.Linear and model.dtype == torch.float32
    after = states(model)
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).min() > (0.9 if kind == "4bit" else 0.99)
    assert not torch.equal(before, after)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A saved model whose language model is wide enough, and the model."""
    from glamm_mini.processing.processor import GlammProcessor
    from glamm_mini.storybook.language.tokenizer import build_wordpiece

    tokenizer = build_wordpiece("a kite What is".split())
    text = WIDE | {"vocab_size": len(tokenizer)}
    processor = GlammProcessor(small_config(text=text), tokenizer)
    model = small_model(text=text, tokens=processor.config.tokens)
    return save_model(tmp_path_factory.mktemp("wide") / "model", model, processor), model


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_quantized_as_they_are_read(wide, kind, monkeypatch):
    """A layer at a time: when one is quantized, no other language layer is there in full."""
    from glamm_mini.checkpoints import fill as module

    folder, expected = wide
    loaded, seen, quantized = [], [], module.quantized

    def look(layer, kind):
        own = loaded[0].language_model.model.modules()
        seen.append(sum(type(m) is torch.nn.Linear and not m.weight.is_meta for m in own))
        return quantized(layer, kind)

    monkeypatch.setattr(module, "quantized", look)
    monkeypatch.setattr(module, "put", lambda model, *rest, put=module.put: (loaded.append(model), put(model, *rest)))
    model, _ = load_model(folder, quantize=kind)
    assert seen == [1] * 14  # seven linear layers in each of two blocks
    assert model.load_report.parts["language_model"].made == {kind, "float32"}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    whole = copy.deepcopy(expected)
    quantize(whole, kind)
    torch.testing.assert_close(states(model.eval()), states(whole.to("cpu")))
    with pytest.raises(ValueError, match="quantized or offloaded model cannot be saved"):
        save_model(folder, model, None)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_writes_answers(wide, kind):
    model, processor = load_model(wide[0], "bfloat16", quantize=kind, device="auto" if kind == "8bit" else "cpu")
    batch = processor.prompts([[("What is a kite", None)]], has_image=False)
    with torch.inference_mode():
        out = model.eval().generate(**batch, max_new_tokens=3)
    assert out.sequences.shape == (1, 3) and out.last_hidden.dtype == torch.bfloat16


@needs_library
def test_a_model_without_wide_layers_is_left_alone():
    with pytest.raises(ValueError, match="finds no layer .*leave quantize out"):
        quantize(small_model(), "4bit")


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="quantize is '2bit'; expected None, '4bit' or '8bit'"):
        glamm_mini.load("tiny", quantize="2bit")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glamm-mini\[quantize\]'"):
        glamm_mini.load("tiny", quantize="4bit")
