"""The folder of a run: whose files it may hold, one training at a time, the same run again, links, rights."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from training_toy import BASE, ToyData, losses, trainer

from glamm_mini.training import run_folder
from glamm_mini.training.run_folder import check_free, claimed

QUICK = BASE.with_overrides(["steps=2", "save_every=1"])


def holder(folder: Path) -> subprocess.Popen:
    """Another process that has claimed the folder, and says so."""
    text = "import sys, time; from glamm_mini.training.run_folder import claimed\n"
    text += "with claimed(sys.argv[1], True): print('claimed', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", text, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "claimed\n"
    return process


def test_two_processes_cannot_train_into_one_folder(tmp_path):
    out = tmp_path / "run"
    process = holder(out)
    try:
        before = sorted(out.iterdir())
        with pytest.raises(ValueError, match=f"process {process.pid} on "):
            trainer(out, QUICK).fit()
        assert sorted(out.iterdir()) == before == [out / "run.lock"]
    finally:
        process.kill()  # as hard as can be: the lock ends with the process
        process.wait()
    assert trainer(out, QUICK).fit()["step"] == 2


def test_two_threads_cannot_train_into_one_folder_and_one_may_nest(tmp_path):
    errors = []

    def other():
        try:
            trainer(tmp_path, QUICK).fit(resume=True)
        except ValueError as error:
            errors.append(str(error))

    with claimed(tmp_path, resume=False):
        with claimed(tmp_path, resume=False):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        process = subprocess.run([sys.executable, "-c", f"""
from glamm_mini.training.run_folder import claimed
with claimed({str(tmp_path)!r}, True): pass
"""], capture_output=True, text=True)  # fmt: skip
        assert "ValueError" in process.stderr, "a nested claim, or one refused, has let go of the lock"
    assert len(errors) == 1 and "another thread" in errors[0]
    other()
    assert len(errors) == 1


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert trainer(tmp_path, QUICK).fit()["step"] == 2
    assert "cannot be locked" in capsys.readouterr().err


def test_a_claim_that_came_to_nothing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), claimed(tmp_path / "new", resume=False):
        raise RuntimeError
    (tmp_path / "mine").mkdir()
    with claimed(tmp_path / "mine", resume=False):
        pass
    assert not (tmp_path / "new").exists() and (tmp_path / "mine").is_dir()


# ---- whose files they are ----


@pytest.mark.parametrize("name", ["settings.json", "log.jsonl", "last/model.safetensors", "network.py", "model/a.py"])
def test_files_of_somebody_are_neither_replaced_nor_mixed_with_ours(tmp_path, name):
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match=name.split("/")[0]):
            trainer(tmp_path / "project", QUICK).fit(resume=resume)
    assert path.read_text() == "mine" and len(list((tmp_path / "project").rglob("*"))) == 1 + name.count("/")


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="run is a file"):
        check_free(tmp_path / "run", False)


def test_a_used_folder_is_refused_before_anything_loads(tmp_path):
    """In a process of its own, that has torch not at hand."""
    trainer(tmp_path, QUICK).fit()
    text = f"""
import sys
from glamm_mini.cli.main import main
try:
    main(["train", "gcg", "--out", {str(tmp_path)!r}])
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.returncode == 1 and "already holds a run, saved at step 2" in done.stderr.replace("\n", " ")
    assert done.stdout == "False\n"


def test_the_current_folder_and_dotfiles_are_fine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".gitignore").touch()
    assert trainer(".", QUICK).fit()["step"] == 2
    assert Path("last/model.safetensors").is_file()


# ---- the same run ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": ToyData(38)}, "samples was 37, now 38"),
        ({"data": ToyData(None)}, "samples was 37, now None"),
        ({"about": {"start": "tiny"}}, "start was None, now 'tiny'"),
        ({"about": {"mixture": {"gcg": 2.0}}}, "mixture was {'gcg': 1.0}, now {'gcg': 2.0}"),
    ],
)
def test_other_data_is_not_taken_for_the_same_run(tmp_path, change, words):
    given = {"about": {"mixture": {"gcg": 1.0}}}
    trainer(tmp_path, QUICK, **given).fit()
    with pytest.raises(ValueError) as error:
        trainer(tmp_path, QUICK, **given | change).fit(resume=True)
    assert words in str(error.value)
    assert trainer(tmp_path, QUICK, **given).fit(resume=True)["step"] == 2


# ---- links and rights ----


def test_a_link_in_the_place_of_the_checkpoint_stays_one(tmp_path):
    settings = BASE.with_overrides(["steps=4", "save_every=1"])
    trainer(tmp_path / "whole", settings).fit()
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "runs", target_is_directory=True)
    half = BASE.with_overrides(["steps=4", "save_every=2"])

    class Failing(ToyData):
        def __getitem__(self, i: int):
            if len(self.seen) == 12:
                raise KeyError("no more")
            return super().__getitem__(i)

    with pytest.raises(KeyError):
        trainer(tmp_path / "linked", half, Failing()).fit()
    shutil.move(tmp_path / "runs" / "last", tmp_path / "disk" / "moved")
    (tmp_path / "runs" / "last").symlink_to(tmp_path / "disk" / "moved", target_is_directory=True)
    trainer(tmp_path / "linked", settings).fit(resume=True)
    assert (tmp_path / "runs" / "last").is_symlink() and (tmp_path / "linked").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["moved"]
    assert json.loads((tmp_path / "disk" / "moved" / "checkpoint.json").read_text())["step"] == 4
    assert losses(tmp_path / "linked") == losses(tmp_path / "whole")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_may_be_read_as_the_users_other_files_may(tmp_path, mask):
    before = os.umask(mask)
    try:
        trainer(tmp_path / "run", QUICK).fit()
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) == 6 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def test_a_checkpoint_is_synced_as_windows_demands(tmp_path, monkeypatch):
    fcntl, real, synced = pytest.importorskip("fcntl"), os.fsync, []

    def fsync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY and not os.path.isdir(f"/dev/fd/{handle}"):
            raise OSError(9, "Bad file descriptor")
        synced.append(handle)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    trainer(tmp_path, BASE.with_overrides(["steps=1"])).fit()
    assert len(synced) == 4  # three files and the folder


def test_the_module_needs_no_torch():
    text = f"import sys; sys.path.insert(0, {str(Path(run_folder.__file__).parents[2])!r})\n"
    text += "import glamm_mini.training.run_folder; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True).stdout == "False\n"


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
