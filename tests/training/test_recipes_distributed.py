"""One process and two (gloo, CPU) train the same GLaMM: the real model, losses and data, on a few scenes."""

import sys
from pathlib import Path

import pytest
import torch
import training_toy
from once import once
from safetensors.torch import save_file

from glamm_mini.storybook.pretrain.encoder_stage import EncoderTraining
from glamm_mini.storybook.pretrain.language_stage import LanguageTraining
from glamm_mini.storybook.pretrain.run import untrained
from glamm_mini.storybook.pretrain.segmenter_stage import SegmenterTraining
from glamm_mini.training import recipes
from glamm_mini.training.logs import read_log

STEPS = "log_every=1 threads=1 workers=0 cpu=true tensorboard=false conversations=2".split()
PLAIN = [*STEPS, "precision=no", "scenes=0", "steps=2"]
RUNS = {
    "storybook": ("storybook", ["backbones=BACKBONES", *PLAIN]),
    # Dropout depends on the process: two draw other masks than one.
    "combined": ("combined", ["lora.dropout=0", "merge=false", *PLAIN]),
    "half": ("gcg", [*STEPS, "precision=bf16", "shard=full", "scenes=1", "steps=1"]),
}


def run(name: str, folder: Path, batch_size: int) -> None:
    """One of RUNS, into a folder of its name."""
    recipe, overrides = RUNS[name]
    overrides = [text.replace("BACKBONES", str(folder.parent / "backbones")) for text in overrides]
    recipes.run(recipe, "tiny", "storybook", folder / name, overrides=[*overrides, f"batch_size={batch_size}"])


def _train(folder: Path) -> None:
    """Runs of one process in `one`, of two with half the batch in `two`."""
    (folder / "backbones").mkdir()
    torch.set_num_threads(1)
    glamm, _ = untrained("tiny")
    torch.manual_seed(1)
    parts = {
        "encoder": EncoderTraining(glamm),
        "segmenter": SegmenterTraining(glamm),
        "language": LanguageTraining(glamm),
    }
    for name, part in parts.items():
        state = {k: v.contiguous() for k, v in part.state_dict().items()}
        save_file(state, folder / "backbones" / f"{name}.safetensors")
    for name in ("storybook", "combined"):
        run(name, folder / "one", 4)
    training_toy.together(2, str(folder / "two"), program=__file__)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder that `_train` filled."""
    pytest.importorskip("peft")
    return once(tmp_path_factory, "recipes", _train)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parts"), [("storybook", ["dense", "regions", "box"]), ("combined", [])], ids=["whole", "fine-tuned"]
)
def test_two_processes_train_what_one_trains(trained, name, parts):
    one, two = (read_log(trained / processes / name / "log.jsonl") for processes in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        for part in ("loss", "ce", "mask_bce", "mask_dice", "grad_norm", *parts):
            assert b[part] == pytest.approx(a[part], rel=2e-5), part


@pytest.mark.slow
def test_shards_in_half_precision_are_validated_and_end_whole(trained):
    """Gathered weights are bfloat16 and the rest float32: answering needs autocast, as training does."""
    log = read_log(trained / "two" / "half" / "log.jsonl")
    assert 0 <= log[-1]["validation"]["gcg_miou"] <= 1
    assert (trained / "two" / "half" / "model" / "model.safetensors").is_file()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in RUNS:
        run(name, Path(sys.argv[1]), 2)
