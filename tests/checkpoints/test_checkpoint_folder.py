"""A checkpoint folder: what was saved comes back bit by bit, or an error says what is missing, damaged or foreign."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_models import small_config, small_model
from torch import nn

from glamm_mini.checkpoints import write as module
from glamm_mini.checkpoints.folder import WEIGHTS, load_model, load_weights, save_model
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.language.tokenizer import build_wordpiece

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("size", ["4GB", "20KB"])
def test_tied_weights_are_stored_once_and_tied_again(made, tmp_path, size):
    text = made[0].config.text.to_dict() | {"tie_word_embeddings": True}
    tied = small_model(text=text, tokens=made[0].config.tokens)
    save_model(tmp_path / "tied", tied, made[1], max_shard_size=size)
    stored = [name for file in (tmp_path / "tied").glob("*.safetensors") for name in load_file(file)]
    assert len(stored) == len(set(stored)) == len(tied.state_dict()) - 1
    back = load_model(tmp_path / "tied")[0]
    assert_same(back, tied)
    assert back.language_model.lm_head.weight is back.language_model.model.embed_tokens.weight


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


@pytest.mark.parametrize("where", ["weights", "tokenizer", "config"])
def test_a_full_disk_leaves_the_old_folder_and_nothing_beside_it(made, saved, monkeypatch, where):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def half(state, path, **_):
        path.write_bytes(b"half a file")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    other = small_model(seed=1, text=made[0].config.text, tokens=made[0].config.tokens)
    with monkeypatch.context() as patch:
        if where == "weights":
            patch.setattr(module, "save_file", half)
        else:
            patch.setattr(made[1] if where == "tokenizer" else other.config, "save_pretrained", full)
        with pytest.raises(OSError, match="could not be written .*No space left.*untouched; free some room") as caught:
            save_model(saved, other, made[1])
        with pytest.raises(OSError, match="could not be written"):
            save_model(saved.with_name("new"), other, made[1])
    assert str(saved) in str(caught.value)
    assert_same(load_model(saved)[0], made[0])
    assert others(saved) == []


def test_a_place_that_cannot_hold_a_folder_is_named(made, tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(OSError, match="a is a file; a checkpoint is a folder"):
        save_model(tmp_path / "a", *made)
    with pytest.raises(OSError, match="could not be written"):
        save_model(tmp_path / "a" / "b", *made)
    assert (tmp_path / "a").read_text() == "x"


SAVE_AGAIN = """
import sys, time
sys.path[:0] = {paths!r}
from small_models import small_model
from glamm_mini.checkpoints import write as module
from glamm_mini.checkpoints.folder import load_model, save_model

def slowly(state, path, **_):
    path.write_bytes(b"half a file")
    print("writing", flush=True)
    time.sleep(60)

model, processor = load_model({folder!r})
module.save_file = slowly
save_model({folder!r}, model, processor)
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_a_checkpoint_that_loads(made, saved):
    code = SAVE_AGAIN.format(paths=[str(ROOT), str(ROOT / "tests")], folder=str(saved))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "writing"
    finally:
        process.kill()
        process.wait()
    assert_same(load_model(saved)[0], made[0])
    save_model(saved, *made)
    assert others(saved) == []


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
    with pytest.raises(ValueError, match="is damaged, truncated|cannot be read") as caught:
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


def test_a_language_models_folder_is_named_as_such(saved, tmp_path):
    """As the hub hands them out: its own type, weights in shards or in one file, a tokenizer without our tokens."""
    for k, weights in enumerate(("model-00001-of-00002.safetensors", WEIGHTS)):
        folder = tmp_path / f"llm{k}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
        (folder / weights).write_bytes((saved / WEIGHTS).read_bytes())
        shutil.copy(saved / "tokenizer.json", folder)
        with pytest.raises(ValueError, match="model of the type 'llama'; expected 'glamm_mini'.*give a folder that"):
            load_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "blip"}, "type 'blip'; expected 'glamm_mini'"),
        ({"model_type": None}, "type 'None'; expected 'glamm_mini'"),
        ({"mode": "other"}, "mode is 'other'"),
        ({"text": {"hidden_size": 33, "num_attention_heads": 4}}, "configuration or tokenizer cannot be read"),
        ({"region": {"colour": 1}}, "configuration or tokenizer cannot be read"),
    ],
)
def test_a_configuration_of_another_kind_is_named(saved, change, words):
    config = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as caught:
        load_model(saved)
    assert str(saved) in str(caught.value)


def test_a_tokenizer_of_another_model_is_named(saved, tmp_path):
    big = build_wordpiece([f"word{k}" for k in range(300)])
    big.save_pretrained(saved)
    with pytest.raises(ValueError, match="the tokenizer knows .* tokens, the model .*belongs to another model"):
        load_model(saved)
    plain = json.loads((saved / "tokenizer.json").read_text())
    plain["added_tokens"] = []
    (saved / "tokenizer.json").write_text(json.dumps(plain))
    (saved / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="cannot be read .*each needs an id of its own"):
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
    with pytest.raises(ValueError, match="model.safetensors is a pickle and no safetensors file; it is not read"):
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

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(load_model("someone/a-glamm")[0], made[0])
    assert asked == [("someone/a-glamm", ["*.json", "*.safetensors", "tokenizer.model"])]


def test_a_name_that_neither_disk_nor_hub_has_is_named(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder someone/a-glamm here, and the hub gave no model"):
        load_model("someone/a-glamm")  # the tests run without a network


def test_a_slip_in_a_folders_name_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    from glamm_mini.checkpoints.part_sources import llama_source, sam_source

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    for find in (load_model, llama_source, sam_source):
        with pytest.raises(FileNotFoundError, match="no folder runs/mime, although runs is a folder here.*not asked"):
            find("runs/mime")
    assert not asked
