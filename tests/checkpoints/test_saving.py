"""What is saved comes back bit by bit; a kill, a full disk or another process never costs the older save; nothing of
the user's is deleted, replaced or hidden."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from small_models import small_model
from torch import nn

from glamm_mini.checkpoints import save as module
from glamm_mini.checkpoints.files import find_folder
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.lora import add_lora
from glamm_mini.checkpoints.save import LOCK, save_model, to_disk, whole_folder

ROOT = Path(__file__).resolve().parents[2]
TURNS = [("What is a kite <bbox>?", "<p> a kite </p> [SEG].")]
WEIGHTS = "model.safetensors"


def assert_same(model, other):
    own, its = model.state_dict(), other.state_dict()
    assert own.keys() == its.keys()
    for name, tensor in own.items():
        assert torch.equal(tensor, its[name]), name


def traces(folder):
    """What saving left inside the folder and beside it, which should be nothing."""
    beside = [path.name for path in folder.parent.iterdir() if path != folder]
    return sorted(beside + [path.name for path in folder.glob(".*")])


@pytest.fixture
def other(made):
    """Another model of the same settings."""
    return small_model(seed=1, text=made[0].config.text, tokens=made[0].config.tokens)


def test_what_is_saved_comes_back_bit_by_bit(made, saved):
    model, processor = load_model(saved)
    assert_same(model, made[0])
    assert model.config.seg_state == "at" and model.config.tokens == made[0].config.tokens
    assert processor.encode(TURNS) == made[1].encode(TURNS)
    assert traces(saved) == []
    assert load_model(str(saved))[0].config.size_name == model.config.size_name


def test_weights_stored_in_bfloat16_halve_the_file_and_load_as_float32(made, saved):
    whole = (saved / WEIGHTS).stat().st_size
    save_model(saved, *made, dtype=torch.bfloat16)
    assert (saved / WEIGHTS).stat().st_size < 0.6 * whole
    model, own = load_model(saved)[0], made[0].state_dict()
    for name, tensor in model.state_dict().items():
        expected = own[name].to(torch.bfloat16).to(own[name].dtype)
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


# --- the user's own --------------------------------------------------------------------------------------------------


def test_whatever_else_lies_in_the_folder_stays(made, saved, other):
    (saved / "first-run" / "last").mkdir(parents=True)
    (saved / "first-run" / "last" / WEIGHTS).write_bytes(b"mine")
    for name in ("README.md", "training.json", "notes.txt", "pytorch_model.bin"):
        (saved / name).write_text("mine")
    save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], other)
    for name in ("README.md", "training.json", "notes.txt", "pytorch_model.bin", f"first-run/last/{WEIGHTS}"):
        assert (saved / name).read_text() == "mine"


@pytest.mark.parametrize("config", [None, {"model_type": "llama"}])
def test_files_of_something_else_are_not_replaced(made, tmp_path, config):
    (tmp_path / "tokenizer.json").write_text("mine")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    before = sorted((path.name, path.read_text()) for path in tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="tokenizer.json"):
        save_model(tmp_path, *made)
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == before


def test_links_stay_links(made, saved, other, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(saved)
    save_model(link, other, made[1])
    assert link.is_symlink()
    assert_same(load_model(saved)[0], other)
    (saved / WEIGHTS).rename(tmp_path / "blob")
    (saved / WEIGHTS).symlink_to(tmp_path / "blob")
    with pytest.raises(FileExistsError, match=WEIGHTS):
        save_model(saved, *made)
    assert_same(load_model(saved)[0], other)


def test_the_folder_one_stands_in(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "note").write_text("mine")
    save_model(".", *made)
    assert_same(load_model(".")[0], made[0])
    assert Path.cwd() == tmp_path and Path("note").read_text() == "mine"


def test_everybody_may_read_what_the_umask_lets_them(made, saved, tmp_path):
    made[0].save_pretrained(tmp_path / "plain")
    usual = stat.S_IMODE((saved / "config.json").stat().st_mode)
    for folder in (saved, tmp_path / "plain"):
        assert stat.S_IMODE((folder / WEIGHTS).stat().st_mode) == usual


def test_shards_of_an_earlier_save_are_not_read_again(made, saved, other):
    for size, count in (("20KB", 6), ("4GB", 1), ("30KB", 4)):
        save_model(saved, other, made[1], max_shard_size=size)
        files = list(saved.glob("*.safetensors"))
        assert len(files) >= count and (len(files) == 1) == (size == "4GB")
        assert (saved / "model.safetensors.index.json").exists() == (size != "4GB")
        assert_same(load_model(saved)[0], other)


# --- kills and full disks --------------------------------------------------------------------------------------------


def half(state, path, *_, **__):
    Path(path).write_bytes(b"half a file")
    raise KeyboardInterrupt


def test_a_kill_while_weights_are_written_leaves_the_old_folder(made, saved, other, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", half)
        for folder in (saved, saved.parent / "new" / "deep"):
            with pytest.raises(KeyboardInterrupt):
                save_model(folder, other, made[1])
    assert_same(load_model(saved)[0], made[0])
    assert traces(saved) == []  # nor any folder of the one that was new
    save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], other)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("loads", [True, False])
def test_a_kill_between_two_moves_loses_nothing(made, saved, other, monkeypatch, at, loads):
    """All new files are complete then: whoever opens the folder next moves the rest."""
    replace, calls = os.replace, []

    def fails(a, b):
        calls.append(a)
        if len(calls) == at:
            raise KeyboardInterrupt
        return replace(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", fails)
        with pytest.raises(KeyboardInterrupt):
            save_model(saved, other, made[1], max_shard_size="30KB")
    if not loads:
        save_model(saved, other, made[1])
    assert_same(load_model(saved)[0], other)
    assert traces(saved) == []


@pytest.mark.parametrize("where", ["weights", "tokenizer", "config"])
def test_a_full_disk_leaves_the_old_folder_and_nothing_beside_it(made, saved, other, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def cut(state, path, **_):
        Path(path).write_bytes(b"half a file")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        if where == "weights":
            patch.setattr("transformers.modeling_utils.safe_save_file", cut)
        else:
            patch.setattr(made[1] if where == "tokenizer" else other.config, "save_pretrained", full)
        for folder in (saved, saved.with_name("new")):
            with pytest.raises(OSError, match="No space left") as caught:
                save_model(folder, other, made[1])
            assert str(folder) in str(caught.value)
    assert_same(load_model(saved)[0], made[0])
    assert traces(saved) == []


def test_a_place_that_cannot_hold_a_folder_is_named(made, tmp_path):
    (tmp_path / "a").write_text("x")
    for place in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OSError, match=str(tmp_path / "a")):
            save_model(place, *made)
    assert (tmp_path / "a").read_text() == "x"


SAVE_AGAIN = """
import sys, time
from pathlib import Path
from transformers import modeling_utils
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.save import save_model

