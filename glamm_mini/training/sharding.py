"""Sharding: each process keeps a shard of every parameter, gradient and optimizer state (torch's `fully_shard`).

A unit is gathered in whole before its forward and backward pass and freed after. Units are the transformer layers of
the three encoders, which every process runs equally often. All else (embeddings, heads, projectors, region encoder,
pixel decoder) belongs to the root, gathered for the whole pass: the model reads such weights outside of their module's
forward, and whether it runs them depends on the batch, so that processes would wait for each other for ever.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

PICTURES = ("global_images", "grounding_images")
"""What the encoders are given in a batch; other models have neither."""


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
        """Takes away gradients of parameters that no process has used since the last call, as one process has none.

        They are zeros, with which an optimizer would count a step and follow its old moments.
        """
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
    """Encoders must run in all processes or in none: a ValueError if one has pictures where another has not.

    Without it they would wait for each other until the time is out. Boxes and masks may differ.
    """
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
