"""Two processes train as one does: same samples, same losses, whatever each process's share holds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_toy
from safetensors.torch import load_file
from training_toy import BASE, trainer

from glamm_mini.training.logs import read_log

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


def launch(processes: int, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return subprocess.run(
        [*command, training_toy.__file__, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )


def test_two_processes_equal_one(tmp_path: Path):
    """Micro-batches of 2 and 2 accumulated ones: some have no mask, so that the decoder is unused there."""
    torch.set_num_threads(1)
    single = ["steps=8", "batch_size=8", "muon_lr=0.01", "ema=0.9", "save_every=4"]
    double = ["steps=8", "batch_size=2", "accumulation=2", "muon_lr=0.01", "ema=0.9", "save_every=4"]
    run = trainer(tmp_path / "one", BASE.with_overrides(single))
    run.fit()
    done = launch(2, str(tmp_path / "two"), *double, "workers=1")
    assert done.returncode == 0, done.stderr[-3000:]
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    assert [r["step"] for r in logs[1]] == list(range(1, 9))
    for one, two in zip(*logs, strict=True):
        for name in ("loss", "ce", "mask", "grad_norm"):
            assert two[name] == pytest.approx(one[name], rel=1e-5), (name, one["step"])
    stored = [load_file(tmp_path / name / "last" / "model.safetensors") for name in ("one", "two")]
    assert stored[0].keys() == stored[1].keys()
    for name in stored[0]:
        torch.testing.assert_close(stored[1][name], stored[0][name], rtol=1e-3, atol=1e-5)
