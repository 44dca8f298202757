"""Two processes train as one does, whole or in shards; a worker dies or hangs, and the run goes on where it was."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import training_toy
from accelerate.utils import DistributedType
from forked import run_program
from once import once
from safetensors.torch import load_file
from training_toy import BASE, Toy, ToyData, trainer, weights_of

from glamm_mini.training import checkpoint
from glamm_mini.training.checkpoint import RunState
from glamm_mini.training.logs import read_log
from glamm_mini.training.parallel import make_accelerator
from glamm_mini.training.trainer import TrainingInterrupted

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

SINGLE = ["steps=6", "batch_size=8", "save_every=2", "workers=0"]
DOUBLE = ["steps=6", "batch_size=2", "accumulation=2", "save_every=2", "workers=0", "shard=full"]
MUON = ["steps=4", "muon_lr=0.01", "save_every=4"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def assert_same_training(one: Path, two: Path, steps: int = 6) -> None:
    """The losses of `two` are those of `one`, by at most 1e-5 of each."""
    logs = [[r for r in read_log(folder / "log.jsonl") if "loss" in r] for folder in (one, two)]
    assert [r["step"] for r in logs[1]] == list(range(1, steps + 1))
    for a, b in zip(*logs, strict=True):
        for name in ("loss", "ce", "mask", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), (name, a["step"])


# ---- a run that is handed from one process to two, loses one, and goes on ----


class Stopping(ToyData):
    """Asks the run to stop in its second step, as a scheduler would."""

    def __getitem__(self, i: int):
        if len(self.seen) == 9:  # in step 2
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(i)


def _hand_on(folder: Path) -> None:
    """An unbroken run of one process, `whole`, and a `run` that one process began, that two went on with in shards, and
    of which one was killed: the folder as it was then, `killed`, and after two processes have finished it.

    In the processes that finish it, three more trainings: `two`, with whole models, to compare with `one`; `bad`, where
    the second process reads a sample that is not a number, whole and in shards."""
    torch.set_num_threads(1)
    whole = trainer(folder / "whole", BASE.with_overrides(SINGLE), validate=training_toy.held_out_loss)
    whole.fit()
    torch.save(weights_of(whole.model), folder / "whole.pt")
    with pytest.raises(TrainingInterrupted):
        trainer(folder / "run", BASE.with_overrides(SINGLE), Stopping(), validate=training_toy.held_out_loss).fit()
    assert checkpoint.read_manifest(folder / "run")["step"] == 1
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, training_toy.__file__, str(folder / "run"), "--resume", "--at", "10", "SIGKILL", *DOUBLE]
    killed = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    (folder / "killed.txt").write_text(f"{killed.returncode}\n{killed.stderr}")
    shutil.copytree(folder / "run", folder / "killed")
    trainer(folder / "one", BASE.with_overrides(["batch_size=8", *MUON])).fit()
    words = [str(folder / "run"), "--resume", "--layout", *DOUBLE]
    words += ["--then", str(folder / "two"), "batch_size=2", "accumulation=2", "workers=1", *MUON]
    for name, more in (("bad", ["accumulation=2"]), ("bad shards", ["shard=full"])):
        words += ["--then", str(folder / name), "--bad", "18", "log_every=9", "save_every=1", *more]
    training_toy.together(2, *words)


@pytest.fixture(scope="module")
def handed_on(tmp_path_factory) -> Path:
    """The folder that `_hand_on` filled."""
    return once(tmp_path_factory, "handed_on", _hand_on)


@pytest.mark.slow
def test_a_killed_worker_ends_the_launcher_and_keeps_the_checkpoint(handed_on):
    code, words = (handed_on / "killed.txt").read_text().split("\n", 1)
    assert code != "0" and "SIGKILL" in words
    manifest = checkpoint.read_manifest(handed_on / "killed")
    assert manifest["step"] in (2, 4)
    assert sorted(manifest["files"]) == ["model.safetensors", "training.pt"]  # whole, as one process writes them


@pytest.mark.slow
def test_handed_from_one_process_to_two_and_resumed_after_a_kill_it_equals_an_unbroken_run(handed_on):
    expected = torch.load(handed_on / "whole.pt", weights_only=True)
    assert_same_training(handed_on / "whole", handed_on / "run")
    last = [read_log(handed_on / name / "log.jsonl")[-1]["validation"]["loss"] for name in ("whole", "run")]
    assert last[1] == pytest.approx(last[0], rel=1e-5)
    for rank in (0, 1):
        weights = torch.load(handed_on / "run" / f"weights_{rank}.pt", weights_only=True)
        torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_parameters_and_moments_are_dtensors_cut_along_their_first_dimension(handed_on):
    here = [json.loads((handed_on / "run" / f"layout_{rank}.json").read_text()) for rank in (0, 1)]
    assert len(here[0]) == 2 * len(list(Toy().parameters())) - 1 and "moment of idle" not in here[0]
    for name, first in here[0].items():
        second = here[1][name]
        assert first["type"] == second["type"] == "DTensor" and first["placements"] == ["S(0)"], name
        assert first["here"] + second["here"] == first["all"] == second["all"], name
    assert here[0]["inner.weight"]["here"] == here[0]["moment of inner.weight"]["here"] == 512


@pytest.mark.slow
def test_a_run_in_shards_resumes_in_one_process(handed_on, tmp_path):
    shutil.copytree(handed_on / "killed", tmp_path / "alone")
    run = trainer(tmp_path / "alone", BASE.with_overrides([*SINGLE, "shard=full"]))
    run.fit(resume=True)
    assert_same_training(handed_on / "whole", tmp_path / "alone")
    expected = torch.load(handed_on / "whole.pt", weights_only=True)
    torch.testing.assert_close(weights_of(run.model), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_equal_one(handed_on):
    """Micro-batches of 2 and 2 accumulated ones: some have no mask, so that the decoder is unused there."""
    assert_same_training(handed_on / "one", handed_on / "two", steps=4)
    stored = [load_file(handed_on / name / "last" / "model.safetensors") for name in ("one", "two")]
    assert stored[0].keys() == stored[1].keys()
    for name in stored[0]:
        torch.testing.assert_close(stored[1][name], stored[0][name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("bad", 3), ("bad shards", 5)])
def test_a_sample_of_one_process_that_is_not_a_number_stops_all_and_spoils_nothing(handed_on, name, step):
    """Eighteen samples of 4 x 2 a step, and of 4."""
    manifest = checkpoint.read_manifest(handed_on / name)
    errors = [(handed_on / name / f"error_{rank}.txt").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1] and f"nan at step {step}" in errors[0] and f"step {step - 1} is kept" in errors[0]
    assert manifest["step"] == step - 1
    for path in (handed_on / name / "last").rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())


@pytest.mark.slow
def test_the_first_process_stores_shards_whole_and_on_the_cpu(handed_on):
    last, expected = handed_on / "run" / "last", torch.load(handed_on / "whole.pt", weights_only=True)
    stored, names = load_file(last / "model.safetensors"), [name for name, _ in Toy().named_parameters()]
    weights = torch.cat([stored[name].flatten() for name in names])
    assert torch.equal(weights, torch.load(handed_on / "run" / "weights_0.pt", weights_only=True))
    moments = torch.load(last / "training.pt", weights_only=True)["optimizer"]["state"]
    assert len(moments) == len(names) - 1  # `idle` has none
    for entry in moments.values():
        assert {type(tensor) for tensor in entry.values()} == {torch.Tensor}
    assert sum(entry["exp_avg"].numel() for entry in moments.values()) == len(expected) - 5


# ---- waiting, and what does not go together ----


@pytest.mark.slow
def test_a_process_whose_partner_hangs_ends_with_an_error(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {**ENVIRONMENT, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    words = [str(tmp_path), "--at", "6", "SIGSTOP", "timeout_minutes=0.1"]
    errors = tmp_path.parent / f"{tmp_path.name}_errors"
    errors.mkdir()
    started = [
        run_program(training_toy.__file__, words, {**group, "RANK": rank, "LOCAL_RANK": rank}, errors / rank)
        for rank in ("0", "1")
    ]
    try:
        begun = time.monotonic()
        code, said = started[0].wait(timeout=120), (errors / "0").read_text()
        assert code != 0 and "Timed out" in said, said[-2000:]
        assert read_log(tmp_path / "log.jsonl")[-1]["step"] == 1, f"after {time.monotonic() - begun:.0f} s"
    finally:
        started[1].kill()
        started[1].wait()


def test_what_does_not_go_together_is_refused(monkeypatch):
    two = SimpleNamespace(num_processes=2, distributed_type=DistributedType.MULTI_CPU)
    with pytest.raises(ValueError, match="Muon needs whole matrices"):
        RunState(Toy(), BASE.with_overrides(["shard=full", "muon_lr=0.01"]), two)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="set shard=full"):
        make_accelerator(BASE)
