"""Which samples make up which step: a function of step, micro-batch, process and seed; resuming needs no state."""

import hashlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from glamm_mini.training.settings import TrainSettings

# What losses are divided by -> the key under which a micro-batch brings its count along.
COUNTS = {"tokens": "num_tokens", "masks": "num_masks", "images": "num_images"}


def keyed_seed(*parts: object) -> int:
    """A seed of 63 bits that depends on all `parts`, equal on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Batches(Dataset):
    """Micro-batch k of one process, collated; k counts micro-batches from the start of the run.

    One process with batch 2B, two processes with batch B, and two micro-batches of B each see the same samples
    per step. `size` is `len(data)`, or None when data is endless. Raises ValueError when it is empty.
    """

    def __init__(self, data: Any, collate: Callable, settings: TrainSettings, process: int = 0, processes: int = 1):
        self.data, self.collate, self.seed = data, collate, settings.seed
        self.batch_size, self.process, self.processes = settings.batch_size, process, processes
        try:
            self.size = len(data)
        except TypeError:
            self.size = None
        if self.size == 0:
            raise ValueError("the training data is empty: no sample was found")
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def indices(self, k: int) -> list[int]:
        """Indices into the data of micro-batch `k`."""
        start = (k * self.processes + self.process) * self.batch_size
        return [self.index(position) for position in range(start, start + self.batch_size)]

    def index(self, position: int) -> int:
        """Index of the sample at `position` of the endless sequence that training reads: an epoch has an order of its
        own; data without a length is read straight through."""
        if self.size is None:
            return position
        epoch, place = divmod(position, self.size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(keyed_seed("order of samples", self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
        return int(self._order[place])

    def __getitem__(self, k: int) -> dict:
        return self.collate([self.data[i] for i in self.indices(k)])


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group: the training process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)


def micro_batches(batches: Batches, settings: TrainSettings, first_step: int, pin: bool = False) -> Iterator[dict]:
    """The micro-batches from `first_step` to the end of the run, prepared ahead by worker processes."""
    a = settings.accumulation
    order = range(first_step * a, settings.steps * a)
    workers = min(settings.workers, len(order))
    ahead = {"prefetch_factor": 4, "worker_init_fn": _start_worker} if workers else {}
    return iter(DataLoader(batches, batch_size=None, sampler=order, num_workers=workers, pin_memory=pin, **ahead))
