"""The LISA step in small: a word becomes a prompt, and the decoder draws what the word means."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import nn
from torch.nn import functional as F

from glamm_mini.datasets.storybook.dataset import StorybookDataset
from glamm_mini.datasets.storybook.vocabulary import CLASSES, COLOURS, STUFF
from glamm_mini.model.projector import LPProjector

WORDS = ("", *COLOURS, *CLASSES, *STUFF)
"""Row 0 of the table is silence: "kite" names no colour."""

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
        """ids (M, 2), a colour and a kind, see `word_ids`, to prompts (M, 1, C)."""
        states = self.table(ids).sum(dim=1)  # (M, 2, D) -> (M, D)
        return self.lp_projector(states)[:, None]


def word_ids(texts: list[str]) -> torch.Tensor:
    """ "red kite", "kite" or "night sky" to rows of WORDS, (M, 2): colour (0 for none) and kind.

    Raises ValueError for a word that the table does not hold.
    """
    rows = []
    for text in texts:
        first, _, rest = text.partition(" ")
        colour, kind = (first, rest) if first in COLOURS else ("", text)
        if kind not in WORDS[1 + len(COLOURS) :]:
            raise ValueError(
                f"{text!r} names no kind of thing or stuff; expected a colour or none, then one of {WORDS}"
            )
        rows.append([WORDS.index(colour), WORDS.index(kind)])
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
