"""A few steps of the official way of training, as a program that a launcher starts once for each process.

torchrun --standalone --nproc-per-node 2 -m glamm_mini.course.room_14.sharded_run OUT [stop=STEPS] [KEY=VALUE ...]
"""

import json
import signal
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from glamm_mini.course.room_08.lesson import official_start
from glamm_mini.course.room_14.lesson import state_bytes
from glamm_mini.data.collate import Collate
from glamm_mini.storybook.dataset import StorybookDataset
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer, TrainingInterrupted

SETTINGS = TrainSettings(
    steps=4, batch_size=4, lr=2e-3, schedule="constant", warmup=0, log_every=1, save_every=4, save_frozen=False,
    workers=0, threads=1, tensorboard=False, cpu=True,
)  # fmt: skip
"""Each of two processes takes half of the samples of a step, with batch_size=2."""


def small_run(out: Path, settings: TrainSettings = SETTINGS) -> Trainer:
    """A trainer of the tiny model as an official run begins, on captions alone and without dropout."""
    glamm, processor = official_start(0)
    for module in glamm.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # every process draws dropout of its own: two would not compute what one does
    scenes = StorybookDataset("train", seed=0, size=1000, long_side=128, conversations=1, mixture={"gcg": 1})
    return Trainer(glamm, scenes, Collate(processor), settings, out)


def note_held(model: torch.nn.Module, out: Path) -> None:
    """After the first step of an optimizer, write what this process holds then to `out/held_RANK.json`."""

    written = []

    def note(optimizer, *_):
        if written:
            return
        written.append(out)
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        out.mkdir(parents=True, exist_ok=True)
        (out / f"held_{rank}.json").write_text(json.dumps(held_here(model, optimizer)), "utf-8")

    # At that moment gradients are still there, and moments exist. Hooks stay: torch is going through them.
    register_optimizer_step_post_hook(note)


def stop_after(steps: int) -> None:
    """Ask for a stop, as Ctrl-C does, when an optimizer has made its step number `steps` (from 1)."""
    made = []

    def count(*_):
        made.append(1)
        if len(made) == steps:
            hook.remove()
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(count)


def held_here(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """What this process holds: bytes of each kind, and for each parameter its shape, placement and local shape."""
    parameters = {}
    for name, parameter in model.named_parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        placed = str(parameter.placements[0]) if isinstance(parameter, DTensor) else "whole"
        parameters[name] = {"shape": list(parameter.shape), "placement": placed, "here": list(local.shape)}
    return {"bytes": state_bytes(model, optimizer), "parameters": parameters}


def main(out: Path, changes: list[str]) -> None:
    """One process of a run in the folder `out`; `changes` are settings as KEY=VALUE, and `stop=STEPS` ends it early."""
    stops = [change for change in changes if change.startswith("stop=")]
    trainer = small_run(out, SETTINGS.with_overrides([change for change in changes if change not in stops]))
    note_held(trainer.model, out)
    for stop in stops:
        stop_after(int(stop.removeprefix("stop=")))
    with suppress(TrainingInterrupted):  # all is saved
        trainer.fit()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