def slowly(state, path, **_):
    Path(path).write_bytes(b"half a file")
    print("writing", flush=True)
    time.sleep(60)

model, processor = load_model({folder!r})
modeling_utils.safe_save_file = slowly
save_model({folder!r}, model, processor)
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_a_checkpoint_that_loads(made, saved):
    code = SAVE_AGAIN.format(folder=str(saved))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline().strip() == "writing"
    finally:
        process.kill()
        process.wait()
    assert_same(load_model(saved)[0], made[0])
    save_model(saved, *made)
    assert traces(saved) == []


def test_a_lock_that_goes_while_it_is_looked_at_is_no_fault(made, saved, monkeypatch):
    stat, gone = Path.stat, []

    def looked_at(path, **how):
        found = stat(path, **how)
        if path.name == LOCK and not gone:
            gone.append(path)
            path.unlink()
        return found

    (saved / LOCK).touch()
    monkeypatch.setattr(Path, "stat", looked_at)
    save_model(saved, *made)
    assert gone and traces(saved) == []


def test_files_reach_the_disk_by_a_handle_that_may_write(made, saved, monkeypatch):
    """Windows answers "bad file descriptor" to anything else."""
    real, synced = os.fsync, []

    def fsync(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        synced.append(handle)
        return real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    to_disk(saved / "config.json")
    save_model(saved, *made)
    assert len(synced) > 4


# --- several at once -------------------------------------------------------------------------------------------------


def write(folder, text):
    with whole_folder(folder, mine=True) as fresh:
        for name in "abcd":
            (fresh / name).write_text(text)


def test_a_reader_waits_for_a_writer_and_breaks_nothing(tmp_path, monkeypatch):
    """It opens the folder between the writer's moves, from another thread as from another process."""
    write(tmp_path, "old")
    (tmp_path / "config.json").write_text("{}")
    real, readers, seen = os.replace, [], []

    def read():
        find_folder(tmp_path)
        seen.append({(tmp_path / name).read_text() for name in "abcd"})

    def replace(a, b):
        real(a, b)
        readers.append(threading.Thread(target=read))
        readers[-1].start()

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", replace)
        write(tmp_path, "new")
    for reader in readers:
        reader.join(60)
    assert len(readers) == 4 and seen == [{"new"}] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "config.json", "d"]


