"""How a run lies over its processes: device, precision, DeepSpeed's configuration, shards.

Sharding: each process keeps a shard of every parameter, gradient and optimizer state (torch's `fully_shard`). A unit is
gathered in whole before its forward and backward pass and freed after. Units are the transformer layers of the three
encoders, which every process runs equally often. All else (embeddings, heads, projectors, region encoder, pixel
decoder) belongs to the root, gathered for the whole pass: the model reads such weights outside of their module's
forward, and whether it runs them depends on the batch, so that processes would wait for each other for ever.
"""

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from glamm_mini.dtypes import half_type
from glamm_mini.training.settings import TrainSettings

PICTURES = ("global_images", "grounding_images")  # what encoders are given in a batch; other models have neither


def join_processes(settings: TrainSettings) -> PartialState:
    """This process among those that a launcher started; to be called before anything else asks PartialState."""
    launched = distributed.get_world_size() if distributed.is_initialized() else 1
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
        raise ValueError("accelerate is configured to shard (FSDP): leave that out, and set shard=full for the same")
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
    filled = {
        **config,
        "train_micro_batch_size_per_gpu": settings.batch_size,
        # The trainer says which micro-batch ends a step, and has divided the losses already.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip,
        "bf16": {**config.get("bf16", {}), "enabled": precision == "bf16"},
        "fp16": {**config.get("fp16", {}), "enabled": precision == "fp16"},
    }
    for name, given in config.items():
        value = filled[name]
        if name in ("bf16", "fp16"):
            given, value = given.get("enabled", "auto"), value["enabled"]
        if given not in ("auto", value):
            raise ValueError(f"the DeepSpeed configuration has {name} {given}, the settings {value}; write auto there")
    return filled


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


