"""One process and two (gloo, CPU) train the same GLaMM: the real model, losses and data, on a few scenes."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from glamm_mini.storybook.pretrain.encoder_stage import EncoderTraining
from glamm_mini.storybook.pretrain.language_stage import LanguageTraining
from glamm_mini.storybook.pretrain.segmenter_stage import SegmenterTraining
from glamm_mini.training import recipes
from glamm_mini.training.logs import read_log


@pytest.fixture(scope="module")
def untrained_backbones(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    glamm, _ = recipes.untrained("tiny")
    torch.manual_seed(1)
    parts = {
        "encoder": EncoderTraining(glamm),
        "segmenter": SegmenterTraining(glamm),
        "language": LanguageTraining(glamm),
    }
    for name, part in parts.items():
        save_file({k: v.contiguous() for k, v in part.state_dict().items()}, folder / f"{name}.safetensors")
    return folder


def _train(recipe, out, processes, batch_size, *more):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    settings = f"steps=2 batch_size={batch_size} log_every=1 threads=1 workers=0 precision=no scenes=0 cpu=true".split()
    command = [sys.executable, *launcher, "-m", "glamm_mini.cli.main", "train", recipe, "--out", str(out)]
    for setting in [*settings, *more]:
        command += ["--set", setting]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    return read_log(out / "log.jsonl")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(untrained_backbones, tmp_path):
    one = _train("storybook", tmp_path / "one", 1, 4, f"backbones={untrained_backbones}")
    two = _train("storybook", tmp_path / "two", 2, 2, f"backbones={untrained_backbones}")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "ce", "mask_bce", "mask_dice", "dense", "regions", "box", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-5), name


@pytest.mark.slow
def test_two_processes_fine_tune_what_one_fine_tunes(tmp_path):
    # Dropout depends on the process: two draw other masks than one.
    more = ("conversations=2", "lora.dropout=0", "merge=false")
    one = _train("combined", tmp_path / "one", 1, 4, *more)
    two = _train("combined", tmp_path / "two", 2, 2, *more)
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "ce", "mask_bce", "mask_dice", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-5), name


@pytest.mark.slow
def test_slices_in_half_precision_are_validated_and_end_whole(tmp_path):
    """Gathered weights are bfloat16 and the rest float32: answering needs autocast, as training does."""
    more = ("precision=bf16", "shard=full", "scenes=1", "conversations=2", "steps=1")
    log = _train("gcg", tmp_path, 2, 2, *more)
    assert 0 <= log[-1]["validation"]["gcg_miou"] <= 1
    assert (tmp_path / "model" / "model.safetensors").is_file()
