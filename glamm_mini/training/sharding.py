"""Sharding: each process keeps a shard of every parameter, gradient and optimizer state (torch's `fully_shard`).

A unit is gathered in whole before its forward and backward pass and freed after. Units are the transformer layers of
the three encoders, which every process runs equally often. All else (embeddings, heads, projectors, region encoder,
pixel decoder) belongs to the root, gathered for the whole pass: the model reads such weights outside of their module's
forward, and whether it runs them depends on the batch, so that processes would wait for each other for ever.

The checkpoint of a sharded run is torch's distributed one in safetensors files: every process writes its shards, any
number of processes reads them, and no pickle is written or read (torch's own format has several).
"""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

PRECISIONS = {"no": None, "bf16": torch.bfloat16}
"""In which type parameters travel and compute; the shards themselves keep theirs (float32, as a rule)."""

PICTURES = ("global_images", "grounding_images")
"""What the encoders are given in a batch; other models have neither."""

WEIGHT, MOMENT = "model.", "optimizer."
"""What the names of tensors in a sharded checkpoint begin with."""

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def units(model: nn.Module) -> list[nn.Module]:
    """The modules that are gathered one at a time: those whose class `_no_split_modules` of the model names."""
    named = (getattr(module, "_no_split_modules", None) for module in model.modules())
    names = next((found for found in named if found), ())
    # A sharded module's own class is made up for it, with the original as its base.
    return [module for module in model.modules() if any(base.__name__ in names for base in type(module).__mro__)]


def policy(precision: str) -> dict:
    """What `fully_shard` is told of every unit.

    Parameters are gathered in `precision`; gradients are averaged in float32. Inputs are not cast: autocast does that
    where it is safe, and boxes must stay in float32.

    Raises:
        ValueError: fp16, whose loss scaling would have to see all shards at once.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision} cannot be sharded; expected one of {', '.join(PRECISIONS)}, or auto")
    gathered = PRECISIONS[precision]
    reduced = None if gathered is None else torch.float32
    mixed = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=reduced, cast_forward_inputs=False)
    return {"mp_policy": mixed, "reshard_after_forward": True}


class Sharded:
    """A model whose parameters are DTensors cut along their first dimension, one shard a process; changed in place and
    for good: torch has no way back from `fully_shard`, so `whole` gives another model.

    Args:
        model: on the CPU, with the same weights in every process; the shards go to the process's device.
        device: of the process group: cpu, cuda ...
        precision: no or bf16.

    Raises:
        ValueError: fp16, or processes that start from different weights.
    """

    def __init__(self, model: nn.Module, device: str, precision: str) -> None:
        how = policy(precision)
        mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
        check_equal(model, device)
        # The model as it was, without memory: parameters are replaced by ones on the meta device, also where shared.
        empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
        self.twin = copy.deepcopy(model, empty)
        self.device, self.model, self.modules = device, model, [*units(model), model]
        for module in self.modules[:-1]:
            fully_shard(module, mesh=mesh, **how)
        # The backward pass begins where the forward pass ended: freeing the root between the two would be in vain.
        fully_shard(model, mesh=mesh, **how | {"reshard_after_forward": False})
        # One process's batch may have boxes or masks where another's has none: it averages zeros.
        model.set_reduce_scatter_unused_params(True)
        # The trainer only reads what the model returns.
        warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({type(model).__name__}\) returned a view")
        layers = self.modules[:-1]
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
                    name = own[local]
                    parameter.register_post_accumulate_grad_hook(lambda _, name=name: self.used.add(name))

        hook = module.register_forward_pre_hook(start)

    def drop_unused(self) -> None:
        """Takes away gradients of parameters that no process has used since the last call, as one process has none.

        They are zeros, with which an optimizer would count a step and follow its old moments.
        """
        flags = torch.tensor([name in self.used for name in self.trained], dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
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

        Every process must enter and do the same inside: layers are still gathered one by one.
        """
        self.model.unshard()
        try:
            yield
        finally:
            self.reshard()

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """A model as the given one was, with the trained weights, whole and on the CPU, in every process."""
        self.reshard()
        made = {}
        for empty, shard in zip(self.twin.parameters(), self.model.parameters(), strict=True):
            tensor = shard.full_tensor() if isinstance(shard, DTensor) else shard
            made[id(empty)] = nn.Parameter(tensor.detach().cpu(), shard.requires_grad)
        for module in self.twin.modules():
            for name, empty in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                setattr(module, name, made[id(empty)])
        for own, trained in zip(self.twin.buffers(), self.model.buffers(), strict=True):
            own.copy_(trained)
        return self.twin


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
    sums = torch.stack([p.detach().reshape(-1)[:64].double().sum().cpu() for p in model.parameters()]).to(device)
    least, most = sums.clone(), sums.clone()
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise ValueError("the processes start from different weights: seed or load the model alike in all of them")


