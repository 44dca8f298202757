"""The three losses of GLaMM (paper section 3.1): words, and pixels twice.

Every function returns a SUM over tokens or masks; the caller divides. Official training divides by what one micro-batch
holds; `fixed` by what the whole optimizer step holds, so that the way a batch is cut does not change the training.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from glamm_mini.model.config import LossConfig
from glamm_mini.model.tokens import IGNORE_INDEX


def cross_entropy_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy of logits (N, V) against labels (N,); ignored labels add nothing."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="sum")


def mask_bce_sum(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over masks of the mean binary cross-entropy per pixel; logits and target (M, H, W), target 0..1."""
    per_pixel = F.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
    return per_pixel.flatten(1).mean(1).sum()


def mask_dice_sum(logits: Tensor, target: Tensor, scale: float, eps: float) -> Tensor:
    """Sum over masks of 1 - dice; logits and target (M, H, W).

    `scale` divides both areas before `eps` is added (officially 1000 and 1e-6): an empty pair costs 0, and no area
    overflows in half precision.
    """
    p, t = logits.float().sigmoid().flatten(1), target.float().flatten(1)
    overlap = 2 * (p * t / scale).sum(1)
    area = (p / scale).sum(1) + (t / scale).sum(1)
    return (1 - (overlap + eps) / (area + eps)).sum()


def mask_sums(
    predicted: Sequence[Tensor] | None, masks: Sequence[Tensor], config: LossConfig, cut_surplus: bool
) -> tuple[Tensor, Tensor, int]:
    """Sums of both mask losses over all images, and the number of masks; per image (M, H, W) logits and true masks.

    cut_surplus: drop true masks beyond the last [SEG], as the official code does after a truncated answer.
    Raises ValueError that names the image whose true masks do not fit its predicted ones in number, size or values.
    """
    if predicted is None:
        raise ValueError("masks were given, but the loss of masks also needs grounding_images, resized and original")
    if len(masks) != len(predicted):
        raise ValueError(f"masks has {len(masks)} entries for {len(predicted)} images; give one (M, H, W) for each")
    bce = dice = torch.zeros((), device=predicted[0].device)
    for i, (logits, truth) in enumerate(zip(predicted, masks, strict=True)):
        if len(truth := _matched(f"image {i} of the batch", logits, truth, cut_surplus)):
            bce = bce + mask_bce_sum(logits, truth)
            dice = dice + mask_dice_sum(logits, truth, config.dice_scale, config.dice_eps)
    return bce, dice, sum(map(len, predicted))


def _matched(image: str, logits: Tensor, truth: Tensor, cut_surplus: bool) -> Tensor:
    truth = truth[: len(logits)] if cut_surplus else truth
    if len(truth) != len(logits):
        count = f"{len(logits)} [SEG] in its answers but {len(truth)} true masks"
        raise ValueError(f"{image} has {count}; give one mask for each [SEG], in order")
    if truth.shape != logits.shape:
        shapes = f"{tuple(truth.shape)}; expected {tuple(logits.shape)}: masks, height and width (`original`)"
        raise ValueError(f"the true masks of {image} have shape {shapes}")
    if truth.is_complex() or truth.dtype != torch.bool and not bool(((truth >= 0) & (truth <= 1)).all()):  # nor NaN
        raise ValueError(f"the true masks of {image} hold values that are not 0 to 1; give bool or shares")
    return truth.to(logits.device)
