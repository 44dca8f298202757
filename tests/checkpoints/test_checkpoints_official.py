"""The official state dict and ours: every name, every shape, at the small size and at 7B."""

import json

import pytest
import torch

from glamm_mini import paths
from glamm_mini.checkpoints.official import load_official_state, official_state, official_to_ours, ours_to_official
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration


@pytest.fixture(scope="module")
def manifest():
    return json.loads((paths.parity_folder() / "manifest_7b.json").read_text())["tensors"]


@pytest.fixture()
def model():
    with torch.device("meta"):
        return GlammForConditionalGeneration(GlammConfig.of_size("7b"))


@pytest.fixture()
def state(manifest):
    return {name: torch.empty(entry["shape"], device="meta") for name, entry in manifest.items()}


def test_every_tensor_of_the_7b_model_has_its_place(model, state):
    report = load_official_state(model, state)
    assert len(state) == 1360
    assert report.loaded == len(model.state_dict()) == 1327
    assert len(report.ignored) == 33 and not report.kept


def test_released_checkpoints_have_no_vision_tower(model, state, manifest):
    saved = {name: tensor for name, tensor in state.items() if manifest[name]["saved"]}
    assert len(saved) == 968
    with pytest.raises(ValueError, match="391 missing .*need_vision_tower=False"):
        load_official_state(model, saved)
    report = load_official_state(model, saved, need_vision_tower=False)
    assert len(report.kept) == 391 and all(name.startswith("global_encoder.clip.") for name in report.kept)


def test_one_error_names_all_that_does_not_fit(model, state):
    state["model.extra.weight"] = torch.empty(1, device="meta")
    state["model.norm.weight"] = torch.empty(7, device="meta")
    del state["model.text_hidden_fcs.0.2.bias"]
    with pytest.raises(ValueError) as error:
        load_official_state(model, state)
    text = str(error.value)
    assert "1 missing (model.text_hidden_fcs.0.2.bias)" in text
    assert "1 unexpected (model.extra.weight)" in text
    assert "1 of another shape (model.norm.weight is (7,), the model has (4096,))" in text


def test_lora_matrices_are_explained(model, state):
    state["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.empty(8, 4096, device="meta")
    with pytest.raises(ValueError, match="merge them first"):
        load_official_state(model, state)


def test_names_go_there_and_back(model):
    ours = list(model.state_dict())
    assert [official_to_ours(ours_to_official(name)) for name in ours] == ours
    assert len({ours_to_official(name) for name in ours}) == len(ours)


def test_computed_buffers_are_known():
    assert official_to_ours("model.layers.3.self_attn.rotary_emb.inv_freq") is None
    assert official_to_ours("model.grounding_encoder.pixel_mean") is None
    with pytest.raises(ValueError, match="no name of an official"):
        official_to_ours("model.nonsense")
    with pytest.raises(ValueError, match="no state-dict name"):
        ours_to_official("nonsense")


def test_written_back_it_is_the_official_state_dict(model, manifest):
    state = official_state(model)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: entry["shape"] for name, entry in manifest.items()
    }
    frequencies = state["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert frequencies[0] == 1 and float(frequencies[1]) == pytest.approx(10000 ** (-2 / 128))


def test_values_arrive(tmp_path):
    """Two small models: what one writes under official names makes the other equal to it."""
    from small_models import small_model

    a, b = small_model(seed=0), small_model(seed=1)
    load_official_state(b, official_state(a))
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_a_refused_checkpoint_changes_nothing():
    from small_models import small_model

    a, b = small_model(seed=0), small_model(seed=1)
    before = {name: tensor.clone() for name, tensor in b.state_dict().items()}
    state = official_state(a)
    state.pop("lm_head.weight")
    with pytest.raises(ValueError, match="1 missing"):
        load_official_state(b, state)
    assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in before.items())
