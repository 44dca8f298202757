"""A toy model and toy data for the tests of the trainer; as a program, one training run in a process of its own.

python training_toy.py OUT [--resume] [--sleep SECONDS] [--dropout P] [--layout] [--at N SIGNAL] [--bad N]
    [KEY=VALUE ...] [--then OUT ...]

Behind --then stands another training, made in the same process.
"""

import argparse
import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from forked import run_program
from torch import nn

from glamm_mini.training.logs import read_log
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer

BASE = TrainSettings(
    steps=24, batch_size=4, lr=1e-2, save_every=5, log_every=1, threads=1, workers=0, tensorboard=False, cpu=True
)


@dataclass
class ToyOutput:
    loss: torch.Tensor
    losses: dict


class Layer(nn.Linear):
    """A unit of sharding."""


class Toy(nn.Module):
    """A regression on a sequence: loss over all tokens plus, where a sample has masks, a loss over masks."""

    _no_split_modules = ["Layer"]

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 16)
        self.hidden = nn.Linear(16, 32)
        self.inner = Layer(32, 32)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(32, 1)
        self.decoder = nn.Linear(32, 1)
        self.idle = nn.Parameter(torch.zeros(5))  # trained by name, used by no step: the quality head

    def forward(self, ids, target, lengths, has_mask, normalizers=None):
        x = self.embed(ids) + 0.1 * target[..., None]  # (B, T, C)
        x = self.dropout(self.inner(self.hidden(x).relu()).relu())
        real = torch.arange(ids.shape[1])[None] < lengths[:, None]  # (B, T)
        tokens = ((self.head(x)[..., 0] - target) ** 2)[real].sum()
        losses = {"ce": tokens / (normalizers["tokens"] if normalizers else real.sum())}
        masks = x.sum() * 0.0
        if has_mask.any():  # the decoder stays unused in a micro-batch without masks
            pooled = (x * real[..., None]).sum(1) / lengths[:, None]  # (B, C)
            masks = ((self.decoder(pooled[has_mask])[:, 0] - 1.0) ** 2).sum()
        losses["mask"] = masks / (normalizers["masks"] if normalizers else has_mask.sum().clamp(min=1))
        return ToyOutput(loss=losses["ce"] + losses["mask"], losses=losses)


class ToyData:
    """Sequences of 2 to 5 tokens; every third sample has a mask."""

    def __init__(self, size: int | None = 37, sleep: float = 0.0) -> None:
        self.size, self.sleep, self.seen = size, sleep, []

    def __len__(self) -> int:
        if self.size is None:
            raise TypeError("endless")
        return self.size

    def __getitem__(self, i: int):
        time.sleep(self.sleep)
        self.seen.append(i)
        generator = torch.Generator().manual_seed(i)
        count = 2 + i % 4
        return torch.randint(0, 7, (count,), generator=generator), torch.randn(count, generator=generator), i % 3 == 0


def collate(samples: list) -> dict:
    """Pads; counts tokens and masks."""
    batch = collate_without_counts(samples)
    return {**batch, "num_tokens": int(batch["lengths"].sum()), "num_masks": int(batch["has_mask"].sum())}


def collate_without_counts(samples: list) -> dict:
    """Pads."""
    lengths = torch.tensor([len(ids) for ids, _, _ in samples])
    return {
        "ids": nn.utils.rnn.pad_sequence([ids for ids, _, _ in samples], batch_first=True),
        "target": nn.utils.rnn.pad_sequence([target for _, target, _ in samples], batch_first=True),
        "lengths": lengths,
        "has_mask": torch.tensor([mask for _, _, mask in samples]),
    }


def trainer(out, settings: TrainSettings = BASE, data=None, model=None, **more) -> Trainer:
    """A trainer of the toy."""
    return Trainer(
        model or Toy(), ToyData() if data is None else data, more.pop("collate", collate), settings, out, **more
    )


