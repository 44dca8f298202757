"""A checkpoint folder: what was saved comes back bit by bit, or an error says what is missing, damaged or foreign."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_config, small_model
from torch import nn

from glamm_mini.checkpoints import folder as module
from glamm_mini.checkpoints.folder import WEIGHTS, load_model, load_weights, save_model
from glamm_mini.processor import GlammProcessor
from glamm_mini.text.wordpiece import build_wordpiece

TURNS = [("What is a kite <bbox>?", "<p> a kite </p> [SEG].")]


@pytest.fixture(scope="module")
def made():
    torch.set_num_threads(1)
    tokenizer = build_wordpiece("a kite What is".split())
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    processor = GlammProcessor(small_config(text=text, mode="fixed"), tokenizer)
    return small_model(text=text, tokens=processor.config.tokens, seg_state="at"), processor


@pytest.fixture
def saved(made, tmp_path):
    return save_model(tmp_path / "runs" / "model", *made)


def assert_same(model, other):
    own, its = model.state_dict(), other.state_dict()
    assert own.keys() == its.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, its[name]), name


def others(folder):
    """What lies beside the folder: nothing may be left there."""
    return sorted(p.name for p in folder.parent.iterdir() if p != folder)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back_bit_by_bit(made, saved):
    model, processor = load_model(saved)
    assert_same(model, made[0])
    assert model.config.seg_state == "at" and model.config.tokens == made[0].config.tokens
    assert processor.encode(TURNS) == made[1].encode(TURNS)
    assert others(saved) == []
    assert {"config.json", "tokenizer.json", WEIGHTS} <= {p.name for p in saved.iterdir()}
    assert load_model(str(saved))[0].config.size_name == model.config.size_name


def test_weights_stored_in_bfloat16_halve_the_file_and_load_as_float32(made, saved):
    whole = (saved / WEIGHTS).stat().st_size
    save_model(saved, *made, dtype=torch.bfloat16)
    assert (saved / WEIGHTS).stat().st_size < 0.6 * whole
    model, _ = load_model(saved)
    own = made[0].state_dict()
    for name, tensor in model.state_dict().items():
        expected = own[name].to(torch.bfloat16).to(own[name].dtype) if own[name].is_floating_point() else own[name]
        assert tensor.dtype == own[name].dtype and torch.equal(tensor, expected), name


def test_saving_again_replaces_weights_and_keeps_the_card(made, saved):
    (saved / "model_card.md").write_text("what it is")
    (saved / "training.json").write_text("{}")
    (saved / "stale.bin").write_text("x")
    other = small_model(seed=1, text=made[0].config.text, tokens=made[0].config.tokens)
    save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], other)
    assert (saved / "model_card.md").read_text() == "what it is" and (saved / "training.json").exists()
    assert not (saved / "stale.bin").exists() and others(saved) == []


def fail(*_, **__):
    raise KeyboardInterrupt


def test_a_kill_while_weights_are_written_leaves_the_old_folder(made, saved, monkeypatch):
    def half(state, path, **_):
        path.write_bytes(b"half a file")
        raise KeyboardInterrupt

    other = small_model(seed=1, text=made[0].config.text, tokens=made[0].config.tokens)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", half)
        with pytest.raises(KeyboardInterrupt):
            save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], made[0])
    save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], other)
    assert others(saved) == []


@pytest.mark.parametrize("loads", [True, False])
def test_a_kill_between_the_two_renames_loses_nothing(made, saved, monkeypatch, loads):
    """The old folder is set aside, then the new one takes its name; a kill may come between."""
    replace, calls = module.os.replace, []

    def second_fails(a, b):
        calls.append(a)
        return replace(a, b) if len(calls) == 1 else fail()

    other = small_model(seed=1, text=made[0].config.text, tokens=made[0].config.tokens)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", second_fails)
        with pytest.raises(KeyboardInterrupt):
            save_model(saved, other, made[1])
    assert not saved.exists()
    if loads:
        assert_same(load_model(saved)[0], made[0])
    save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], other)
    assert others(saved) == []


def test_a_kill_while_saving_over_what_a_kill_set_aside(made, saved, monkeypatch):
    saved.rename(saved.with_name(f".{saved.name}.old"))
    monkeypatch.setattr(module, "save_file", fail)
    with pytest.raises(KeyboardInterrupt):
        save_model(saved, *made)
    assert_same(load_model(saved)[0], made[0])


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"is no GLaMM checkpoint: {name} missing"):
        load_model(saved)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.99])
def test_a_truncated_file_is_a_clear_error(saved, name, keep):
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match="damaged or truncated|cannot be read") as caught:
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
        ({k: v for k, v in state.items() if k != first}, rf"1 weights missing \['{first}'\], 0 unknown"),
        (state | {"adapter.weight": torch.zeros(2)}, r"0 weights missing \[\], 1 unknown \['adapter.weight'\]"),
        (state | {second: torch.zeros(3, 3, 3)}, rf"1 of another shape \['{second}'\]"),
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
    with pytest.raises(ValueError, match=r"a.safetensors does not fit: .*unknown \['bias'\]"):
        load_weights(narrow, tmp_path / "a.safetensors")
    assert torch.equal(narrow.weight, before)
    with pytest.raises(FileNotFoundError, match="no weights at .*b.safetensors"):
        load_weights(layer, tmp_path / "b.safetensors")


def test_a_folder_can_be_copied(made, saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(saved)
    assert_same(load_model(copy)[0], made[0])
