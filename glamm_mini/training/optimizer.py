"""The optimizer: AdamW for everything, or Muon for hidden matrices beside it; the schedule; clipping.

Muon is momentum whose update is made orthogonal (Jordan et al., 2024). `torch.optim.Muon` works in bfloat16 on one
matrix at a time, which on a CPU without bfloat16 instructions took 20 times as long as the rest of a training step of
the tiny model; here matrices of one shape go through together, in float32 on a CPU.
"""

import math
from collections.abc import Iterable

import torch
from torch import nn

from glamm_mini.training.settings import TrainSettings

OUTPUT_LAYERS = ("head", "classifier")  # how the name of a linear layer ends that stays with AdamW, as embeddings do
SMALLEST_HIDDEN_SIDE = 16  # a shorter matrix (a box head, a LoRA factor) has too few directions to orthogonalize
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the quintic Newton-Schulz iteration: steep at 0, so that five suffice
ITERATIONS = 5
MOMENTUM = 0.95


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """The factor on every peak learning rate at `step` (counted from 0), 0..1.

    A function of the step alone: a resumed run needs no state of a scheduler.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    if settings.schedule == "constant":
        return 1.0
    shape = 1.0 - progress if settings.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return settings.final_lr + (1 - settings.final_lr) * shape


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict]:
    """The trained parameters, grouped by optimizer, weight decay and learning rate. Muon, if `muon_lr` is above 0, gets
    the weights of inner linear layers, but for those shared with an embedding and those with a short side.

    Returns dicts with `params` (name, parameter), `kind` ("adamw" or "muon"), `lr`, `initial_lr`, `weight_decay`.
    Raises ValueError if nothing is trainable, or a key of `lr_scales` names no parameter.
    """
    scales = settings.lr_scales
    unused = [key for key in scales if not any(name.startswith(key) for name, _ in model.named_parameters())]
    if unused:
        raise ValueError(f"lr_scales names {sorted(unused)}, but no parameter's name starts so")
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    linear = [(path.rpartition(".")[2], m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    inner = {id(m.weight) for name, m in linear if not name.endswith(OUTPUT_LAYERS)} - embeddings
    groups: dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            muon = settings.muon_lr > 0 and id(parameter) in inner and min(parameter.shape) >= SMALLEST_HIDDEN_SIDE
            kind, peak = ("muon", settings.muon_lr) if muon else ("adamw", settings.lr)
            longest = max((key for key in scales if name.startswith(key)), key=len, default=None)
            decays = parameter.ndim >= 2 and id(parameter) not in embeddings
            key = kind, scales.get(longest, 1.0) * peak, settings.weight_decay if decays else 0.0
            groups.setdefault(key, []).append((name, parameter))
    if not groups:
        raise ValueError("no parameter of the model is trainable: set requires_grad on the parts to train")
    return [
        {"params": groups[kind, lr, decay], "kind": kind, "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for kind, lr, decay in sorted(groups, key=lambda key: (key[0], -key[1], -key[2]))
    ]


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly, to some of (K, rows, columns), rows <= columns: singular values become
    0.7 to 1.2; a zero matrix stays zero."""
    a, b, c = COEFFICIENTS
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT  # (K, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdamW(torch.optim.AdamW):
    """AdamW; groups whose `kind` is "muon" get Nesterov momentum, orthogonalized, instead. A tall matrix takes
    sqrt(rows / columns) larger steps. One optimizer, for loss scaling in fp16 unscales each optimizer once a step.
    Raises ValueError if a parameter of such a group is not a matrix.
    """

    def __init__(self, groups: list[dict], **options) -> None:
        super().__init__(groups, **options)
        # Else loss scaling leaves it to the fused AdamW to skip a step that overflowed, and Muon would not hear of it.
        self._step_supports_amp_scaling = False
        odd = [tuple(p.shape) for g in self.param_groups if g.get("kind") == "muon" for p in g["params"] if p.ndim != 2]
        if odd:
            raise ValueError(f"Muon trains matrices only, but was given parameters of shape {odd[:3]}")

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Updates every parameter that has a gradient, and takes Muon's gradients away; a closure is an error."""
        if closure is not None:
            raise ValueError("step takes no closure: there is one gradient per step")
        for group in self.param_groups:
            if group.get("kind") == "muon":
                self._step_muon(group)
        super().step()  # leaves parameters without a gradient alone

    def _step_muon(self, group: dict) -> None:
        alike: dict[torch.Size, list[torch.Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike.setdefault(parameter.shape, []).append(parameter)
        for (rows, columns), parameters in alike.items():
            directions = torch.stack([self._direction(p) for p in parameters])
            directions = directions.to(torch.bfloat16 if directions.is_cuda else torch.float32)
            wide = rows <= columns
            updates = orthogonalized(directions if wide else directions.mT)
            rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
            for parameter, update in zip(parameters, updates if wide else updates.mT, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-rate)
                parameter.grad = None

    def _direction(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            # AdamW looks for a step in every state that it loads.
            state |= {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(parameter.grad)}
        state["step"] += 1
        average = state["momentum_buffer"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(average, MOMENTUM)


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, or with Muon for some matrices when `muon_lr` is above 0; see `parameter_groups`."""
    groups = parameter_groups(model, settings)
    kind = MuonAdamW if any(group["kind"] == "muon" for group in groups) else torch.optim.AdamW
    return kind(groups, lr=settings.lr, betas=settings.betas, weight_decay=0.0, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to `factor` times its peak; returns the largest, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


def gradient_norm(gradients: Iterable[torch.Tensor]) -> torch.Tensor:
    """The norm of all gradients together, summed in float64: on CPUs torch's own, and so `clip_grad_norm_`, adds up in
    float32, which is 0.3 % too small for a Gaussian matrix of 11008 x 4096 and was seen to lose 17 % of a gradient."""
    pieces = (piece for gradient in gradients for piece in gradient.detach().reshape(-1).split(1 << 20))
    norms = [torch.linalg.vector_norm(piece, dtype=torch.float64) for piece in pieces]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)


def clip_gradients(model: nn.Module, clip: float) -> torch.Tensor:
    """Scales gradients on the CPU to a norm of `clip` at most (0: leaves them); returns `gradient_norm` before."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = gradient_norm(p.grad for p in parameters)
    torch.nn.utils.clip_grads_with_norm_(parameters, clip or math.inf, norm.float())
    return norm