def units(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: those whose class `_no_split_modules` of the model names."""
    named = (getattr(module, "_no_split_modules", None) for module in model.modules())
    names = next((found for found in named if found), ())
    # A sharded module's own class is made up for it, with the original as its base.
    return [module for module in model.modules() if any(base.__name__ in names for base in type(module).__mro__)]


def policy(precision: str) -> MixedPrecisionPolicy:
    """Parameters are gathered in `precision`, while shards keep their type; gradients are averaged in float32; inputs
    are not cast, as autocast does that where it is safe. Raises ValueError for fp16, whose scaling would have to see
    all shards."""
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision {precision} cannot be sharded; expected one of no, bf16, or auto")
    types = {} if precision == "no" else {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32}
    return MixedPrecisionPolicy(**types, cast_forward_inputs=False)


class Sharded:
    """A model whose parameters are DTensors cut along their first dimension, one shard a process; changed in place and
    for good: torch has no way back from `fully_shard`, so `whole` gives another model.

    model: on the CPU, with the same weights in every process. device: of the process group, cpu, cuda ...; the shards
    go there. precision: no or bf16. Raises ValueError for fp16, and for processes that start from different weights.
    """

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        how = {"mp_policy": policy(precision), "mesh": init_device_mesh(device, (distributed.get_world_size(),))}
        check_equal(model, device)
        # The model as it was, without memory: parameters are replaced by ones on the meta device, also where shared.
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
        self.twin = copy.deepcopy(model, empty)
        layers = units(model)
        self.device, self.model, self.modules = device, model, [*layers, model]
        for layer in layers:
            fully_shard(layer, reshard_after_forward=True, **how)
        # The backward pass begins where the forward pass ended: freeing the root between the two would be in vain.
        fully_shard(model, reshard_after_forward=False, **how)
        # One process's batch may have boxes or masks where another's has none: it averages zeros.
        model.set_reduce_scatter_unused_params(True)
        # The trainer only reads what the model returns.
        warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(model).__name__}\) returned a view")
        trained = {type(layer) for layer in layers if any(p.requires_grad for p in layer.parameters())}
        for layer in layers:
            if type(layer) in trained:
                layer.register_forward_pre_hook(_ask_for_gradient, prepend=True, with_kwargs=True)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.used: set[str] = set()
        for module in self.modules:
            self._watch(module)

    def _watch(self, module: nn.Module) -> None:
        """Notes, from the first forward pass of `module` on, which of its own parameters get a gradient."""
        names = {id(p): name for name, p in self.trained.items()}
        own = {local: names[id(p)] for local, p in module.named_parameters() if id(p) in names}

        def start(*_) -> None:
            # Whole weights exist only now; they are the same objects in every later pass.
            hook.remove()
            for local, parameter in module.named_parameters():
                if local in own and not isinstance(parameter, DTensor):
                    parameter.register_post_accumulate_grad_hook(lambda _, name=own[local]: self.used.add(name))

        hook = module.register_forward_pre_hook(start)

    def drop_unused(self) -> None:
        """Takes away gradients of parameters that no process has used since the last call, as one process has none:
        they are zeros, with which an optimizer would count a step and follow its old moments."""
        flags = torch.tensor([name in self.used for name in self.trained], dtype=torch.int32, device=self.device)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        for parameter, flag in zip(self.trained.values(), flags.tolist(), strict=True):
            if not flag:
                parameter.grad = None
        self.used.clear()

    def reshard(self) -> None:
        """Frees all gathered weights: the parameters are shards again, as the optimizer and checkpoints expect."""
        for module in self.modules:
            module.reshard()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """The root's weights are whole inside, so that methods other than `forward` find them (generation does).
        Every process must enter and do the same inside: layers are still gathered one by one."""
        self.model.unshard()
        try:
            yield
        finally:
            self.reshard()

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """A model as the given one was, with the trained weights, whole and on the CPU, in every process."""
        self.reshard()
        filled = {}
        for empty, shard in zip(self.twin.parameters(), self.model.parameters(), strict=True):
            tensor = shard.full_tensor() if isinstance(shard, DTensor) else shard
            filled[id(empty)] = nn.Parameter(tensor.detach().cpu(), shard.requires_grad)
        model = copy.deepcopy(self.twin, filled)
        for own, trained in zip(model.buffers(), self.model.buffers(), strict=True):
            own.copy_(trained)
        return model


def _ask_for_gradient(layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    # Gradients are averaged when they reach a layer's input, else at the very end. Whether they reach the first layer
    # may depend on the batch (frozen embeddings, a trained region encoder); the order must not.
    x = args[0] if args else None
    if torch.is_grad_enabled() and torch.is_tensor(x) and x.is_floating_point() and not x.requires_grad:
        args = (x.detach().requires_grad_(), *args[1:])
    return args, kwargs


@torch.no_grad()
def check_equal(model: nn.Module, device: str) -> None:
    """Every process cuts its shards from its own copy of the model: a ValueError if the copies differ."""
    sums = torch.stack([p.detach().reshape(-1)[:64].double().sum().cpu() for p in model.parameters()])
    if not _same_everywhere(sums.to(device)):
        raise ValueError("the processes start from different weights: seed or load the model alike in all of them")


def check_alike(batches: list[dict], device: torch.device) -> None:
    """A ValueError if one process has pictures where another has not: encoders must run in all processes or in none,
    or they would wait for each other until the time is out. Boxes and masks may differ."""
    held = [int(batch.get(name) is not None) for batch in batches for name in PICTURES]
    if not _same_everywhere(torch.tensor(held, device=device)):
        raise ValueError(
            f"a step has {' or '.join(PICTURES)} in one process and not in another, which a sharded model cannot "
            "train on: leave out samples of text alone, take a larger batch_size, or set shard=none"
        )


def _same_everywhere(values: torch.Tensor) -> bool:
    # The most, and the least with its sign turned, in one exchange.
    both = torch.stack([values, -values])
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    return torch.equal(both[0], -both[1])


def shard_state(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """`state`, an optimizer's `state_dict()` of whole tensors, cut as the optimizer's own parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def cut(value: Any, like: torch.Tensor) -> Any:
        if not isinstance(like, DTensor) or not torch.is_tensor(value) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    held = {i: {k: cut(v, parameters[i]) for k, v in entry.items()} for i, entry in state["state"].items()}
    return {**state, "state": held}
