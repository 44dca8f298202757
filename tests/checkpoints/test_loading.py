"""Loading by name: what is there comes back as asked for, or one error says what is missing, damaged or foreign."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glamm_mini.checkpoints.load import load_model, load_weights
from glamm_mini.storybook.language.tokenizer import build_wordpiece

WEIGHTS = "model.safetensors"


def assert_same(model, other):
    own, its = model.state_dict(), other.state_dict()
    assert own.keys() == its.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, its[name]), name


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}.* missing|{name} is missing"):
        load_model(saved)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_a_clear_error(saved, name, keep):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)


def test_an_unknown_name_or_type_is_a_clear_error(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no bundled checkpoint 'nothing'"):
        load_model("nothing")
    with pytest.raises(FileNotFoundError, match="no bundled checkpoint"):
        load_model(tmp_path / "none" / "here")
    for dtype in ("int8", "float31", "Tensor", "nn"):
        with pytest.raises(ValueError, match=f"dtype '{dtype}' is unknown"):
            load_model(saved, dtype=dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16, "float32", None])
def test_a_model_is_loaded_in_the_type_asked_for(saved, dtype):
    expected = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32")
    assert load_model(saved, dtype=dtype)[0].dtype == expected


def test_foreign_weights_are_listed(made, saved):
    state = load_file(saved / WEIGHTS)
    first, second, *_ = sorted(state)
    for changed, words in (
        ({k: v for k, v in state.items() if k != first}, rf"1 missing \({first}\)"),
        (state | {"adapter.weight": torch.zeros(2)}, r"1 unexpected \(adapter.weight in model"),
        (state | {second: torch.zeros(3, 3, 3)}, rf"1 of another shape \({second} in model"),
    ):
        save_file(changed, saved / WEIGHTS)
        with pytest.raises(ValueError, match=words):
            load_model(saved)


def test_weights_of_one_module_are_loaded_whole_or_not_at_all(tmp_path):
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "a.safetensors")
    layer = nn.Linear(3, 2)
    load_weights(layer, tmp_path / "a.safetensors")
    assert (layer.weight == 1).all() and (layer.bias == 1).all()
    narrow = nn.Linear(3, 2, bias=False)
    before = narrow.weight.clone()
    with pytest.raises(ValueError, match=r"a.safetensors does not fit: 1 unexpected .bias"):
        load_weights(narrow, tmp_path / "a.safetensors")
    assert torch.equal(narrow.weight, before)
    with pytest.raises(FileNotFoundError, match="there is no file .*b.safetensors"):
        load_weights(layer, tmp_path / "b.safetensors")


def test_loading_draws_no_random_numbers(saved):
    before = torch.random.get_rng_state()
    load_model(saved)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_folder_can_be_copied(made, saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(saved)
    assert_same(load_model(copy)[0], made[0])


def test_a_language_models_folder_is_named_as_such(saved, tmp_path):
    """As the hub hands them out: its own type, weights in shards or in one file, a tokenizer without our tokens."""
    for k, weights in enumerate(("model-00001-of-00002.safetensors", WEIGHTS)):
        folder = tmp_path / f"llm{k}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
        (folder / weights).write_bytes((saved / WEIGHTS).read_bytes())
        shutil.copy(saved / "tokenizer.json", folder)
        with pytest.raises(ValueError, match="llama"):
            load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "blip"}, "blip"),
        ({"model_type": None}, "None"),
        ({"mode": "other"}, "mode is 'other'"),
        ({"text": {"hidden_size": 33, "num_attention_heads": 4}}, "hidden"),
        ({"region": {"colour": 1}}, "colour"),
        ({"region": {"groups": 3, "channels": 16}}, "multiple of"),
        ({"region": {"scales": [1] * 9}}, "hidden states"),
    ],
)
def test_a_configuration_of_another_kind_is_named(saved, change, words):
    config = json.loads((saved / "config.json").read_text())
    for name, value in change.items():
        config[name] = config[name] | value if isinstance(value, dict) else value
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)


def test_a_tokenizer_of_another_model_is_named(saved, tmp_path):
    big = build_wordpiece([f"word{k}" for k in range(300)])
    big.save_pretrained(saved)
    with pytest.raises(ValueError, match="the tokenizer knows .* tokens, the model .*is of another model"):
        load_model(saved)
    plain = json.loads((saved / "tokenizer.json").read_text())
    plain["added_tokens"] = []
    (saved / "tokenizer.json").write_text(json.dumps(plain))
    (saved / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="each needs an id of its own"):
        load_model(saved)


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle 2", "pickle 4"])
def test_a_pickle_under_another_name_is_refused_and_never_run(saved, tmp_path, form):
    trap = Trap(tmp_path / "sprung")
    if form.endswith("torch"):
        torch.save({"a": trap}, saved / WEIGHTS, _use_new_zipfile_serialization=form == "torch")
    else:
        (saved / WEIGHTS).write_bytes(pickle.dumps({"a": trap}, protocol=int(form[-1])))
    with pytest.raises(ValueError, match="model.safetensors"):
        load_model(saved)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", [None, "", "  "])
def test_no_name_is_refused(name):
    with pytest.raises(ValueError, match="no model was named"):
        load_model(name)


def test_a_file_is_no_checkpoint(saved):
    with pytest.raises(FileNotFoundError, match="is a file; give the folder that holds"):
        load_model(saved / WEIGHTS)


def test_a_name_of_the_hub_is_looked_up_there(made, saved, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, allow_patterns, **_):
        asked.append((name, set(allow_patterns)))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(load_model("someone/a-glamm")[0], made[0])
    assert asked == [("someone/a-glamm", {"*.json", "*.safetensors", "tokenizer.model"})]


def test_a_name_that_neither_disk_nor_hub_has_is_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder someone/a-glamm here, and the hub gave no model"):
        load_model("someone/a-glamm")  # the tests run without a network


def test_a_slip_in_a_folders_name_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    from glamm_mini.checkpoints.files import find_folder

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for find in (load_model, find_folder):
        with pytest.raises(FileNotFoundError, match="no folder runs/mime, although runs is a folder here.*not asked"):
            find("runs/mime")
    assert not asked
