"""Sight to words: a picture as a row of patches, CLIP's vision transformer in plain torch, and the first training step
of LLaVA, in which a projector learns from words alone."""

import torch

from glamm_mini.model.splice import language_states, put_images
from glamm_mini.model.tokens import IGNORE_INDEX
from glamm_mini.processing.processor import pad_rows
from glamm_mini.storybook.language.vocabulary import CLASSES, COLOURS

# ---- patches and CLIP ----
# Patches, their embedding, and a vision transformer with the weights of transformers' CLIPVisionModel.


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


# ---- LLaVA's first step ----
# The first training step of LLaVA in small: a projector learns from words alone, all else stays as it is.


def spoken_rows(samples, processor):
    """One packed row (ids, labels, segments) a Sample, of the conversations that need neither boxes nor masks.

    Raises ValueError for a sample that has no such conversation.
    """
    rows = []
    for sample in samples:
        plain = [turns for turns in sample.conversations if not any(len(t.boxes) + len(t.masks) for t in turns)]
        if not plain:
            raise ValueError(f"{sample.image_id} has no conversation in words alone; draw more conversations")
        rows.append(processor.encode_packed([[(t.question, t.answer) for t in turns] for turns in plain]))
    return rows


def answer_logits(model, rows, tokens):
    """What the model expects at every learned word of packed rows, and the words that stand there.

    rows: R of them, see `spoken_rows`. tokens: (R, P, D), the projected pictures. Returns logits (K, V), words (K,).
    """
    ids, labels, segments = zip(*rows, strict=True)
    batch = pad_rows(ids, labels, segments, model.config.text.pad_token_id)
    ids = batch["input_ids"]  # (R, L)
    embeds = model.get_input_embeddings()(ids.clamp(min=0))  # (R, L, D)
    columns = embeds, ids, batch["attention_mask"], batch["labels"], batch["segment_ids"]
    spliced = put_images(*columns, tokens, range(len(rows)))
    states = language_states(model.language_model, spliced)  # (R, T, D)
    learned = spliced.labels[:, 1:] != IGNORE_INDEX
    return model.language_model.lm_head(states[:, :-1][learned]), spliced.labels[:, 1:][learned]


def sight_words(tokenizer):
    """Ids of the words that one cannot know without looking: the storybook's things and colors."""
    words = [*CLASSES, *(f"{name}s" for name in CLASSES), *COLOURS]
    ids = {tokenizer.convert_tokens_to_ids(word) for word in words} - {None, tokenizer.unk_token_id}
    return torch.tensor(sorted(ids))


@torch.no_grad()
def sight_accuracy(model, rows, tokens, wanted):
    """Share of the `wanted` words among the learned ones that the model finds likeliest, given the words before."""
    right = []
    for start in range(0, len(rows), 16):
        logits, words = answer_logits(model, rows[start : start + 16], tokens[start : start + 16])
        asked = torch.isin(words, wanted)
        right.append(logits[asked].argmax(-1) == words[asked])
    return torch.cat(right).float().mean().item()
