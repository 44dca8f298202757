"""The pixel decoder's transformer: a few tokens read the picture, and the picture reads the tokens.

Parameters carry the names of segment-anything's, so that a state dict of one loads into the other.
"""

import math
from collections import OrderedDict

import torch
from torch import nn


class NarrowAttention(nn.Module):
    """Attention from one list of vectors to another, computed in `width // narrower` channels.

    Args:
        width: channels of all inputs and of the output. heads: how many attend side by side.
        narrower: by how much the channels are reduced inside.

    Raises:
        ValueError: the heads do not divide the channels inside.
    """

    def __init__(self, width, heads, narrower=1):
        super().__init__()
        inner = width // narrower
        if inner % heads:
            raise ValueError(f"{heads} heads cannot share {inner} channels; choose a divisor")
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q, k, v):
        """q (B, T, C), k and v (B, S, C) to (B, T, C). `weights` (B, heads, T, S) is kept to be looked at."""
        q, k, v = (self.split(f(x)) for f, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v)))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, heads, T, S)
        weights = scores.softmax(-1)
        self.weights = weights.detach()
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))  # (B, heads, T, d) -> (B, T, heads * d)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, T, heads * d) -> (B, heads, T, d)


class TwoWayBlock(nn.Module):
    """Four steps: tokens among themselves, tokens to picture, an MLP on the tokens, picture to tokens.

    Args:
        width: channels. heads: of every attention. hidden: of the MLP. first: the first block of a decoder, whose
            tokens are their own codes, so that step 1 adds none and replaces them.
    """

    def __init__(self, width, heads, hidden, first=False):
        super().__init__()
        self.first = first
        self.self_attn = NarrowAttention(width, heads)
        self.cross_attn_token_to_image = NarrowAttention(width, heads, narrower=2)
        layers = {"lin1": nn.Linear(width, hidden), "act": nn.ReLU(), "lin2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.cross_attn_image_to_token = NarrowAttention(width, heads, narrower=2)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens, pixels, token_code, pixel_code):
        """tokens (N, T, C) and pixels (N, h * w, C), each with its code of the same shape; returns both, changed."""
        coded = tokens if self.first else tokens + token_code
        seen = self.self_attn(coded, coded, tokens)
        tokens = self.norm1(seen if self.first else tokens + seen)
        seen = self.cross_attn_token_to_image(tokens + token_code, pixels + pixel_code, pixels)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp(tokens))
        seen = self.cross_attn_image_to_token(pixels + pixel_code, tokens + token_code, tokens)
        return tokens, self.norm4(pixels + seen)


class TwoWayDecoder(nn.Module):
    """Blocks one after the other, then the tokens look at the picture once more."""

    def __init__(self, depth, width, heads, hidden):
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, first=k == 0) for k in range(depth))
        self.final_attn_token_to_image = NarrowAttention(width, heads, narrower=2)
        self.norm_final_attn = nn.LayerNorm(width)

    def forward(self, image, image_code, prompts):
        """image and image_code (N, C, h, w), prompts (N, T, C). Returns tokens (N, T, C), pixels (N, h * w, C)."""
        pixels = image.flatten(2).transpose(1, 2)  # (N, C, h, w) -> (N, h * w, C)
        code = image_code.flatten(2).transpose(1, 2)
        tokens = prompts
        for layer in self.layers:
            tokens, pixels = layer(tokens, pixels, prompts, code)
        seen = self.final_attn_token_to_image(tokens + prompts, pixels + code, pixels)
        return self.norm_final_attn(tokens + seen), pixels


def like(transformer):
    """A `TwoWayDecoder` with the weights of segment-anything's `TwoWayTransformer`."""
    hidden = transformer.layers[0].mlp.lin1.out_features
    mine = TwoWayDecoder(transformer.depth, transformer.embedding_dim, transformer.num_heads, hidden)
    mine.load_state_dict(transformer.state_dict())
    return mine.eval().to(next(transformer.parameters()).device, torch.float32)
