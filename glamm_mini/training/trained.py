"""Which parameters a run trains, by pieces of their names, and what type the frozen ones are kept in."""

from collections.abc import Sequence

import torch
from torch import nn

SMALL = "prompt_encoder."
"""Stays in float32 when it is frozen: a few thousand numbers, too few for rounding them to save anything."""


def thaw_only(model: nn.Module, pieces: Sequence[str]) -> int:
    """Train the parameters whose name contains one of `pieces`, freeze all others; returns how many numbers train.

    Raises ValueError for a piece that no name contains, before anything is changed: a slip of the pen would freeze
    what was meant to be trained, and the run would look healthy.
    """
    names = [name for name, _ in model.named_parameters()]
    lost = [piece for piece in pieces if not any(piece in name for name in names)]
    if lost or not pieces:
        kinds = ", ".join(sorted({name.split(".")[0] for name in names}))
        raise ValueError(f"trained parts {lost or 'are not named'}: no parameter's name contains them; parts: {kinds}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(piece in name for piece in pieces)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def store_frozen_as(model: nn.Module, dtype: torch.dtype) -> int:
    """Keep frozen parameters in `dtype` and trained ones in float32; returns the bytes of all parameters then.

    A step of lr 3e-4 is lost in bfloat16's 8 bits of fraction, so what is trained stays float32 and autocast computes
    in half precision. Tables of positions and other buffers are not touched.
    """
    for name, parameter in model.named_parameters():
        wanted = torch.float32 if parameter.requires_grad or SMALL in name else dtype
        if parameter.dtype != wanted:
            parameter.data = parameter.data.to(wanted)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
