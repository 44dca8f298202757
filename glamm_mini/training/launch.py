"""How a run begins: the device, the processes and the precision."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType

from glamm_mini.dtypes import half_type
from glamm_mini.training.settings import TrainSettings


def join_processes(settings: TrainSettings) -> PartialState:
    """This process among those that a launcher started; to be called before anything else asks PartialState."""
    launched = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if PartialState._shared_state.get("num_processes") != launched or launched == 1:
        PartialState._reset_state()  # made without the right device, or by an earlier stage on another
    # Left to itself, accelerate joins the processes of a launcher on a CPU only when it is told to stay there.
    cpu = settings.cpu or not torch.accelerator.is_available() or None
    return PartialState(cpu=cpu, timeout=timedelta(minutes=settings.timeout_minutes))


def make_accelerator(settings: TrainSettings) -> Accelerator:
    """The Accelerator of one run; what `accelerate launch` or `torchrun` set up is read from the environment.

    Raises ValueError if the launch configuration asks accelerate to shard, or contradicts the settings.
    """
    AcceleratorState._reset_state()  # an earlier stage may have used another precision or device
    processes = join_processes(settings)
    cpu = processes.device.type == "cpu" or None
    precision = resolve_precision(settings.precision, processes.device)
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[unused])
    if accelerator.distributed_type == DistributedType.FSDP or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        # On a CPU accelerate would ignore its plugin without a word.
        raise ValueError(
            "accelerate is configured to shard (FSDP): leave that out and set shard=full, which shards in the same way"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        accelerator.state.deepspeed_plugin.deepspeed_config = deepspeed_config(config, settings, precision)
    return accelerator


def deepspeed_config(config: dict[str, Any], settings: TrainSettings, precision: str) -> dict[str, Any]:
    """A DeepSpeed configuration with every `auto` that the settings decide filled in.

    Raises ValueError for ZeRO-3, for another value than the settings have, for an optimizer or schedule of its own.
    """
    if settings.shard != "none" or settings.muon_lr:
        raise ValueError("DeepSpeed divides the state itself: set shard=none and muon_lr=0")
    if config.get("zero_optimization", {}).get("stage") == 3:
        raise ValueError(
            "DeepSpeed's ZeRO-3 leaves the model divided, so that one process could neither validate it nor write it "
            "at the end; launch without DeepSpeed and set shard=full, which divides as much, or use ZeRO-2"
        )
    if own := config.keys() & {"optimizer", "scheduler"}:
        raise ValueError(f"the DeepSpeed configuration has its own {own.pop()}; leave it out, the settings have one")
    wanted = {
        "train_micro_batch_size_per_gpu": settings.batch_size,
        # The trainer says which micro-batch ends a step, and has divided the losses already.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
    }
    for name, value in wanted.items():
        given = config.get(name, "auto")
        if isinstance(value, dict):
            wanted[name] = {**config.get(name, {}), **value}
            given, value = config.get(name, {}).get("enabled", "auto"), value["enabled"]
        if given not in ("auto", value):
            raise ValueError(f"the DeepSpeed configuration has {name} {given}, the settings {value}; write auto there")
    return {**config, **wanted}


def resolve_precision(precision: str, device: torch.device) -> str:
    """What `auto` means on `device`: no, bf16 or fp16; every other `precision` is returned as it is."""
    if precision != "auto":
        return precision
    if device.type == "cpu":
        # Without instructions of its own for it, a processor computes bf16 many times slower than float32.
        # Older releases of torch, 2.9 among them, cannot tell: float32 is right everywhere.
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"
    return {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[half_type(device)]
