"""State to mask: SAM's pixel decoder and its prompts from scratch, and LISA's step in small: words become prompts."""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn
from torch.nn import functional as F

from glamm_mini.model.sam import LPProjector
from glamm_mini.storybook.dataset import StorybookDataset
from glamm_mini.storybook.language.vocabulary import CLASSES, COLOURS, STUFF

# ---- two-way attention ----
# The pixel decoder's transformer: a few tokens read the picture, and the picture reads the tokens. Parameters carry
# the names of segment-anything's, so that a state dict of one loads into the other.


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


# ---- positions and prompts ----
# Positional encodings, and the prompts that segment-anything makes of clicks and boxes.


def position_code(points, matrix):
    """Random Fourier features of points.

    points: (..., 2), x and y as fractions 0..1 of the square. matrix: (2, F), random frequencies, never trained.
    Returns (..., 2 F): F sines, then F cosines.
    """
    angle = 2 * math.pi * ((2 * points - 1) @ matrix)  # (..., 2) x (2, F)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def grid_code(side, matrix):
    """The codes of the middles of side x side patches, (1, 2 F, side, side)."""
    middle = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return position_code(torch.stack([x, y], dim=-1), matrix).permute(2, 0, 1)[None]


def click_prompt(points, encoder):
    """Points (N, 2) inside of things, in pixels of the square, to prompts (N, 2, C): the click, and "no more points".

    encoder: a PromptEncoder of segment-anything, whose learned vectors are used.
    """
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
    code = position_code((points + 0.5) / encoder.input_image_size[0], matrix)  # (N, C)
    click = code + encoder.point_embeddings[1].weight
    return torch.stack([click, encoder.not_a_point_embed.weight.expand_as(click)], dim=1)


def box_prompt(boxes, encoder):
    """Boxes (N, 4), x0 y0 x1 y1 in pixels of the square, to prompts (N, 2, C), one for each of two corners."""
    corners = (boxes.reshape(-1, 2, 2) + 0.5) / encoder.input_image_size[0]  # (N, 4) -> (N, 2, 2)
    code = position_code(corners, encoder.pe_layer.positional_encoding_gaussian_matrix)
    return code + torch.cat([table.weight for table in encoder.point_embeddings[2:]])  # (N, 2, C) + (2, C)


# ---- words as prompts ----
# The decoder learns to draw what a word means.

WORDS = ("", *COLOURS, *CLASSES, *STUFF)
"""Row 0 of the table is silence: "kite" names no color."""

SMALLEST = 0.004
"""Share of the picture below which a mask is not asked for."""


@dataclass
class AskedFor:
    """What can be asked about many pictures. embeddings (I, C, h, w); texts, M of them, such as "red kite"; masks
    (M, 4h, 4w), 0..1, at the decoder's size; image_index (M,): the picture of each; samples: the I pictures."""

    embeddings: torch.Tensor
    texts: list[str]
    masks: torch.Tensor
    image_index: torch.Tensor
    samples: list


@dataclass
class SingleThings:
    """Things that can be clicked. names, such as "red kite"; points (T, 2), well inside of each, and boxes (T, 4), in
    pixels of the encoder's square; masks (T, 4h, 4w) and image_index (T,) as above."""

    names: list[str]
    points: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor
    image_index: torch.Tensor


class WordPrompts(nn.Module):
    """Texts to prompts: the sum of their words' vectors stands for a language model's state, the rest is GLaMM's."""

    def __init__(self, language_width, prompt_width):
        super().__init__()
        self.table = nn.Embedding(len(WORDS), language_width, padding_idx=0)
        self.lp_projector = LPProjector(language_width, prompt_width)

    def forward(self, ids):
        """ids (M, 2), a color and a kind, see `word_ids`, to prompts (M, 1, C)."""
        states = self.table(ids).sum(dim=1)  # (M, 2, D) -> (M, D)
        return self.lp_projector(states)[:, None]


