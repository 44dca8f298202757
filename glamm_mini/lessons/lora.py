"""LoRA from scratch: a frozen linear layer with a trained low-rank detour; and which parameters a run trains.

Equal to peft's layer, a test compares them (Hu et al., LoRA, 2021).
"""

import torch
from torch import nn


class LoRALinear(nn.Module):
    """y = base(x) + alpha / rank * B(A(x)), for x (..., in). B starts at zero: at first nothing changes.

    Args:
        base: the layer to adapt; it is frozen.
        rank: width of the detour. alpha: its strength, in units of the rank. dropout: on what enters the detour.
    """

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: float = 16.0, dropout: float = 0.05):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scaling = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        detour = self.lora_B(self.lora_A(self.dropout(x)))  # (..., in) -> (..., rank) -> (..., out)
        return self.base(x) + self.scaling * detour


def add_lora(model: nn.Module, names: tuple = ("q_proj", "v_proj"), **settings) -> int:
    """Put a LoRALinear around every linear layer whose own name is one of `names`; returns how many there are.

    `settings` go to LoRALinear. Raises ValueError if no layer has such a name.
    """
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    if not found:
        raise ValueError(f"no linear layer is called {' or '.join(names)}")
    for parent, name in found:
        setattr(parent, name, LoRALinear(getattr(parent, name), **settings))
    return len(found)


def thaw_only(model: nn.Module, parts: tuple) -> int:
    """Freeze everything but parameters whose name contains one of `parts`; returns how many numbers are trained.

    Raises ValueError for a part that no name contains: a slip of the pen would freeze what you meant to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(f"no parameter's name contains {part!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(part in name for part in parts)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
