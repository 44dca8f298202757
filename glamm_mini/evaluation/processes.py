"""One process or several: who am I, wait for the others, share a value. Started by `accelerate launch` or torchrun."""

import os
from dataclasses import dataclass
from typing import Any


@dataclass
class Processes:
    """rank in 0 .. world - 1; device is None for a single process (then `load` chooses)."""

    rank: int = 0
    world: int = 1
    device: Any = None
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
    return Processes(state.process_index, state.num_processes, state.device, state)
