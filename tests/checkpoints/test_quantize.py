"""A language model in 4 or 8 bits: smaller weights, nearly the same states; clear errors without the library."""

import importlib.util
import sys

import pytest
import torch
from small_models import images, row, small_config, small_model

import glamm_mini
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.placement import KINDS
from glamm_mini.checkpoints.save import save_model

WIDE = small_config().text.to_dict() | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes (the extra quantize) is not installed"
)


def states(model):
    pictures = images(1)
    with torch.no_grad():
        features = model.encode_images(pictures["global_images"], pictures["grounding_images"])
        return model(row(5, 6, 7, "seg")[None], image_features=features).last_hidden


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
def test_layers_shrink_and_states_stay_close(wide, kind):
    folder, whole = wide
    model, processor = load_model(folder, quantize=kind)
    layers = model.language_model.model.layers
    assert layers[0].self_attn.q_proj.weight.dtype == (torch.uint8 if kind == "4bit" else torch.int8)
    assert all(type(m).__module__.startswith("bitsandbytes") for m in layers.modules() if hasattr(m, "in_features"))
    others = [m for n, m in model.named_modules() if hasattr(m, "in_features") and ".layers." not in n]
    assert all(type(m) is torch.nn.Linear for m in others) and model.language_model.lm_head in others
    others = [p for n, p in model.named_parameters() if not n.startswith("language_model.model.layers.")]
    assert {p.dtype for p in others} == {torch.float32}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    before, after = states(whole), states(model)
    assert torch.nn.functional.cosine_similarity(before, after, dim=-1).min() > (0.9 if kind == "4bit" else 0.99)
    assert not torch.equal(before, after)
    assert model.load_report.parts["language_model"].made == {kind, "float32"}
    with pytest.raises(ValueError, match="quantized"):
        save_model(folder, model, processor)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_the_library_alone(wide, kind):
    """Layer by layer from the same numbers: nf4 with scales of scales, or int8."""
    import bitsandbytes as bnb

    folder, whole = wide
    model, _ = load_model(folder, quantize=kind)
    for name, layer in whole.language_model.model.layers.named_modules():
        if isinstance(layer, torch.nn.Linear):
            weight = layer.weight.data.clone()
            if kind == "4bit":
                alone = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cpu")
            else:
                alone = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False).to("cpu")
            assert torch.equal(model.language_model.model.layers.get_submodule(name).weight, alone), name


@needs_library
def test_transformers_own_settings_are_taken(wide):
    from transformers import BitsAndBytesConfig

    from glamm_mini import GlammForConditionalGeneration

    model = GlammForConditionalGeneration.from_pretrained(
        wide[0], quantization_config=BitsAndBytesConfig(load_in_4bit=True), dtype=torch.bfloat16, device_map="auto"
    )
    assert model.language_model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert type(model.lp_projector[0]) is torch.nn.Linear and model.lp_projector[0].weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="BitsAndBytesConfig"):
        GlammForConditionalGeneration.from_pretrained(wide[0], quantization_config={"load_in_4bit": True})


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_writes_answers(wide, kind):
    model, processor = load_model(wide[0], "bfloat16", quantize=kind, device="auto" if kind == "8bit" else "cpu")
    batch = processor.prompts([[("What is a kite", None)]], has_image=False)
    with torch.inference_mode():
        out = model.eval().generate(**batch, max_new_tokens=3)
    assert out.sequences.shape == (1, 3) and out.last_hidden.dtype == torch.bfloat16


@needs_library
def test_a_model_without_wide_layers_is_left_alone():
    with pytest.raises(ValueError, match="finds no layer"):
        glamm_mini.load("tiny", quantize="4bit")


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="2bit"):
        glamm_mini.load("tiny", quantize="2bit")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'glamm-mini\[quantize\]'"):
        glamm_mini.load("tiny", quantize="4bit")
