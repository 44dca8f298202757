"""What a training step holds in memory, counted tensor by tensor; on the meta device too, where nothing is stored."""

from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor


def state_bytes(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of a model's weights, of their gradients, and of what the optimizer remembers of each trained number."""
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    states = [t for state in optimiser.state.values() for t in state.values()]
    moments = [t for t in states if torch.is_tensor(t) and t.dim()]
    kinds = {"weights": parameters, "gradients": gradients, "optimiser": moments}
    return {kind: sum(local(t).nbytes for t in tensors) for kind, tensors in kinds.items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The slice of a sharded tensor that this process holds; of any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def held_for_backward(model: nn.Module, run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, list[tuple]]:
    """What `run()` computes, and every tensor that autograd keeps for the backward pass: (shape, bytes), largest first.

    Tensors that share memory count once; parameters and buffers of the model do not count. `run` is a forward pass.
    """
    seen = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    held = []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            held.append((tuple(tensor.shape), storage.nbytes()))
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        out = run()
    return out, sorted(held, key=lambda pair: -pair[1])


def bytes_of(held: list[tuple]) -> int:
    """The sum of what `held_for_backward` lists."""
    return sum(size for _, size in held)


def language_activations(glamm: nn.Module, rows: int, length: int) -> list[tuple]:
    """What the language model of a GLaMM on the meta device keeps of `rows` rows: see `held_for_backward`.

    The meta device has no fused attention: the scores of all pairs are among what is kept.
    """
    layers, width = glamm.language_model.model, glamm.config.text.hidden_size
    dtype = next(layers.parameters()).dtype
    embeds = torch.empty(rows, length, width, dtype=dtype, device="meta", requires_grad=True)
    mask = torch.ones(rows, 1, length, length, dtype=torch.bool, device="meta")
    _, held = held_for_backward(layers, lambda: layers(inputs_embeds=embeds, attention_mask=mask, use_cache=False))
    return held
