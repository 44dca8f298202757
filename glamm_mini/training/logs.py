"""The training log: mean losses between two lines, one JSON line per record, and TensorBoard when installed."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from glamm_mini.paths import write_whole

LOG_NAME = "log.jsonl"


def sum_type(device: torch.device) -> torch.dtype:
    """float64, which Apple's GPUs lack: float32 there."""
    return torch.float32 if device.type == "mps" else torch.float64


class LossWindow:
    """Sums of the losses since the last log line, on the device, so that no step waits for a copy to the CPU."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = 0

    def add(self, losses: Mapping[str, Any], scale: float = 1.0) -> None:
        """Adds `scale` times the losses of one micro-batch; `steps` is counted by the caller."""
        for name, value in losses.items():
            value = torch.as_tensor(value).detach()
            self.sums[name] = value.to(sum_type(value.device)) * scale + self.sums.get(name, 0)

    def means(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means over the steps; `reduce` averages over processes. Every process must hold the same names."""
        if not self.steps:
            return {}
        names = sorted(self.sums)
        values = reduce(torch.stack([self.sums[name] for name in names]) / self.steps)
        return dict(zip(names, values.tolist(), strict=True))

    def load(self, means: Mapping[str, float], steps: int, device: torch.device) -> None:
        """Takes the state that `means` and `steps` describe."""
        kind, self.steps = sum_type(device), steps
        self.sums = {n: torch.tensor(m * steps, dtype=kind, device=device) for n, m in means.items()}


class TrainingLog:
    """Appends records to `folder/log.jsonl`; a resumed run first cuts what lies behind `resumed_step`, its checkpoint.

    enabled: False on processes other than the first: every call does nothing. tensorboard: also write events to
    `folder/tensorboard` if TensorBoard is installed.
    """

    def __init__(self, folder: Path, resumed_step: int = 0, enabled: bool = True, tensorboard: bool = True) -> None:
        self.file = self.writer = None
        if not enabled:
            return
        path = folder / LOG_NAME
        kept = [json.dumps(record) + "\n" for record in read_log(path) if record["step"] <= resumed_step]
        write_whole(path, "".join(kept))
        self.file = open(path, "a", encoding="utf-8", buffering=1)
        if tensorboard:
            with suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step + 1)

    def write(self, step: int, record: dict[str, Any]) -> None:
        """Appends one record; numbers that are not finite become null."""
        if self.file is not None:
            finite = json.loads(json.dumps({"step": step, **record}), parse_constant=lambda _: None)
            self.file.write(json.dumps(finite) + "\n")
        if self.writer is not None:
            figures = {f"validation/{name}": value for name, value in record.get("validation", {}).items()}
            for name, value in {**record, **figures}.items():
                if isinstance(value, (int, float)):
                    self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Closes the files."""
        for output in (self.file, self.writer):
            if output is not None:
                output.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The records of a log; a line that a kill left half written is skipped. No file gives an empty list."""
    path, records = Path(path), []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and isinstance(record.get("step"), int)]
