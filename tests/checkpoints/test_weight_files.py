"""Reading weights from files: both formats, one file or shards, and one clear error for each thing that is wrong."""

import json

import pytest
import torch
from safetensors.torch import save_file

from glamm_mini.checkpoints import files


@pytest.fixture()
def state():
    generator = torch.Generator().manual_seed(0)
    state = {f"layer.{k}.weight": torch.randn(3, k + 1, generator=generator) for k in range(4)}
    return state | {"half": torch.randn(5, generator=generator).bfloat16(), "ids": torch.arange(3)}


def write(folder, state, kind, pieces):
    """`state` as a Hugging Face folder of `pieces` files."""
    save, single = (save_file, "model.safetensors") if kind == "safetensors" else (torch.save, "pytorch_model.bin")
    if pieces == 1:
        save(state, folder / single)
        return
    stem, _, ending = single.rpartition(".")
    where = {name: f"{stem}-{k % pieces}.{ending}" for k, name in enumerate(state)}
    for file in set(where.values()):
        save({name: tensor for name, tensor in state.items() if where[name] == file}, folder / file)
    (folder / f"{single}.index.json").write_text(json.dumps({"weight_map": where}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("slices", [1, 2**20])
def test_everything_written_is_read(tmp_path, state, kind, pieces, slices, monkeypatch):
    monkeypatch.setattr(files, "SLICES", slices)
    write(tmp_path, state, kind, pieces)
    found = files.weight_files(tmp_path)
    assert len(found) == pieces
    listed = files.list_tensors(found)
    assert {name: (entry.shape, entry.dtype) for name, entry in listed.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()
    }
    for name, tensor in state.items():
        assert torch.equal(listed[name][...], tensor) and listed[name].nbytes == tensor.nbytes
        assert listed[name].file in found


def test_files_of_old_torch_are_read(tmp_path, state):
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    listed = files.list_tensors([tmp_path / "old.bin"])
    assert all(torch.equal(listed[name][...], tensor) for name, tensor in state.items())


def test_a_file_that_is_replaced_while_it_is_read_is_named(tmp_path, state, monkeypatch):
    monkeypatch.setattr(files, "SLICES", 2**20)
    torch.save(state, tmp_path / "a.bin")
    listed = files.list_tensors([tmp_path / "a.bin"])
    torch.save({name: tensor + 1 for name, tensor in state.items()}, tmp_path / "b.bin")
    (tmp_path / "b.bin").replace(tmp_path / "a.bin")
    listed["half"][...]
    with pytest.raises(ValueError, match="a.bin"):
        listed["half"][...]


def test_what_is_read_is_in_memory_of_its_own(tmp_path, state):
    torch.save(state, tmp_path / "a.bin")
    save_file(state, tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        stored = files.list_tensors([tmp_path / name])["half"]
        stored[...].zero_()
        assert torch.equal(stored[...], state["half"])


def test_numbers_of_an_unknown_type_are_named(tmp_path):
    save_file({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="F8_E4M3"):
        files.list_tensors([tmp_path / "model.safetensors"])


def test_a_folder_without_weights_or_shards_is_named(tmp_path, state):
    with pytest.raises(FileNotFoundError, match="holds no weights; expected one of model.safetensors.*found nothing"):
        files.weight_files(tmp_path)
    write(tmp_path, state, "bin", 3)
    (tmp_path / "pytorch_model-1.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of the 3 shards .*pytorch_model-1\.bin"):
        files.weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../secret.bin"}}')
    with pytest.raises(ValueError, match="outside its folder"):
        files.weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text("[1")
    with pytest.raises(ValueError, match="index.json"):
        files.weight_files(tmp_path)


class Dangerous:
    """Unpickled, it would call print."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "pointer"])
def test_damaged_files_are_one_clear_error(tmp_path, state, kind, damage):
    write(tmp_path, state, kind, 1)
    [file] = files.weight_files(tmp_path)
    whole = file.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    file.write_bytes({"cut": whole[:-60], "empty": b"", "text": b"<html>404</html>", "pointer": pointer}[damage])
    with pytest.raises(ValueError, match="git lfs pull" if damage == "pointer" else "damaged") as error:
        files.list_tensors([file])
    assert str(file) in str(error.value)


def test_foreign_files_are_refused_and_run_no_code(tmp_path, state, capsys):
    for number, content in enumerate([[1, 2], {"model": state}, Dangerous()]):
        torch.save(content, tmp_path / f"{number}.bin")
        with pytest.raises(ValueError, match="damaged"):
            files.list_tensors([tmp_path / f"{number}.bin"])
    assert "run" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="there is no file"):
        files.list_tensors([tmp_path / "absent.bin"])


def test_a_name_in_two_files_is_an_error(tmp_path, state):
    for name in ("a.bin", "b.bin"):
        torch.save(state, tmp_path / name)
    with pytest.raises(ValueError, match=r"layer.0.weight stands in .*a\.bin and in .*b\.bin"):
        files.list_tensors([tmp_path / "a.bin", tmp_path / "b.bin"])
