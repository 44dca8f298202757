"""Conversion there and back: every saved value, name and type as it was; nothing half-written; LoRA merged."""

import json

import pytest
import torch
from official_files import small_state, write_clip, write_official
from typer.testing import CliRunner

from glamm_mini.checkpoints.convert import prepare
from glamm_mini.checkpoints.files import list_tensors, weight_files
from glamm_mini.checkpoints.load import load_model
from glamm_mini.cli.main import build_app


@pytest.fixture(scope="module")
def state():
    """Types as the official merge script leaves them."""
    whole = ("model.grounding_encoder.", "model.text_hidden_fcs.", "model.vision_tower.")
    state = small_state()
    exact = {n for n in state if n.startswith(whole) or n.endswith("inv_freq")}
    return {n: t if n in exact else t.bfloat16() for n, t in state.items()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("hub")
    write_clip(folder / "clip", state)
    write_official(folder / "glamm", state)
    return folder


@pytest.fixture(scope="module")
def ours(hub):
    folder = hub / "ours"
    prepare(hub / "glamm", vision_tower=hub / "clip").write(folder)
    return folder


def read(folder):
    return {name: stored[...] for name, stored in list_tensors(weight_files(folder)).items()}


@pytest.mark.parametrize(("torch_files", "size"), [(True, "4GB"), (False, "3MB")])
def test_there_and_back_everything_saved_is_as_it_was(hub, ours, state, tmp_path, torch_files, size):
    prepare(ours, to="official").write(tmp_path / "back", size, torch_files)
    back, saved = read(tmp_path / "back"), {n: t for n, t in state.items() if "vision_tower" not in n}
    assert back.keys() == saved.keys()
    for name, tensor in saved.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    files = weight_files(tmp_path / "back")
    assert files[0].suffix == (".bin" if torch_files else ".safetensors") and (len(files) > 1) == (size != "4GB")
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (hub / "glamm" / "tokenizer.model").read_bytes()
    added = json.loads((tmp_path / "back" / "added_tokens.json").read_text())
    assert added["[SEG]"] == 516 and len(added) == 7


def test_what_is_written_back_is_an_official_checkpoint_again(hub, ours, tmp_path):
    """The same settings, weights and ids."""
    prepare(ours, to="official").write(tmp_path / "back")
    first, processor = load_model(hub / "glamm", "stored", vision_tower=hub / "clip")
    second, other = load_model(tmp_path / "back", "stored", vision_tower=hub / "clip")
    assert second.config.to_dict() == first.config.to_dict()
    assert all(torch.equal(t, second.state_dict()[n]) for n, t in first.state_dict().items())
    turns = [("What is <bbox>?", "<p> a kite </p> [SEG].")]
    assert processor.encode(turns) == other.encode(turns)


def test_types_can_be_changed_on_the_way(hub, state, tmp_path):
    report = prepare(hub / "glamm", vision_tower=hub / "clip", dtype="float16").write(tmp_path / "half")
    assert {tensor.dtype for tensor in read(tmp_path / "half").values()} == {torch.float16}
    assert "language_model: 21 tensors" in str(report) and "bfloat16 to float16" in str(report)
    prepare(tmp_path / "half", to="official", dtype="official").write(tmp_path / "merged")
    saved = {n: t.dtype for n, t in state.items() if "vision_tower" not in n}
    assert {name: tensor.dtype for name, tensor in read(tmp_path / "merged").items()} == saved


def test_lora_is_merged_on_the_way(hub, ours, tmp_path):
    pytest.importorskip("peft")
    from glamm_mini.checkpoints.lora import add_lora, merge_lora, save_lora

    model = load_model(ours)[0]
    add_lora(model)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(tmp_path / "lora", model)
    conversion = prepare(ours, to="official", lora=tmp_path / "lora", dtype="float32")
    report = conversion.write(tmp_path / "merged")
    assert any("LoRA" in note and "4 layers" in note for note in report.notes)
    merge_lora(model)
    query = "model.layers.1.self_attn.q_proj.weight"
    expected = model.language_model.model.layers[1].self_attn.q_proj.weight
    plain = read(ours)[f"language_model.{query}"].float()
    found = read(tmp_path / "merged")[query]
    assert (expected - plain).abs().max() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2**-7)  # merged into bfloat16, as it was stored
    types = {name: tensor.dtype for name, tensor in read(ours).items()}
    assert prepare(ours, lora=tmp_path / "lora").types == types  # though parts were trained in float32


def test_a_place_that_is_taken_or_too_small_is_left_alone(hub, tmp_path, monkeypatch):
    from glamm_mini.checkpoints import convert as module

    conversion = prepare(hub / "glamm", vision_tower=hub / "clip")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note").write_text("x")
    with pytest.raises(FileExistsError, match="taken holds something already"):
        conversion.write(tmp_path / "taken")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match="could not be written .*are needed, 0.0 GB are free"):
        conversion.write(tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_stop_on_the_way_leaves_nothing_that_looks_whole(hub, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    conversion = prepare(hub / "glamm", vision_tower=hub / "clip")
    with pytest.raises(KeyboardInterrupt):
        conversion.write(tmp_path / "ours", "1MB", advance=stop)
    assert not any(tmp_path.iterdir())
    conversion.write(tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"to": "hers"}, "to is 'hers'; expected ours or official"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
    ],
)
def test_unknown_settings_are_named_and_leave_nothing_behind(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        prepare("tiny", **settings)
    with pytest.raises(ValueError, match="torch's files belong to an official target"):
        prepare("tiny").write(tmp_path / "nowhere", torch_files=True)
    for size in ("much", "4XB", "0", -3):
        with pytest.raises(ValueError, match="max_shard_size"):
            prepare("tiny").write(tmp_path / "nowhere", size)
    assert not any(tmp_path.iterdir())


def run(*arguments):
    return CliRunner().invoke(build_app("convert"), ["convert", *map(str, arguments)], env={"COLUMNS": "140"})


def test_the_command_checks_names_alone_and_converts(hub, tmp_path):
    done = run(hub / "glamm", "--check")
    assert done.exit_code == 0, done.output
    assert "language_model" in done.output and "to write: 0.01 GB" in done.output
    assert "weights kept as they were (global_encoder.clip" in done.output
    done = run(hub / "glamm", tmp_path / "ours", "--vision-tower", hub / "clip", "--dtype", "bfloat16")
    assert done.exit_code == 0 and done.output.strip().endswith(str(tmp_path / "ours"))
    assert {entry.dtype for entry in list_tensors(weight_files(tmp_path / "ours")).values()} == {torch.bfloat16}
    done = run(tmp_path / "ours", "--check", "--to", "official")
    assert done.exit_code == 0 and "go into the folder clip" in done.output
    done = run(hub / "glamm", "--check", "--drop", "model.norm.")
    assert isinstance(done.exception, ValueError) and "drop would leave out 1 names" in str(done.exception)
    done = run(hub / "glamm")
    assert isinstance(done.exception, ValueError) and "name the folder to write" in str(done.exception)
