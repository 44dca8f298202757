"""How a run begins: the device, the processes and the precision; and its folder, new or to be resumed."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from glamm_mini.training import resume as checkpoint
from glamm_mini.training.settings import TrainSettings


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """The Accelerator of one run; what `accelerate launch` or `torchrun` set up is read from the environment."""
    # An earlier stage of this process may have used another precision or device.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    # Left to itself, accelerate joins the processes of a launcher on a CPU only when it is told to stay there.
    cpu = settings.cpu or not torch.accelerator.is_available() or None
    precision = resolve_precision(settings.precision, PartialState(cpu=cpu).device)
    unused = DistributedDataParallelKwargs(find_unused_parameters=settings.find_unused)
    return Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[unused])


def resolve_precision(precision: str, device: torch.device) -> str:
    """What `auto` means on `device`: no, bf16 or fp16; every other `precision` is returned as it is."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        # Without instructions of its own for it, a processor computes bf16 many times slower than float32.
        able = torch.cpu.get_capabilities()
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"
    if device.type != "cuda":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def claim_folder(accelerator: Accelerator, out: Path, settings: TrainSettings, resume: bool) -> bool:
    """Whether `out` holds a checkpoint to resume from; writes the settings of a new run into it.

    Raises:
        ValueError: there is a run and `resume` is False, or it was started with other settings.
    """
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        checkpoint.recover(out)
    accelerator.wait_for_everyone()
    found = (out / checkpoint.LAST).exists()
    described = {**settings.to_dict(), "processes": accelerator.num_processes}
    if found and not resume:
        raise ValueError(
            f"{out} already holds a run, saved at step {checkpoint.read_manifest(out)['step']}. "
            "Resume it (resume=True, --resume), choose another folder, or delete this one"
        )
    if found:
        checkpoint.check_settings(out, described)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not found:
        checkpoint.write_settings(out, described)
        if resume:
            print(f"no checkpoint in {out} yet: starting from the first step", file=sys.stderr)
    return found
