"""How parameters start before any training."""

import math

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

POSITION_SCALE = 0.2
"""Amplitude of the sines in position tables: started so, small encoders learn far faster than from noise."""


def initialize_weights(module: nn.Module, std: float) -> None:
    """Give one module its starting values; transformers calls this for every module it finds without weights."""
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        fan_in = module.weight[0].numel()
        nn.init.normal_(module.weight, std=min(1 / math.sqrt(fan_in), 5 * std))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, CLIPVisionEmbeddings):
        side = module.image_size // module.patch_size
        nn.init.normal_(module.class_embedding, std=std)
        table = sine_table(side, module.embed_dim).flatten(0, 1)  # (h, w, C) -> (P, C)
        with torch.no_grad():
            module.position_embedding.weight[1:] = table.to(module.position_embedding.weight)
    elif isinstance(module, ImageEncoderViT) and module.pos_embed is not None:
        with torch.no_grad():
            module.pos_embed.copy_(sine_table(module.pos_embed.shape[1], module.pos_embed.shape[-1])[None])


def sine_table(side: int, width: int) -> torch.Tensor:
    """(side, side, width): sines and cosines of rows in the first half of the channels, of columns in the second."""
    quarter = max(width // 4, 1)
    frequency = math.pi * 2.0 ** torch.linspace(0, math.log2(max(side, 2)), quarter)
    angle = torch.linspace(0, 1, side)[:, None] * frequency  # (side, quarter)
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, 2 * quarter)
    rows = waves[:, None].expand(side, side, -1)
    columns = waves[None].expand(side, side, -1)
    table = torch.zeros(side, side, width)
    both = torch.cat([rows, columns], dim=-1)[..., :width]
    table[..., : both.shape[-1]] = both
    return POSITION_SCALE * table
