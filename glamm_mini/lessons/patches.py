"""A picture as a row of vectors: patches, their embedding, and a vision transformer of CLIP's form, in plain torch."""

import torch


def cut_patches(images, side):
    """Images (B, C, H, W) to patches of side x side pixels, row by row: (B, P, C * side * side)."""
    B, C, H, W = images.shape
    cut = images.reshape(B, C, H // side, side, W // side, side)  # (B, C, h, side, w, side)
    cut = cut.permute(0, 2, 4, 1, 3, 5)  # (B, h, w, C, side, side)
    return cut.reshape(B, -1, C * side * side)  # (B, P, C * side * side)


def embed_patches(images, weight):
    """One vector a patch, (B, P, D), from images (B, C, H, W) and the weight (D, C, side, side) of a convolution.

    Equal to `conv2d(images, weight, stride=side)`, flattened: windows that do not overlap are patches.
    """
    patches = cut_patches(images, weight.shape[-1])
    return patches @ weight.flatten(1).T  # (B, P, C * side * side) x (C * side * side, D)


def patch_attention(tokens, layer):
    """Self-attention of tokens (B, T, C) with the weights of a CLIPAttention.

    Returns what each token has collected, (B, T, C), and who looked where, (B, heads, T, T): rows sum to 1.
    """
    projections = (layer.q_proj, layer.k_proj, layer.v_proj)
    # (B, T, C) -> (B, T, heads, d) -> (B, heads, T, d)
    q, k, v = (p(tokens).unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for p in projections)
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)  # (B, heads, T, T)
    collected = (weights @ v).transpose(1, 2).flatten(2)  # (B, T, C)
    return layer.out_proj(collected), weights


def clip_block(tokens, layer):
    """One layer of CLIP's vision transformer: tokens (B, T, C) look at each other, then each thinks for itself.

    Returns the tokens after it, (B, T, C), and the weights of its attention (B, heads, T, T).
    """
    collected, weights = patch_attention(layer.layer_norm1(tokens), layer.self_attn)
    tokens = tokens + collected
    return tokens + layer.mlp(layer.layer_norm2(tokens)), weights


def clip_states(images, clip):
    """All hidden states of a CLIPVisionModel for images (B, C, H, W).

    Returns two lists: states, one more than there are layers, each (B, 1 + P, C) with the class token first; and the
    attention of each layer, (B, heads, 1 + P, 1 + P).
    """
    parts = clip.embeddings
    tokens = embed_patches(images, parts.patch_embedding.weight)  # (B, P, C)
    first = parts.class_embedding.expand(len(tokens), 1, -1)  # (B, 1, C)
    tokens = torch.cat([first, tokens], dim=1) + parts.position_embedding.weight  # (B, 1 + P, C)
    states, looks = [clip.pre_layrnorm(tokens)], []
    for layer in clip.encoder.layers:
        tokens, weights = clip_block(states[-1], layer)
        states.append(tokens)
        looks.append(weights)
    return states, looks
