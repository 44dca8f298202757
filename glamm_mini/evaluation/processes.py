"""One process or several: who am I, wait for the others, share a value. Started by `accelerate launch` or torchrun."""

import os
from dataclasses import dataclass
from typing import Any


@dataclass
class Processes:
    """rank in 0 .. world - 1; device is None for a single process (then `load` chooses)."""

    rank: int = 0
    world: int = 1
    device: str | None = None
    state: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes, shows progress and scores."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def share(self, value: Any) -> Any:
        """The first process's value, in all processes."""
        if self.state is None:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]


def find_processes() -> Processes:
    """Read how this process was launched."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Processes(state.process_index, state.num_processes, own_device(state.local_process_index, gpus), state)


def own_device(local_rank: int, gpus: int) -> str:
    """The GPU of a machine's process `local_rank`; processes that outnumber the GPUs take turns. "cpu" without any."""
    return f"cuda:{local_rank % gpus}" if gpus else "cpu"


def choose_device(given: str | None, processes: Processes) -> str | None:
    """The device that was asked for, or this process's own; None leaves the choice to `load`.

    Raises ValueError for "auto" in several processes, each of which would spread its model over all GPUs.
    """
    if given == "auto" and processes.world > 1:
        raise ValueError(
            f"device 'auto' spreads one model over all GPUs, but {processes.world} processes were started; leave the "
            "device out, so that each has its own, or start one process"
        )
    return given or processes.device
