"""The optimizer: AdamW for everything, or Muon for hidden matrices beside it; and the learning-rate schedule."""

import math

import torch
from torch import nn

from glamm_mini.training.muon import Muon
from glamm_mini.training.settings import TrainSettings

OUTPUT_LAYERS = ("head", "classifier")
"""A linear layer whose own name ends so gives the model's output: it stays with AdamW, as embeddings do."""

SMALLEST_HIDDEN_SIDE = 16
"""A matrix with a shorter side (a box head, a LoRA factor) has too few directions to be worth orthogonalizing."""


def learning_rate_factor(step: int, settings: TrainSettings) -> float:
    """The factor on every peak learning rate at `step` (counted from 0), 0..1.

    A function of the step alone: a resumed run needs no state of a scheduler.
    """
    warmup = settings.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, settings.steps - warmup))
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[settings.schedule]
    return shape if settings.schedule == "constant" else settings.final_lr + (1 - settings.final_lr) * shape


def hidden_matrices(model: nn.Module) -> set[str]:
    """Names of the parameters that Muon may train: weights of inner linear layers.

    Left out: weights shared with an embedding, output layers, and matrices with a short side.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    names = set()
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear) or path.rpartition(".")[2].endswith(OUTPUT_LAYERS):
            continue
        weight = module.weight
        if weight.ndim == 2 and id(weight) not in embeddings and min(weight.shape) >= SMALLEST_HIDDEN_SIDE:
            names.add(f"{path}.weight" if path else "weight")
    return names


def parameter_groups(model: nn.Module, settings: TrainSettings) -> list[dict]:
    """The trained parameters, grouped by optimizer, weight decay and learning rate.

    Returns:
        Dicts with `params`, `names`, `kind` ("adamw" or "muon"), `lr`, `initial_lr`, `weight_decay`.

    Raises:
        ValueError: nothing is trainable, or a key of `lr_scales` names no parameter.
    """
    hidden = hidden_matrices(model) if settings.muon_lr > 0 else set()
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    groups: dict[tuple, dict] = {}
    unused_scales = set(settings.lr_scales)
    for name, parameter in model.named_parameters():
        matching = [key for key in settings.lr_scales if name.startswith(key)]
        unused_scales.difference_update(matching)
        if not parameter.requires_grad:
            continue
        kind = "muon" if name in hidden else "adamw"
        decays = parameter.ndim >= 2 and id(parameter) not in embeddings
        decay = settings.weight_decay if decays else 0.0
        scale = settings.lr_scales[max(matching, key=len)] if matching else 1.0
        lr = scale * (settings.muon_lr if kind == "muon" else settings.lr)
        group = groups.setdefault(
            (kind, lr, decay),
            {"params": [], "names": [], "kind": kind, "lr": lr, "initial_lr": lr, "weight_decay": decay},
        )
        group["params"].append(parameter)
        group["names"].append(name)
    if unused_scales:
        raise ValueError(f"lr_scales names {sorted(unused_scales)}, but no parameter's name starts so")
    if not groups:
        raise ValueError("no parameter of the model is trainable: set requires_grad on the parts to train")
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -key[1], -key[2]))]


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one, so that loss scaling, clipping and checkpoints see a single one.

    Gradient scaling for fp16 unscales each optimizer once a step; two optimizers side by side would be
    unscaled twice.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._link()

    def _link(self) -> None:
        # The very same dicts: a learning rate set here is the one the inner optimizer reads.
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure=None):
        """Steps every optimizer.

        Raises:
            ValueError: a closure was given; these optimizers see one gradient per step.
        """
        if closure is not None:
            raise ValueError("Together.step takes no closure")
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        """State of all parts, and the groups under the name that other tools look for."""
        return {
            "parts": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": {},
            "param_groups": [],
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Restores what `state_dict` gave."""
        for optimizer, part in zip(self.optimizers, state_dict["parts"], strict=True):
            optimizer.load_state_dict(part)
        self._link()


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """AdamW, or Muon for `hidden_matrices` and AdamW for the rest when `muon_lr` is above 0."""
    groups = parameter_groups(model, settings)
    parts: list[torch.optim.Optimizer] = []
    adamw = [group for group in groups if group["kind"] == "adamw"]
    muon = [group for group in groups if group["kind"] == "muon"]
    for group in groups:
        del group["names"]
    if adamw:
        parts.append(torch.optim.AdamW(adamw, lr=settings.lr, betas=settings.betas, weight_decay=0.0, fused=True))
    if muon:
        parts.append(Muon(muon, lr=settings.muon_lr))
    return parts[0] if len(parts) == 1 else Together(parts)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets every group to `factor` times its peak; returns the largest, for the log."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