def check_alike(batches: list[dict], device: torch.device) -> None:
    """Encoders must run in all processes or in none: a ValueError if one has pictures where another has not.

    Without it they would wait for each other until the time is out. Boxes and masks may differ.
    """
    held = [int(batch.get(name) is not None) for batch in batches for name in PICTURES]
    # The most, and the least with its sign turned, in one exchange.
    both = torch.tensor([held, [-flag for flag in held]], device=device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    if not torch.equal(both[0], -both[1]):
        raise ValueError(
            f"a step has {' or '.join(PICTURES)} in one process and not in another, which a sharded model cannot "
            "train on: leave out samples of text alone, take a larger batch_size, or set shard=none"
        )


def shard_like(value: object, sample: torch.Tensor) -> object:
    """This process's shard of `value`, if it is a tensor of the shape of `sample`, which is sharded; else `value`."""
    if not isinstance(sample, DTensor) or not torch.is_tensor(value) or value.shape != sample.shape:
        return value
    value = value.to(sample.device)
    return distribute_tensor(value, sample.device_mesh, sample.placements, src_data_rank=None)


def shard_state(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """`state`, an optimizer's `state_dict()` of whole tensors, cut as the optimizer's own parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    held = {i: {k: shard_like(v, parameters[i]) for k, v in entry.items()} for i, entry in state["state"].items()}
    return {**state, "state": held}


def save_shards(folder: Path, model: nn.Module, names: set[str], optimizer: torch.optim.Optimizer) -> None:
    """Writes this process's shards of the tensors `names` of the model, and of the optimizer.

    All processes call it together; `folder` must be one that they share.

    Raises:
        OSError: in every process, if one could not write.
    """
    tensors = _tensors(model, names, _moments(get_optimizer_state_dict(model, optimizer, options=_FLAT)))
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        causes = (failure[0] if isinstance(failure, tuple) else failure for failure in error.failures.values())
        raise OSError("; ".join(str(cause) for cause in causes)) from error


def load_shards(folder: Path, model: nn.Module, names: set[str], optimizer: torch.optim.Optimizer) -> None:
    """Fills model and optimizer, in shards or whole, whatever number of processes wrote them.

    Raises:
        ValueError: a file is damaged, or the checkpoint is of another model.
    """
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:
        raise ValueError(f"the sharded checkpoint {folder} cannot be read ({error}); copy it again in full") from error
    state = get_optimizer_state_dict(model, optimizer, options=_FLAT)  # makes moments for all trained parameters
    # A parameter that no step has used has none in the file, and must have none after.
    moved = {_owner(name.removeprefix(MOMENT)) for name in stored if name.startswith(MOMENT)}
    tensors = _tensors(model, names, ((name, moment) for name, moment in _moments(state) if _owner(name) in moved))
    check_shapes(folder, stored, tensors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads: as it should be
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)))
    set_optimizer_state_dict(model, optimizer, state, options=_FLAT)
    for name, parameter in model.named_parameters():
        if name not in moved:
            optimizer.state.pop(parameter, None)


def check_shapes(folder: Path, stored: Mapping[str, Any], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError if names or shapes differ. stored: tensors, or torch's descriptions of them."""
    found = {name: tuple(entry.shape if torch.is_tensor(entry) else entry.size) for name, entry in stored.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in wanted.items()}
    odd = [name for name in sorted(found.keys() | shapes.keys()) if found.get(name) != shapes.get(name)]
    if odd:
        listed = ", ".join(odd[:5])
        raise ValueError(f"the checkpoint {folder} is of another model: {len(odd)} tensors differ, such as {listed}")


def _tensors(model: nn.Module, names: set[str], moments: Iterator) -> dict[str, torch.Tensor]:
    tensors = {WEIGHT + name: tensor for name, tensor in model.state_dict().items() if name in names}
    return tensors | {MOMENT + name: tensor for name, tensor in moments}


def _moments(state: dict) -> Iterator[tuple[str, torch.Tensor]]:
    # Beside the moments stand the settings of each group; they follow from TrainSettings and the step.
    return ((name, value) for name, value in state.items() if name.startswith("state.") and torch.is_tensor(value))


def _owner(moment: str) -> str:
    """The parameter's name in "state.NAME.exp_avg"."""
    return moment.removeprefix("state.").rpartition(".")[0]
