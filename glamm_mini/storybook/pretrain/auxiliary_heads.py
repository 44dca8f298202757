"""Aids for a small model: heads that are trained beside it and thrown away after."""

import torch
from torch import nn
from torch.nn import functional as F

from glamm_mini.model.config import GlammConfig
from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX
from glamm_mini.storybook.pretrain.dense_labels import mask_boxes

BOX_WEIGHT = 2.0
POINT_WEIGHT = 2.0


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


class PointAid(nn.Module):
    """Half-way through the language model, the state of a noun in a question must point at the patches that it speaks
    of, and no others. Answers hold too few examples of looking a word up in the picture; questions are full of them."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        width = config.text.hidden_size
        self.layer = config.text.num_hidden_layers // 2
        self.norm = nn.LayerNorm(width)
        self.asks, self.shows = nn.Linear(width, width), nn.Linear(width, width)
        # A thing covers a patch in twenty: the head need not learn that first.
        self.bias = nn.Parameter(torch.tensor(-3.0))

    def forward(self, states: tuple, ids: torch.Tensor, at: torch.Tensor, patches: torch.Tensor, count=None):
        """Sum over rows of the mean binary cross-entropy of a row's mentions, over `count` (by default all rows).

        states: hidden states (R, T, D) of every layer, of ids (R, T) with one image a row; at (M, 2): row and place of
        each mention among the ids before the image made room; patches (M, P).
        """
        if not len(at):
            return 0.0 * self.bias
        rows, (image, states) = at[:, 0], (ids == IMAGE_TOKEN_INDEX, self.norm(states[self.layer]))
        shown = self.shows(states[image].view(len(ids), -1, states.shape[-1]))  # (R * P, D) -> (R, P, D)
        asked = self.asks(states[rows, at[:, 1] + shown.shape[1] - 1])  # the image takes P places instead of one
        logits = torch.einsum("md,mpd->mp", asked, shown[rows]) / states.shape[-1] ** 0.5
        error = F.binary_cross_entropy_with_logits(logits.float() + self.bias, patches, reduction="none").mean(1)
        per_row = error.new_zeros(len(ids)).index_add(0, rows, error)
        mentions = error.new_zeros(len(ids)).index_add(0, rows, torch.ones_like(error))
        return POINT_WEIGHT * (per_row / mentions.clamp(min=1)).sum() / (count or len(ids))