def losses(out: Path) -> list[tuple]:
    """The losses of every log line, exactly as written."""
    return [(r["step"], r["loss"], r["ce"], r["mask"], r["grad_norm"]) for r in read_log(Path(out) / "log.jsonl")]


def layout(parameter: torch.Tensor) -> dict:
    """How a parameter lies in this process."""
    placements = [str(p) for p in getattr(parameter, "placements", ())]
    local = parameter.to_local() if placements else parameter
    return {"type": type(parameter).__name__, "placements": placements, "here": local.numel(), "all": parameter.numel()}


class LayoutTrainer(Trainer):
    """Writes how the parameters and their moments lie in each process, at the last checkpoint."""

    def _save(self) -> None:
        super()._save()
        names = {id(p): name for name, p in self.model.named_parameters()}
        state = self.optimizer.optimizer.state
        found = {name: layout(p) for name, p in self.model.named_parameters()}
        found |= {f"moment of {names[id(p)]}": layout(entry["exp_avg"]) for p, entry in state.items()}
        (self.out / f"layout_{self.accelerator.process_index}.json").write_text(json.dumps(found))


class Signalled(ToyData):
    """Sends a signal to the second process when it reads its sample number `at`: a worker that dies or hangs."""

    def __init__(self, sleep: float, at: int, number: int) -> None:
        super().__init__(sleep=sleep)
        self.at, self.number = at, number

    def __getitem__(self, i: int):
        if len(self.seen) == self.at and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), self.number)
        return super().__getitem__(i)


class Bad(ToyData):
    """Sample number `at` that the second process reads has a target that is not a number."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __getitem__(self, i: int):
        ids, target, mask = super().__getitem__(i)
        bad = len(self.seen) == self.at and os.environ.get("RANK", "1") == "1"
        return ids, target * (float("nan") if bad else 1.0), mask


def held_out_loss(model: nn.Module) -> dict[str, float]:
    """A figure that depends on all weights."""
    return {"loss": float(model(**collate_without_counts([ToyData()[i] for i in range(6)])).loss)}


def weights_of(model: nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def main(words: list[str]) -> None:
    """One training, as the words say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--layout", action="store_true")
    parser.add_argument("--at", nargs=2, metavar=("N", "SIGNAL"))
    parser.add_argument("--bad", type=int)
    parser.add_argument("settings", nargs="*")
    arguments = parser.parse_intermixed_args(words)
    settings = BASE.with_overrides(arguments.settings)
    data = Bad(arguments.bad) if arguments.bad else ToyData(sleep=arguments.sleep)
    if arguments.at:
        data = Signalled(arguments.sleep, int(arguments.at[0]), getattr(signal, arguments.at[1]))
    make = LayoutTrainer if arguments.layout else Trainer
    run = make(Toy(arguments.dropout), data, collate, settings, arguments.out, validate=held_out_loss)
    rank = os.environ.get("RANK", 0)
    try:
        run.fit(resume=arguments.resume)
    except ValueError as error:
        Path(arguments.out, f"error_{rank}.txt").write_text(str(error))
        return
    assert all(type(p) is nn.Parameter for p in run.model.parameters())
    torch.save(weights_of(run.model), f"{arguments.out}/weights_{rank}.pt")


def together(processes: int, *words: str, program: str = __file__, timeout: float = 300) -> None:
    """Runs a program in several processes, which know each other; an AssertionError if one ends with an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(processes)}
    group |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    with tempfile.TemporaryDirectory() as folder:
        errors = [Path(folder) / str(rank) for rank in range(processes)]
        started = [run_program(program, list(words), *own) for own in zip(ranks, errors, strict=True)]
        ends = [process.wait(timeout) for process in started]
        assert not any(ends), "\n".join(path.read_text()[-3000:] for path in errors)


if __name__ == "__main__":
    words = sys.argv[1:]
    while words:
        end = words.index("--then") if "--then" in words else len(words)
        main(words[:end])
        words = words[end + 1 :]
