"""A run killed, stopped, out of disk or damaged: it resumes exactly, or says what to do."""

import json
import os
import shutil
import signal
import time

import pytest
import torch
import training_toy
from forked import run_program
from safetensors.torch import load_file
from torch import nn
from training_toy import BASE, Toy, ToyData, losses, trainer, weights_of

from glamm_mini.checkpoints.save import DONE, FRESH, OURS
from glamm_mini.training import checkpoint
from glamm_mini.training.logs import read_log
from glamm_mini.training.run_folder import claimed
from glamm_mini.training.trainer import TrainingInterrupted

EVERYTHING = ["accumulation=2", "workers=1", "muon_lr=0.01", "weight_decay=0.1"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run with everything that has a state: dropout, Muon, accumulation, a worker."""
    out = tmp_path_factory.mktemp("uninterrupted")
    run = trainer(out, BASE.with_overrides(EVERYTHING), model=Toy(dropout=0.2))
    run.fit()
    return out, weights_of(run.model)


def test_killed_and_resumed_gives_the_same_losses_bit_for_bit(tmp_path, uninterrupted):
    words = [str(tmp_path), "--sleep", "0.02", "--dropout", "0.2", *EVERYTHING]
    process = run_program(training_toy.__file__, words, dict(os.environ), tmp_path.parent / f"{tmp_path.name}_errors")
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "log.jsonl")) < 12 and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with claimed(tmp_path, resume=True):  # although the worker outlives the process for a while
        pass
    before = losses(tmp_path)
    assert 12 <= before[-1][0] < 24, "killed too late to test anything"
    run = trainer(tmp_path, BASE.with_overrides(EVERYTHING), model=Toy(dropout=0.2))
    assert run.fit(resume=True)["step"] == 24
    out, weights = uninterrupted
    assert losses(tmp_path) == losses(out)
    assert before == losses(out)[: len(before)]
    assert torch.equal(weights_of(run.model), weights)


class Interrupting(ToyData):
    """Sends a signal to this process when sample number `at` is read, as a user or a scheduler would."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__()
        self.number, self.at = number, at

    def __getitem__(self, i: int):
        sample = super().__getitem__(i)
        if len(self.seen) == self.at:
            os.kill(os.getpid(), self.number)
        return sample


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_saves_and_says_how_to_resume(tmp_path, number, capsys):
    settings = BASE.with_overrides(["log_every=4", "save_every=100", "steps=10"])
    before = signal.getsignal(number)  # a shell that starts tests in the background has SIGINT ignored
    trainer(tmp_path / "whole", settings).fit()
    with pytest.raises(TrainingInterrupted, match="step 5 of 10"):
        trainer(tmp_path / "cut", settings, Interrupting(number, at=24)).fit()
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    trainer(tmp_path / "cut", settings).fit(resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")  # also the mean over steps 5 to 8, cut at 5


def test_a_finished_run_resumes_to_its_result(tmp_path, uninterrupted):
    out, weights = uninterrupted
    shutil.copytree(out, tmp_path / "run")
    run = trainer(tmp_path / "run", BASE.with_overrides(EVERYTHING))
    metrics = run.fit(resume=True)
    assert metrics["step"] == 24 and torch.equal(weights_of(run.model), weights)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    settings = BASE.with_overrides(["steps=2"])
    trainer(tmp_path, settings).fit()
    with pytest.raises(ValueError, match="already holds a run, saved at step 2"):
        trainer(tmp_path, settings).fit()


def test_resuming_with_other_settings_names_them(tmp_path):
    settings = BASE.with_overrides(["steps=2"])
    trainer(tmp_path, settings).fit()
    with pytest.raises(ValueError, match=r"lr was 0.01, now 0.5; seed was 0, now 3"):
        trainer(tmp_path, settings.with_overrides(["lr=0.5", "seed=3", "workers=1"])).fit(resume=True)
    with pytest.raises(ValueError, match="batch_size was 4, now 8"):
        trainer(tmp_path, settings.with_overrides(["batch_size=8"])).fit(resume=True)
    free = ["workers=1", "log_every=7", "save_every=9", "threads=1", "batch_size=2", "accumulation=2"]
    trainer(tmp_path, settings.with_overrides(free)).fit(resume=True)


def test_resume_without_a_checkpoint_starts_anew(tmp_path, capsys):
    assert trainer(tmp_path, BASE.with_overrides(["steps=2"])).fit(resume=True)["step"] == 2
    assert "no checkpoint" in capsys.readouterr().err


# ---- checkpoints ----


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    settings = BASE.with_overrides(["steps=10"])

    class Full(ToyData):
        def __getitem__(self, i: int):
            if len(self.seen) == 30:  # step 8 of 10: the checkpoint of step 5 is there
                resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
            return super().__getitem__(i)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match="step 5 is kept") as error:
            trainer(tmp_path, settings, Full()).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "step 8" not in str(error.value) and "of step 10" in str(error.value)
    assert checkpoint.read_manifest(tmp_path)["step"] == 5 and len(list((tmp_path / "last").iterdir())) == 3
    assert trainer(tmp_path, settings).fit(resume=True)["step"] == 10


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """A finished run of one step."""
    folder = tmp_path_factory.mktemp("one") / "run"
    trainer(folder, BASE.with_overrides(["steps=1"])).fit()
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_a_clear_error(one_step, tmp_path, name, damage):
    shutil.copytree(one_step, tmp_path / "run")
    path = tmp_path / "run" / "last" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=name):
        trainer(tmp_path / "run", BASE.with_overrides(["steps=1"])).fit(resume=True)


