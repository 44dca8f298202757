"""What is saved comes back the same; what a configuration promises about memory is true."""

import pytest
import torch
from small_models import images, row, small_config, small_model

from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration


@pytest.mark.parametrize("tied", [False, True])
def test_saved_model_comes_back_exactly(tmp_path, processor, tied):
    text = processor.config.text.to_dict() | {"tie_word_embeddings": tied}
    model = small_model(text=text, tokens=processor.config.tokens, mode="official", seg_state="at")
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    weights = [f.name for f in tmp_path.iterdir() if f.suffix not in (".json",)]
    assert weights == ["model.safetensors"]
    back = GlammForConditionalGeneration.from_pretrained(tmp_path)
    own, other = model.state_dict(), back.state_dict()
    assert set(own) == set(other)
    for name, tensor in own.items():
        assert torch.equal(tensor, other[name]), name
    assert not back.training
    ids, batch = row(5, processor.config.tokens.seg)[None], images(1)
    with torch.no_grad():
        a, b = model(ids, **batch), back(ids, **batch)
    # The weights are equal bit by bit; where they lie in memory may still change the last bit of a product.
    torch.testing.assert_close(a.logits, b.logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(a.mask_logits[0], b.mask_logits[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("config", [small_config(), GlammConfig.of_size("tiny"), GlammConfig.of_size("7b")])
def test_saved_configuration_comes_back_exactly(tmp_path, config):
    config.save_pretrained(tmp_path)
    back = GlammConfig.from_pretrained(tmp_path)
    for part in ("region", "grounding", "losses", "prompt", "tokens", "mode", "seg_state", "size_name", "level_step"):
        assert getattr(back, part) == getattr(config, part), part
    assert back.region_layers == config.region_layers
    ignored = ("transformers_version", "_name_or_path")
    own, other = config.to_dict(), back.to_dict()
    assert {k: v for k, v in own.items() if k not in ignored} == {k: v for k, v in other.items() if k not in ignored}


def test_memory_report_counts_a_real_model():
    config = GlammConfig.of_size("tiny")
    model = GlammForConditionalGeneration(config)
    report = config.memory_report()
    for name, part in model.named_children():
        assert report[name]["millions"] == pytest.approx(sum(p.numel() for p in part.parameters()) / 1e6)
    total = sum(p.numel() for p in model.parameters())
    assert report["total"]["millions"] == pytest.approx(total / 1e6)
    assert report["total"]["megabytes"] == pytest.approx(4 * total / 1e6)
    assert report["training"]["megabytes"] == pytest.approx(16 * total / 1e6)
    assert config.memory_report(dtype="bfloat16", trained="none")["total"]["megabytes"] == pytest.approx(
        2 * total / 1e6
    )


def test_memory_report_of_the_official_size():
    """Counts of the official model; its positional-encoding matrix (2 x 128) is a buffer and not counted."""
    report = GlammConfig.of_size("7b").memory_report(trained="none")
    assert report["total"]["millions"] == pytest.approx(8021.0, abs=0.05)
    expected = {"global_encoder": 303.5, "vl_projector": 21.0, "region_encoder": 299.1, "lp_projector": 17.8}
    expected |= {"grounding_encoder": 637.0, "pixel_decoder": 4.06, "language_model": 6476.3 + 2 * 131.1}
    for part, millions in expected.items():
        assert report[part]["millions"] == pytest.approx(millions, abs=0.1), part
