"""Referring expression segmentation: one mask for one expression. cIoU, gIoU and P@0.5, official and fixed."""

import random

import numpy as np


def draw_expressions(image_id: str, count: int, seed: int) -> list[int]:
    """Which of an image's expressions the official variant scores: at most three, as the official loader draws them.

    It draws without a seed, so that its number differs from run to run.
    """
    return list(range(count)) if count <= 3 else random.Random(f"refseg {seed} {image_id}").sample(range(count), 3)


def _overlap(true: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
    """Pixels of the intersection and of the union of two (H, W) bool masks."""
    return float((true & predicted).sum()), float((true | predicted).sum())


def official_refseg(items: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """ciou and giou as the official script computes them, from one (true, predicted) pair of (M, H, W) bool an image.

    Masks are compared as far as both lists reach: an expression without a prediction doesn't touch cIoU but counts 0
    in gIoU. Two empty masks count 1 in gIoU. The average divides by the count + 1e-5, so 1.0 is never reached.
    """
    found = [_overlap(*pair) for item in items for pair in zip(*item, strict=False)]
    ious = sum(both / (either + 1e-5) if either else 1.0 for both, either in found)
    count = sum(len(true_masks) for true_masks, _ in items)
    ciou = sum(both for both, _ in found) / (sum(either for _, either in found) + 1e-10)
    return {"ciou": ciou, "giou": ious / (count + 1e-5)}


def fixed_refseg(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """ciou, giou and p50 over every expression, from (true, predicted) pairs of (H, W) bool; None without pairs.

    ciou: all intersections / all unions. giou: mean IoU. p50: share of expressions with IoU >= 0.5.
    The IoU of two empty masks is 1.
    """
    if not pairs:
        return {"ciou": None, "giou": None, "p50": None}
    both, either, ious = _overlaps(pairs)
    ciou = float(both.sum() / either.sum()) if either.sum() else 1.0
    return {"ciou": ciou, "giou": float(ious.mean()), "p50": float((ious >= 0.5).mean())}


def _overlaps(pairs: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of the intersections and of the unions of all pairs, and their IoU; 1 of two empty masks."""
    both, either = np.array([_overlap(*pair) for pair in pairs]).T
    return both, either, np.where(either > 0, both / np.maximum(either, 1), 1.0)


ASTRAY = 0.1
"""Below this IoU a mask lies on something else."""


def refseg_by_kind(pairs: list[tuple[np.ndarray, np.ndarray]], kinds: list[str | None]) -> dict[str, dict]:
    """By kind of expression, sorted: p50, astray (share of IoU < 0.1), expressions; those without kind are left out."""
    found = {}
    for kind in sorted({*kinds} - {None}):
        kept = [pair for pair, own in zip(pairs, kinds, strict=True) if own == kind]
        astray = float((_overlaps(kept)[2] < ASTRAY).mean())
        found[kind] = {"p50": fixed_refseg(kept)["p50"], "astray": astray, "expressions": len(kept)}
    return found


ABSENT = "absent"
"""The kind of expressions that fit nothing in the picture: a mask is wrong there, and no other figure counts them."""


def refseg_absent(pairs: list[tuple[np.ndarray, np.ndarray]], kinds: list[str | None]) -> dict[str, float]:
    """false_alarms, the share of absent expressions that got a mask, and missed, the share of the others that got none;
    empty where none is of the kind `ABSENT`."""
    empty = {False: [], True: []}
    for (_, predicted), kind in zip(pairs, kinds, strict=True):
        empty[kind == ABSENT].append(not predicted.any())
    missed = float(np.mean(empty[False])) if empty[False] else None
    return {"false_alarms": 1 - float(np.mean(empty[True])), "missed": missed} if empty[True] else {}


def unseen_refseg(pairs: list[tuple[np.ndarray, np.ndarray]], unseen: list[bool]) -> dict | None:
    """`fixed_refseg` over the expressions of things that training never showed, one mark a pair; None where none is."""
    kept = [pair for pair, marked in zip(pairs, unseen, strict=True) if marked]
    return {**fixed_refseg(kept), "expressions": len(kept)} if kept else None