def test_changed_bytes_and_another_model_are_clear_errors(one_step, tmp_path):
    settings = BASE.with_overrides(["steps=1"])
    shutil.copytree(one_step, tmp_path / "run")
    other = Toy()
    other.head = nn.Linear(32, 2)
    with pytest.raises(ValueError, match="2 tensors differ, such as head.bias, head.weight"):
        trainer(tmp_path / "run", settings, model=other).fit(resume=True)
    path = tmp_path / "run" / "last" / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(ValueError, match="damaged"):
        trainer(tmp_path / "run", settings).fit(resume=True)


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    """A run of six steps, `whole`, and one stopped after its second, `cut`."""
    folder, settings = tmp_path_factory.mktemp("six"), BASE.with_overrides(["steps=6"])
    trainer(folder / "whole", settings).fit()
    with pytest.raises(TrainingInterrupted):
        trainer(folder / "cut", settings, Interrupting(signal.SIGTERM, at=12)).fit()
    return folder


@pytest.mark.parametrize("moved", [None, 0, 1, 2])
def test_a_kill_while_saving_loses_nothing(six_steps, tmp_path, moved):
    """Half of the new files written, or all of them, and `moved` of them in their places."""
    settings, out, last = BASE.with_overrides(["steps=6"]), tmp_path / "cut", tmp_path / "cut" / "last"
    shutil.copytree(six_steps / "cut", out)
    (last / FRESH).mkdir()
    (last / FRESH / OURS).touch()
    (last / FRESH / "model.safetensors").write_bytes(b"half")
    if moved is not None:
        names = sorted(path.name for path in (six_steps / "cut" / "last").iterdir())
        for name in names:
            shutil.copy(last / name, last / FRESH / name)
            (last / name).write_bytes(b"of an older step")
        (last / FRESH / DONE).write_text(json.dumps(names))
        for name in names[:moved]:
            (last / FRESH / name).replace(last / name)
    with pytest.raises(ValueError, match="already holds a run"):
        trainer(out, settings).fit()
    trainer(out, settings).fit(resume=True)
    assert losses(out) == losses(six_steps / "whole")
    assert sorted(p.name for p in out.iterdir()) == ["last", "log.jsonl", "run.lock", "settings.json"]
    assert sorted(p.name for p in last.iterdir()) == ["checkpoint.json", "model.safetensors", "training.pt"]


def test_a_kill_in_the_first_save_is_no_run_to_resume_and_none_to_overwrite(tmp_path, capsys):
    settings = BASE.with_overrides(["steps=1"])
    trainer(tmp_path, settings).fit()
    shutil.rmtree(tmp_path / "last")
    (tmp_path / "last" / FRESH).mkdir(parents=True)
    with pytest.raises(ValueError, match="already holds a run"):
        trainer(tmp_path, settings).fit()
    assert trainer(tmp_path, settings).fit(resume=True)["step"] == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_frozen_parameters_stay_and_may_be_left_out_of_the_checkpoint(tmp_path):
    settings = BASE.with_overrides(["steps=4", "save_frozen=false", "save_every=2"])
    model = Toy()
    model.embed.requires_grad_(False)
    before = model.embed.weight.clone()
    trainer(tmp_path, settings, model=model).fit()
    stored = load_file(tmp_path / "last" / "model.safetensors")
    assert torch.equal(model.embed.weight, before) and "embed.weight" not in stored and "inner.weight" in stored
    again = Toy()
    again.embed.requires_grad_(False)
    trainer(tmp_path, settings, model=again).fit(resume=True)
    assert torch.equal(weights_of(again), weights_of(model))


def test_tied_weights_survive(tmp_path):
    class Tied(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.inner2 = nn.Linear(32, 32)
            self.inner2.weight = self.inner.weight

        def forward(self, ids, **more):
            output = super().forward(ids, **more)
            output.loss = output.loss + self.inner2(torch.ones(1, 32)).square().mean()
            return output

    settings = BASE.with_overrides(["steps=3"])
    run = trainer(tmp_path, settings, model=Tied())
    run.fit()
    again = trainer(tmp_path, settings, model=Tied())
    again.fit(resume=True)
    assert again.model.inner2.weight is again.model.inner.weight
    assert torch.equal(weights_of(again.model), weights_of(run.model))