def word_ids(texts: list[str]) -> torch.Tensor:
    """ "red kite", "kite" or "night sky" to rows of WORDS, (M, 2): color (0 for none) and kind.

    Raises ValueError for a word that the table does not hold.
    """
    rows = []
    for text in texts:
        first, _, rest = text.partition(" ")
        color, kind = (first, rest) if first in COLOURS else ("", text)
        if kind not in WORDS[1 + len(COLOURS) :]:
            raise ValueError(f"{text!r} names no kind of thing or stuff; expected a color or none, then one of {WORDS}")
        rows.append([WORDS.index(color), WORDS.index(kind)])
    return torch.tensor(rows).reshape(-1, 2)


def named_masks(extras: dict) -> dict[str, np.ndarray]:
    """Every text that means something in a scene (see `truth_of`), with the mask (H, W) of all that it means."""
    found = {}
    for thing in extras["things"]:
        for text in (thing["cls"], f"{thing['colour']} {thing['cls']}") if thing["visible"] else ():
            found[text] = found.get(text, False) | extras["thing_masks"][thing["mask"]]
    for kind, mask in zip(extras["stuff"], extras["stuff_masks"], strict=True):
        found[kind] = found.get(kind, False) | mask
    return {text: mask for text, mask in found.items() if mask.mean() >= SMALLEST}


@torch.no_grad()
def asked_for(glamm, processor, split: str, count: int, seed: int = 0) -> AskedFor:
    """The first `count` scenes of a split, encoded once, with everything that can be asked about them."""
    side, fine = glamm.config.grounding.image_size, 4 * glamm.config.grounding.grid
    dataset = StorybookDataset(split, seed, count, long_side=side)
    samples, embeddings, texts, masks, index = [], [], [], [], []
    for start in range(0, count, 32):
        some = [dataset[k] for k in range(start, min(start + 32, count))]
        embeddings.append(glamm.grounding_encoder(processor.images([s.image for s in some])["grounding_images"]))
        for number, sample in enumerate(some, start=start):
            for text, mask in named_masks(sample.extras).items():
                texts.append(text)
                index.append(number)
                masks.append(decoder_size(mask, side, fine))
        samples += some
    return AskedFor(torch.cat(embeddings), texts, torch.stack(masks), torch.tensor(index), samples)


def single_things(asked: AskedFor, side: int) -> SingleThings:
    """The visible things of the pictures, one by one; `side` is the encoder's square, as wide as the pictures."""
    names, points, boxes, masks, index = [], [], [], [], []
    for number, sample in enumerate(asked.samples):
        for thing in sample.extras["things"]:
            mask = sample.extras["thing_masks"][thing["mask"]]
            if thing["visible"] and mask.mean() >= SMALLEST:
                names.append(f"{thing['colour']} {thing['cls']}")
                points.append(deepest(mask))
                boxes.append(thing["box"])
                masks.append(decoder_size(mask, side, asked.masks.shape[-1]))
                index.append(number)
    numbers = (torch.tensor(np.array(values), dtype=torch.float32) for values in (points, boxes))
    return SingleThings(names, *numbers, torch.stack(masks), torch.tensor(index))


def deepest(mask: np.ndarray) -> tuple[float, float]:
    """x, y of the pixel of a mask (H, W) that is farthest from its border: where a careful person would click."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return float(x), float(y)


def decoder_size(mask: np.ndarray, side: int, fine: int) -> torch.Tensor:
    """A mask (H, W) whose longer side is `side`, padded to the square and averaged down to (fine, fine)."""
    square = torch.zeros(1, side, side)
    square[0, : mask.shape[0], : mask.shape[1]] = torch.from_numpy(mask)
    return F.adaptive_avg_pool2d(square, fine)[0]


@torch.no_grad()
def mask_ious(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """(M,): IoU of logits > 0 with masks > 0.5, both (M, h, w); 1 where both are empty."""
    mine, truth = logits > 0, masks > 0.5
    union = (mine | truth).sum((1, 2))
    return torch.where(union > 0, (mine & truth).sum((1, 2)) / union.clamp(min=1), 1.0)
