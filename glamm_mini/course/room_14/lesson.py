"""Scaling to 7B: what a training step holds in memory, four-bit weights, slices of a matrix on many GPUs, and how many
operations a step takes."""

from collections.abc import Callable

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed.tensor import DTensor

# ---- memory, counted ----
# Tensor by tensor, what a training step holds; on the meta device too, where nothing is stored.


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of a model's weights, of their gradients, and of what the optimizer remembers of each trained number."""
    parameters = list(model.parameters())
    gradients = [p.grad for p in parameters if p.grad is not None]
    states = [t for state in optimizer.state.values() for t in state.values()]
    moments = [t for t in states if torch.is_tensor(t) and t.dim()]
    kinds = {"weights": parameters, "gradients": gradients, "optimizer": moments}
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


# ---- memory, summed up ----
# So many bytes for each number, by what is done with it.


def training_state(
    frozen: float, trained: float, frozen_bytes: float = 4, gpus: int = 1, cut: tuple = ()
) -> dict[str, float]:
    """Bytes that each of `gpus` holds of weights, gradients and AdamW's two moments.

    frozen, trained: how many numbers. frozen_bytes: for each frozen one; trained ones, their gradients and both
    moments are float32. cut: the kinds that are divided among the GPUs; all others are there in every one.
    """
    weights = frozen_bytes * frozen + 4 * trained
    whole = {"weights": weights, "gradients": 4 * trained, "optimizer": 8 * trained}
    return {kind: size / gpus if kind in cut else size for kind, size in whole.items()}


def cache_bytes(layers: int, heads: int, head_width: int, tokens: int, number_bytes: float = 2) -> float:
    """Bytes of the keys and values that a language model keeps of one row of `tokens`."""
    return 2 * layers * heads * head_width * tokens * number_bytes


# ---- NF4 ----
# Four bits a weight: the nearest of sixteen levels, times a scale for each block (Dettmers et al., QLoRA, 2023).

EVEN = torch.linspace(-1, 1, 16)
"""Sixteen levels at equal distances."""

# Quantiles of a normal distribution, scaled to -1 .. 1, with an exact zero: table of the paper's appendix E.
NF4 = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)
"""Sixteen levels that lie closer where weights are many: 4-bit NormalFloat."""


def quantize_blockwise(weights: torch.Tensor, levels: torch.Tensor, block: int = 64) -> torch.Tensor:
    """What is left of weights (out, in) when each is stored as the number of a level, and each block has one scale.

    The number of elements must be a multiple of `block`.
    """
    blocks = weights.reshape(-1, block)  # (out, in) -> (N, block)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    codes = ((blocks / scale)[..., None] - levels).abs().argmin(dim=-1)  # (N, block, 16) -> (N, block)
    return (levels[codes] * scale).reshape(weights.shape)


# ---- sharding ----
# Who holds which rows of a matrix, and how the gradients of many become one.


def rows_of(tensor: torch.Tensor, rank: int, processes: int) -> torch.Tensor:
    """The slice of a tensor (rows, ...) that process `rank` of `processes` holds; the last ones may hold fewer rows.

    As torch's `Shard(0)` cuts: every process gets as many rows as the first, until none are left.
    """
    share = -(-len(tensor) // processes)  # rounded up
    return tensor[rank * share : (rank + 1) * share]


def reduce_scatter(gradients: list[torch.Tensor], rank: int) -> torch.Tensor:
    """Of every process's gradient (rows, ...) of the same matrix: the mean, and of it the rows of process `rank`."""
    processes = len(gradients)
    return rows_of(sum(gradients) / processes, rank, processes)


# ---- operations of a step ----
# Floating-point operations, from three numbers.


def step_flops(numbers: float, trained: float, tokens: int, recompute: bool = False) -> float:
    """Operations of one step of a part whose `numbers` weights all meet all `tokens`; attention's scores not counted.

    A weight and a token meet in one multiplication and one addition. The forward pass does that once, the gradient of
    the inputs once more, even through frozen weights, and the gradient of the weights once for those that are trained.
    recompute: activation checkpointing runs the forward pass twice.
    """
    passes = numbers + numbers + trained + (numbers if recompute else 0)
    return 2 * tokens * passes
