"""Seeing in detail: SAM's image encoder from scratch, what its attention costs, what coarse grids leave of masks."""

import torch
from torch.nn import functional as F

from glamm_mini.course.room_03.lesson import embed_patches

# ---- windowed attention ----
# Windows with padding, relative positions, attention on a grid, neck: with the weights of segment-anything's encoder.


def cut_windows(x, side):
    """Features (B, h, w, C) to windows (B * N, side, side, C), row by row; zeros fill up the last ones."""
    B, h, w, C = x.shape
    x = F.pad(x, (0, 0, 0, -w % side, 0, -h % side))  # counted from the last axis: C, w, h
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # (B, rows, side, columns, side, C)
    return x.transpose(2, 3).reshape(-1, side, side, C)  # (B * rows * columns, side, side, C)


def join_windows(windows, h, w):
    """Undo `cut_windows`: (B * N, side, side, C) to (B, h, w, C), without what was filled up."""
    side, C = windows.shape[2:]
    rows, columns = -(-h // side), -(-w // side)  # rounded up
    x = windows.reshape(-1, rows, columns, side, side, C).transpose(2, 3)  # (B, rows, side, columns, side, C)
    return x.flatten(3, 4).flatten(1, 2)[:, :h, :w]  # (B, rows * side, columns * side, C), then cut


def relative_table(table, size):
    """The vector for each pair of rows (or columns): (2 * size - 1, d) to (size, size, d), [query, key].

    A table of another length, from another resolution, is stretched first.
    """
    if len(table) != 2 * size - 1:
        table = F.interpolate(table.T[None], 2 * size - 1, mode="linear")[0].T
    place = torch.arange(size)
    return table[place[:, None] - place + size - 1]


def position_scores(q, rows, columns):
    """What relative positions add to the scores: (B, heads, P, P), [query, key].

    q: queries on their grid (B, heads, h, w, d). rows, columns: tables (2h - 1, d) and (2w - 1, d).
    """
    h, w = q.shape[2:4]
    down = torch.einsum("bnhwd,hkd->bnhwk", q, relative_table(rows, h))  # (B, heads, h, w, h)
    across = torch.einsum("bnhwd,wkd->bnhwk", q, relative_table(columns, w))  # (B, heads, h, w, w)
    both = down[..., :, None] + across[..., None, :]  # (B, heads, h, w, h, w)
    return both.flatten(4, 5).flatten(2, 3)  # (B, heads, P, P)


def grid_attention(x, layer):
    """Every patch of a grid (B, h, w, C) looks at every other, with the weights of segment-anything's Attention.

    Returns the new grid (B, h, w, C), and who looks where (B, heads, P, P): rows sum to 1.
    """
    B, h, w, C = x.shape
    qkv = layer.qkv(x).reshape(B, h * w, 3, layer.num_heads, -1)  # (B, P, 3, heads, d)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, P, d)
    scores = layer.scale * q @ k.transpose(2, 3)  # (B, heads, P, P)
    if layer.use_rel_pos:
        scores = scores + position_scores(q.unflatten(2, (h, w)), layer.rel_pos_h, layer.rel_pos_w)
    weights = scores.softmax(-1)
    out = (weights @ v).transpose(1, 2).reshape(B, h, w, C)  # (B, heads, P, d) -> (B, h, w, C)
    return layer.proj(out), weights


def window_block(x, block):
    """One block of SAM's encoder, (B, h, w, C) to the same, with the weights of segment-anything's Block.

    Patches look at each other inside windows of `block.window_size`, or everywhere where that is 0.
    """
    seen = block.norm1(x)
    if block.window_size:
        seen = cut_windows(seen, block.window_size)
    seen, _ = grid_attention(seen, block.attn)
    if block.window_size:
        seen = join_windows(seen, *x.shape[1:3])
    x = x + seen
    return x + block.mlp(block.norm2(x))


def sam_neck(x, neck):
    """The grid (B, h, w, C) in the channels of the pixel decoder (B, D, h, w): mixed per patch, then 3 x 3."""
    narrow, norm1, near, norm2 = neck
    x = F.linear(x, narrow.weight.flatten(1))  # a 1 x 1 convolution: (D, C, 1, 1) -> (D, C)
    x = F.layer_norm(x, x.shape[-1:], norm1.weight, norm1.bias, norm1.eps)
    x = F.conv2d(x.permute(0, 3, 1, 2), near.weight, padding=1)  # (B, h, w, D) -> (B, D, h, w)
    x = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], norm2.weight, norm2.bias, norm2.eps)
    return x.permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)


def sam_states(images, vit):
    """The grid before the first block and after each: a list of (B, h, w, C), from images (B, 3, S, S)."""
    patch = vit.patch_embed.proj
    x = embed_patches(images, patch.weight) + patch.bias  # (B, P, C)
    states = [x.unflatten(1, vit.pos_embed.shape[1:3]) + vit.pos_embed]  # (B, h, w, C)
    for block in vit.blocks:
        states.append(window_block(states[-1], block))
    return states


# ---- what attention costs ----
# Multiply-adds and bytes, for windows and for the whole grid.


def padded_side(grid, window=0):
    """Side in patches of what is computed: the grid, filled up to whole windows; window 0 is the whole grid."""
    return -(-grid // window) * window if window else grid


def attention_cost(grid, channels, window=0, positions=True):
    """Multiply-adds of one attention layer on a grid x grid picture, in three parts.

    Returns (projections, pairs, positions): making q, k, v and the output; scores and mixing of all pairs that look at
    each other; the decomposed relative positions. Padding is counted, for it is computed.
    """
    side = window or grid
    tokens = padded_side(grid, window) ** 2
    placed = 2 * tokens * side * channels if positions else 0
    return 4 * tokens * channels**2, 2 * tokens * side**2 * channels, placed


def score_bytes(grid, heads, window=0):
    """Bytes that the scores of one layer take in float32: one number for each head and pair."""
    return 4 * heads * padded_side(grid, window) ** 2 * (window or grid) ** 2


def encoder_cost(grounding):
    """Multiply-adds of a whole grounding encoder for one picture; `grounding`: a config's GroundingConfig."""
    g, patches = grounding, grounding.grid**2
    total = patches * 3 * g.patch_size**2 * g.hidden  # the patch embedding
    for number in range(g.depth):
        window = 0 if number in g.global_attention else g.window
        total += sum(attention_cost(g.grid, g.hidden, window, g.relative_positions))
        total += 8 * patches * g.hidden**2  # the MLP, four times as wide inside
    return total + patches * g.prompt_dim * (g.hidden + 9 * g.prompt_dim)  # the neck: 1 x 1, then 3 x 3


# ---- masks on coarse grids ----


def through_grid(mask, side):
    """A mask (H, W) bool reduced to a grid of side x side values over its padded square, and enlarged again.

    The values are the shares of each cell that the mask covers: about the best that a decoder with so many outputs can
    draw. Returns (H, W) bool.
    """
    h, w = mask.shape
    square = F.pad(mask[None, None].float(), (0, max(h - w, 0), 0, max(w - h, 0)))  # (1, 1, S, S)
    small = F.interpolate(square, (side, side), mode="area")
    back = F.interpolate(small, square.shape[2:], mode="bilinear", align_corners=False)
    return back[0, 0, :h, :w] > 0.5
