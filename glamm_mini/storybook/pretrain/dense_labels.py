"""Dense labels of storybook scenes: what lies under every patch. They teach the small encoder to see."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import masks_to_boxes

from glamm_mini.storybook.language.vocabulary import CLASSES, COLOURS, PATTERNS, SIZES, STUFF

KINDS = (*CLASSES, *STUFF)
ATTRIBUTES = {"kind": KINDS, "colour": tuple(COLOURS), "pattern": PATTERNS, "size": tuple(SIZES)}
IGNORE = -100
COVERED = 0.3
"""A patch belongs to a thing that covers this share of it, else to the stuff that covers most of it."""


@dataclass
class DenseLabels:
    """Per patch: indices (B, g, g) for each attribute, -100 where nothing is said, and boxes (B, g, g, 4) as fractions
    of the padded square, with has_box (B, g, g)."""

    attributes: dict[str, torch.Tensor]
    boxes: torch.Tensor
    has_box: torch.Tensor

    def to(self, device) -> "DenseLabels":
        """The same labels on another device (accelerate calls this)."""
        moved = {k: v.to(device) for k, v in self.attributes.items()}
        return DenseLabels(moved, self.boxes.to(device), self.has_box.to(device))


def dense_labels(samples: list, grid: int) -> DenseLabels:
    """Labels of storybook samples, whose extras hold `things`, `thing_masks`, `stuff` and `stuff_masks`."""
    rows = [_one(sample.extras, sample.image.shape[:2], grid) for sample in samples]
    attributes = {name: torch.stack([r[0][name] for r in rows]) for name in ATTRIBUTES}
    return DenseLabels(attributes, torch.stack([r[1] for r in rows]), torch.stack([r[2] for r in rows]))


def region_labels(samples: list, boxes: list) -> DenseLabels:
    """Labels (N, 1, 1) of what lies in each box: per sample (N_i, 4) fractions of the padded square, or None.

    The thing whose own box differs least is meant.
    """
    found = [_things_in(sample, own) for sample, own in zip(samples, boxes, strict=True) if own is not None]
    return _single([t for things, _ in found for t in things], [b for _, own in found for b in own.tolist()])


def _things_in(sample, boxes: torch.Tensor):
    things = sample.extras["things"]
    own = torch.tensor(np.array([t["box"] for t in things], np.float32) / max(sample.image.shape[:2]))
    nearest = torch.cdist(boxes.float(), own, p=1).argmin(1)  # (N_i, 4), (T, 4) -> (N_i,)
    return [things[k] for k in nearest.tolist()], boxes


def mask_labels(samples: list, masks: list) -> DenseLabels:
    """Labels (M, 1, 1) of masks (M_i, H, W) of each sample: the kind of what they cover, and what all of it shares."""
    covered, boxes = [], []
    for sample, own in zip(samples, masks, strict=True):
        side = max(sample.image.shape[:2])
        named = [*sample.extras["things"], *({"cls": kind} for kind in sample.extras["stuff"])]
        parts = np.concatenate([sample.extras["thing_masks"], sample.extras["stuff_masks"]]).reshape(len(named), -1)
        inside = own.flatten(1).float() @ torch.from_numpy(parts.astype(np.float32)).T  # (M, H*W) @ (H*W, T)
        share = inside / torch.from_numpy(parts.sum(1).clip(1).astype(np.float32))
        for row in share:
            covered.append(_shared([named[k] for k in (row > max(0.5, 0.9 * float(row.max()))).nonzero()[:, 0]]))
        boxes += (mask_boxes(own) / side).tolist()
    return _single(covered, boxes)


def _shared(things: list[dict]) -> dict:
    """What is true of all of the things."""
    first = things[0] if things else {}
    return {key: value for key, value in first.items() if all(t.get(key) == value for t in things)}


def _single(things: list[dict], boxes: list) -> DenseLabels:
    """One label a thing, as a feature grid of a single patch."""
    attributes = {}
    for name, values in ATTRIBUTES.items():
        key = "cls" if name == "kind" else name
        index = [values.index(t[key]) if key in t else IGNORE for t in things]
        attributes[name] = torch.tensor(index, dtype=torch.long).reshape(-1, 1, 1)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 1, 1, 4)
    return DenseLabels(attributes, boxes, torch.ones(len(things), 1, 1, dtype=torch.bool))


def mask_boxes(masks: torch.Tensor) -> torch.Tensor:
    """(M, H, W) bool to boxes (M, 4) in pixels, x0 y0 x1 y1, x1 and y1 exclusive; zeros for an empty mask."""
    boxes, seen = masks.new_zeros(len(masks), 4, dtype=torch.float32), masks.flatten(1).any(1)
    # torchvision's x1 and y1 are the last pixels'; release 0.24 fails on an empty mask.
    boxes[seen] = masks_to_boxes(masks[seen]) + boxes.new_tensor([0, 0, 1, 1])
    return boxes


def _one(extras: dict, size: tuple[int, int], grid: int):
    things, side = extras["things"], max(size)
    masks = np.concatenate([extras["thing_masks"], extras["stuff_masks"]])
    square = torch.zeros(len(masks), 1, side, side)
    square[:, 0, : size[0], : size[1]] = torch.from_numpy(masks)
    cover = F.adaptive_avg_pool2d(square, grid)[:, 0]  # (N, g, g): share of each patch
    n = len(things)
    best, thing = cover[:n].max(0)
    on_thing = best >= COVERED
    on_stuff = ~on_thing & (cover.sum(0) > 0.5)
    out = {}
    for name, values in ATTRIBUTES.items():
        key = "cls" if name == "kind" else name
        table = torch.tensor([values.index(t[key]) for t in things])
        out[name] = torch.where(on_thing, table[thing], IGNORE)
    stuff = torch.tensor([KINDS.index(kind) for kind in extras["stuff"]])
    out["kind"] = torch.where(on_stuff, stuff[cover[n:].argmax(0)], out["kind"])
    boxes = torch.tensor(np.array([t["box"] for t in things], np.float32) / side)
    return out, boxes[thing], on_thing


class DenseHeads(nn.Module):
    """One linear head per attribute and one for the box, on patch features (B, P, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
        self.box = nn.Linear(width, 4)

    def forward(self, tokens: torch.Tensor, labels: DenseLabels) -> dict[str, torch.Tensor]:
        """Per attribute, the mean cross-entropy of each image's labeled patches, summed over images; the same of the
        boxes' absolute errors. Sums over images can be added up over micro-batches and processes."""
        x = self.norm(tokens)
        losses = {}
        for name, head in self.heads.items():
            target = labels.attributes[name].flatten(1)  # (B, g, g) -> (B, P)
            # (B, P, K) -> (B, K, P), as cross_entropy wants its classes
            error = F.cross_entropy(head(x).float().transpose(1, 2), target, ignore_index=IGNORE, reduction="none")
            losses[name] = _sum_of_means(error, target != IGNORE)
        error = (self.box(x).float().sigmoid() - labels.boxes.flatten(1, 2)).abs().sum(-1)  # (B, P)
        losses["box"] = _sum_of_means(error, labels.has_box.flatten(1))
        return losses

    @torch.no_grad()
    def accuracy(self, tokens: torch.Tensor, labels: DenseLabels) -> dict[str, float]:
        """Share of labeled patches that each head gets right."""
        x = self.norm(tokens)
        out = {}
        for name, head in self.heads.items():
            target = labels.attributes[name].flatten()
            right = head(x).flatten(0, 1).argmax(-1) == target
            out[name] = float(right[target != IGNORE].float().mean())
        return out


def _sum_of_means(error: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """(B, P) errors to the sum over images of the mean over the patches of `where`."""
    return ((error * where).sum(1) / where.sum(1).clamp(min=1)).sum()
