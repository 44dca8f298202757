"""The joint stage: GLaMM on a mixture of tasks, with two aids for a small model that are thrown away after."""

import torch
from torch import nn
from torch.nn import functional as F

from glamm_mini.datasets.collate import Collate
from glamm_mini.datasets.sample import Sample
from glamm_mini.model.glamm import GlammForConditionalGeneration, GlammOutput
from glamm_mini.training.dense import DenseHeads, dense_labels

DENSE_WEIGHT = 0.3
BOX_WEIGHT = 2.0


class JointTraining(nn.Module):
    """GLaMM and its aids. Dense labels keep the encoder seeing what the words do not ask for; and the state of each
    [SEG] must also say in which box its mask lies, which a single prompt vector learns sooner than a shape."""

    def __init__(self, glamm: GlammForConditionalGeneration, heads: DenseHeads | None = None):
        super().__init__()
        self.glamm = glamm
        self.heads = heads or DenseHeads(glamm.config.vision.hidden_size)
        width = glamm.config.text.hidden_size
        self.box = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, dense=None, seg_boxes=None, normalisers=None, **batch) -> GlammOutput:
        """The model's batch with `dense` labels and `seg_boxes` (M, 4), fractions of the padded square."""
        out = self.glamm(normalisers=normalisers, **batch)
        if dense is not None:
            # levels[-1] is the last hidden state: the same patches that the language model reads.
            tokens = out.image_features.levels[-1].flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, P, C)
            count = (normalisers or {}).get("images", len(tokens))
            out.losses["dense"] = sum(self.heads(tokens, dense).values()) / count
            out.loss = out.loss + DENSE_WEIGHT * out.losses["dense"]
        if seg_boxes is not None and len(seg_boxes):
            rows, columns = out.seg_positions.T
            guess = self.box(out.last_hidden[rows, columns]).float().sigmoid()
            count = max((normalisers or {}).get("masks", len(seg_boxes)), 1)
            out.losses["box"] = F.l1_loss(guess, seg_boxes, reduction="sum") / count
            out.loss = out.loss + BOX_WEIGHT * out.losses["box"]
        return out


class JointCollate(Collate):
    """Collate, plus what the aids need."""

    def __call__(self, samples: list[Sample]) -> dict:
        batch = super().__call__(samples)
        batch["dense"] = dense_labels(samples, self.processor.config.image_grid)
        boxes = [mask_boxes(m) / max(m.shape[-2:]) for m in batch["masks"]]
        batch["seg_boxes"] = torch.cat(boxes)
        return batch


def mask_boxes(masks: torch.Tensor) -> torch.Tensor:
    """(M, H, W) bool to boxes (M, 4) in pixels, x0 y0 x1 y1; zeros for an empty mask."""
    if not len(masks):
        return torch.zeros(0, 4)
    columns, rows = masks.any(1).float(), masks.any(2).float()  # (M, W), (M, H)
    w, h = columns.shape[1], rows.shape[1]
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1, y1 = w - columns.flip(1).argmax(1), h - rows.flip(1).argmax(1)
    boxes = torch.stack([x0, y0, x1, y1], dim=1).float()
    return boxes * masks.any(1).any(1)[:, None]
