"""One process or several, started by `accelerate launch` or torchrun: which this is, and its device."""

import torch
from accelerate import PartialState


def find_processes() -> PartialState:
    """How this process was launched; to be asked before a model is loaded."""
    # Left to itself, accelerate joins the processes of a launcher on a CPU only when it is told to stay there.
    return PartialState(cpu=not torch.accelerator.is_available() or None)


def choose_device(given: str | None, processes: PartialState) -> str | None:
    """The device that was asked for, or this process's own; None leaves the choice to `load`.

    Processes that outnumber a machine's GPUs take turns. Raises ValueError for "auto" in several processes, each of
    which would spread its model over all GPUs.
    """
    if processes.num_processes == 1:
        return given
    if given == "auto":
        raise ValueError(
            f"device 'auto' spreads one model over all GPUs, but {processes.num_processes} processes were started; "
            "leave the device out, so that each has its own, or start one process"
        )
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return given or (f"cuda:{processes.local_process_index % gpus}" if gpus else "cpu")
