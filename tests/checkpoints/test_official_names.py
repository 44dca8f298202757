"""The official state dict and ours: every name, every shape, at the small size and at 7B."""

import json

import pytest
import torch

from glamm_mini import paths
from glamm_mini.checkpoints.official import computed_buffers, official_to_ours, ours_to_official, saved_officially
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration


@pytest.fixture(scope="module")
def manifest():
    return json.loads((paths.parity_folder() / "manifest_7b.json").read_text())["tensors"]


@pytest.fixture()
def model():
    with torch.device("meta"):
        return GlammForConditionalGeneration(GlammConfig.of_size("7b"))


def test_names_go_there_and_back(model):
    ours = list(model.state_dict())
    assert [official_to_ours(ours_to_official(name)) for name in ours] == ours
    assert len({ours_to_official(name) for name in ours}) == len(ours)


def test_computed_buffers_are_known():
    assert official_to_ours("model.layers.3.self_attn.rotary_emb.inv_freq") is None
    assert official_to_ours("model.grounding_encoder.pixel_mean") is None
    with pytest.raises(ValueError, match="model.nonsense"):
        official_to_ours("model.nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        ours_to_official("nonsense")


def test_every_tensor_of_the_7b_model_has_its_place(model, manifest):
    """Shapes, and what the old code stores beside them, frequencies among it."""
    own = {ours_to_official(name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    computed = {name: list(tensor.shape) for name, tensor in computed_buffers(model.config).items()}
    positions = [name for name in manifest if name.endswith("position_ids")]
    assert len(own) == 1327 and len(manifest) == 1360 and len(computed) == 32 and len(positions) == 1
    expected = {name: entry["shape"] for name, entry in manifest.items() if name not in positions}
    assert own | computed == expected
    frequencies = computed_buffers(model.config)["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert frequencies[0] == 1 and float(frequencies[1]) == pytest.approx(10000 ** (-2 / 128))
    saved = {name for name, entry in manifest.items() if entry["saved"]}
    assert saved == {name for name in manifest if saved_officially(name)} and len(saved) == 968
