"""Weights in four bits: the nearest of sixteen levels, times a scale for each block (Dettmers et al., QLoRA, 2023)."""

import torch

EVEN = torch.linspace(-1, 1, 16)
"""Sixteen levels at equal distances."""

# Quantiles of a normal distribution, scaled to -1 .. 1, with an exact zero: table of the paper's appendix E.
NORMAL = torch.tensor(
    [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]
)
"""Sixteen levels that lie closer where weights are many (NF4)."""


def four_bits(weights: torch.Tensor, levels: torch.Tensor, block: int = 64) -> torch.Tensor:
    """What is left of weights (out, in) when each is stored as the number of a level, and each block has one scale.

    The number of elements must be a multiple of `block`.
    """
    blocks = weights.reshape(-1, block)  # (out, in) -> (N, block)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    codes = ((blocks / scale)[..., None] - levels).abs().argmin(dim=-1)  # (N, block, 16) -> (N, block)
    return (levels[codes] * scale).reshape(weights.shape)