def test_two_writers_take_turns(tmp_path):
    writers = [threading.Thread(target=write, args=(tmp_path, f"text {k}")) for k in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len({(tmp_path / name).read_text() for name in "abcd"}) == 1
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_folder_that_is_saved_to_while_it_is_opened_is_opened_again(made, saved, other, monkeypatch):
    """A configuration of one save must not meet the weights of another."""
    from glamm_mini.checkpoints import load

    real, calls = load.open_checkpoint, []

    def opened(*arguments, **settings):
        source = real(*arguments, **settings)
        calls.append(source)
        if len(calls) == 1:
            save_model(saved, other, made[1], dtype=torch.bfloat16)
        return source

    monkeypatch.setattr(load, "open_checkpoint", opened)
    model = load_model(saved, "stored")[0]
    assert len(calls) == 2 and model.dtype == torch.bfloat16

    def never(*arguments, **settings):
        calls.append(None)
        os.utime(saved / "config.json", ns=(1, len(calls)))
        return real(*arguments, **settings)

    monkeypatch.setattr(load, "open_checkpoint", never)
    with pytest.raises(OSError, match="is being written"):
        load_model(saved)


# --- models that cannot be saved as they are -------------------------------------------------------------------------


def test_wrapped_models_are_saved_as_they_are_inside(made, tmp_path):
    for wrapped in (torch.compile(made[0]), nn.DataParallel(made[0]), nn.DataParallel(torch.compile(made[0]))):
        save_model(tmp_path / "m", wrapped, made[1])
        assert_same(load_model(tmp_path / "m")[0], made[0])


def test_a_model_with_lora_is_refused(made, tmp_path):
    pytest.importorskip("peft")
    model = small_model(text=made[0].config.text, tokens=made[0].config.tokens)
    add_lora(model)
    with pytest.raises(ValueError, match="LoRA"):
        save_model(tmp_path / "m", model, made[1])
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("place", [".saving/mine.txt", ".saving.lock"])
def test_a_file_of_the_users_where_saving_works_is_named_and_stays(made, tmp_path, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("my own")
    with pytest.raises(OSError, match=Path(place).parts[0]):
        save_model(tmp_path, *made)
    assert (tmp_path / place).read_text() == "my own"
    assert [path.name for path in tmp_path.iterdir()] == [Path(place).parts[0]]


def test_what_a_killed_save_left_is_cleared(made, tmp_path):
    folder = tmp_path / "model"
    for left in ((), (module.OURS, "model.safetensors")):  # killed before its first file, and before the end
        (folder / module.FRESH).mkdir(parents=True, exist_ok=True)
        for name in left:
            (folder / module.FRESH / name).write_text("half")
        save_model(folder, *made)
        assert_same(load_model(folder)[0], made[0])
        assert traces(folder) == []


def test_a_broken_model_and_a_strange_processor_never_replace_a_good_save(made, other, tmp_path, processor):
    save_model(tmp_path, *made)
    with torch.no_grad():
        other.lp_projector[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="lp_projector.0.weight"):
        save_model(tmp_path, other, made[1])
    with pytest.raises(ValueError, match="tokenizer knows"):
        save_model(tmp_path, made[0], processor)
    assert_same(load_model(tmp_path)[0], made[0])
