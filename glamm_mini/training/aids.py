"""Aids for a small model: heads that are trained beside it and thrown away after."""

import torch
from torch import nn

from glamm_mini.config import GlammConfig
from glamm_mini.training.dense import mask_boxes

BOX_WEIGHT = 2.0


def seg_boxes(masks: list[torch.Tensor]) -> torch.Tensor:
    """Masks (M_i, H, W) of every image to their boxes (M, 4), fractions of the padded square."""
    return torch.cat([mask_boxes(m) / max(m.shape[-2:]) for m in masks])


class BoxAid(nn.Module):
    """The states of a phrase must say in which box its thing lies: before the first word is written, the model has to
    look somewhere; and a single prompt vector learns a box sooner than a shape."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        self.tokens = config.tokens
        width = config.text.hidden_size
        self.net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4))

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, boxes: torch.Tensor, count: float | None = None):
        """Sum over [SEG] of the box's absolute error, averaged over the states of its phrase, over `count`.

        hidden (R, T, D) of ids (R, T); boxes (M, 4), one for each [SEG] in row order.
        """
        seg = ids == self.tokens.seg
        ended = seg.cumsum(1)  # [SEG] so far
        place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        opened = torch.where(ids == self.tokens.phrase_start, place, 0).cummax(1).values
        closed = torch.where(seg, place, 0).cummax(1).values
        # A [SEG] that has no phrase is asked about in the one state before it.
        inside = (opened > closed) | torch.roll(seg, -1, 1)
        # Which [SEG] a state leads to, counted over all rows.
        before = torch.cat([ended.new_zeros(1), ended[:, -1].cumsum(0)[:-1]])
        which = (before[:, None] + ended)[inside].clamp(max=max(len(boxes) - 1, 0))
        if not len(boxes):
            return 0.0 * self.net(hidden[:1, 0]).sum()
        error = (self.net(hidden[inside]).float().sigmoid() - boxes[which]).abs().sum(-1)
        per_phrase = error.new_zeros(len(boxes)).index_add(0, which, error)
        states = error.new_zeros(len(boxes)).index_add(0, which, torch.ones_like(error))
        return BOX_WEIGHT * (per_phrase / states.clamp(min=1)).sum() / (count or len(boxes))
