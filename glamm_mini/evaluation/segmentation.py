"""Referring expression segmentation: one mask for one expression. cIoU, gIoU and P@0.5, official and fixed."""

import random

import numpy as np

OFFICIAL_EXPRESSIONS = 3  # the official loader draws this many sentences an image


def draw_expressions(image_id: str, count: int, seed: int) -> list[int]:
    """Which of an image's expressions the official variant scores: at most three, drawn with a seed.

    The official script draws without a seed, so that its number differs from run to run.
    """
    if count <= OFFICIAL_EXPRESSIONS:
        return list(range(count))
    return random.Random(f"refseg {seed} {image_id}").sample(range(count), OFFICIAL_EXPRESSIONS)


def official_refseg(items: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """ciou and giou as the official script computes them, from one (true, predicted) pair of (M, H, W) bool an image.

    Masks are compared as far as both lists reach: an expression without a prediction doesn't touch cIoU but counts 0
    in gIoU. Two empty masks count 1 in gIoU. The average divides by the count + 1e-5, so 1.0 is never reached.
    """
    intersection, union, ious, count = 0.0, 0.0, 0.0, 0
    for true_masks, predicted_masks in items:
        for true, predicted in zip(true_masks, predicted_masks, strict=False):
            both = float(np.logical_and(true, predicted).sum())
            either = float(np.logical_or(true, predicted).sum())
            intersection += both
            union += either
            ious += both / (either + 1e-5) if either else 1.0
        count += len(true_masks)
    return {"ciou": intersection / (union + 1e-10), "giou": ious / (count + 1e-5)}


def fixed_refseg(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """ciou, giou and p50 over every expression, from (true, predicted) pairs of (H, W) bool; None without pairs.

    ciou: all intersections / all unions. giou: mean IoU. p50: share of expressions with IoU >= 0.5.
    The IoU of two empty masks is 1.
    """
    if not pairs:
        return {"ciou": None, "giou": None, "p50": None}
    both = np.array([np.logical_and(true, predicted).sum() for true, predicted in pairs], dtype=np.float64)
    either = np.array([np.logical_or(true, predicted).sum() for true, predicted in pairs], dtype=np.float64)
    ious = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return {
        "ciou": float(both.sum() / either.sum()) if either.sum() else 1.0,
        "giou": float(ious.mean()),
        "p50": float((ious >= 0.5).mean()),
    }
