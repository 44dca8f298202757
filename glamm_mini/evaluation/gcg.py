"""Grounded conversation generation (and phrase grounding): caption, masks and phrases scored together.

`official_grounding` gives what the official scripts print, mistakes included, because published numbers were
made with them; `fixed_grounding` gives numbers that charge every miss and reward every hit; `unseen_grounding` gives
those of unseen things alone, which a figure over everything hides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from glamm_mini.evaluation.masks import coco_stats, decode_masks, iou_matrix
from glamm_mini.evaluation.records import GroundedPrediction, GroundedTruth
from glamm_mini.evaluation.similarity import THRESHOLD, Similarity


@dataclass
class GroundedImage:
    """One image ready to be scored. similarities: (G, P') of all labels and phrases; P' may differ from P."""

    truth: GroundedTruth
    prediction: GroundedPrediction
    ious: np.ndarray  # (G, P) in 0..1, nan for two empty masks
    similarities: np.ndarray  # (G, P')


def compare_images(
    truths: list[GroundedTruth], predictions: dict[Any, GroundedPrediction], similarity: Similarity,
    progress: Callable = lambda items: items,
) -> list[GroundedImage]:  # fmt: skip
    """Decode masks and compare all pairs once; a missing prediction is no masks and an empty caption."""
    images = []
    for truth in progress(truths):
        prediction = predictions.get(truth.image_id) or GroundedPrediction()
        true_masks = decode_masks(truth.masks, truth.size, f"{truth.where}, masks")
        predicted_masks = decode_masks(prediction.masks, truth.size, f"{prediction.where}: pred_masks")
        similarities = np.zeros((len(truth.labels), len(prediction.phrases)))
        for i, (label, attributes) in enumerate(zip(truth.labels, truth.attributes, strict=True)):
            similarities[i] = [similarity(label, phrase, attributes) for phrase in prediction.phrases]
        ious = iou_matrix(true_masks, predicted_masks, empty=np.nan)
        images.append(GroundedImage(truth, prediction, ious, similarities))
    return images


def official_grounding(images: list[GroundedImage], coco_truth: dict) -> dict:
    """ap50 (every score 1.0), miou and recall as the official scripts print them; and what they count."""
    matches = [official_matches(image) for image in images]
    hits = sum(len(some or ()) for some in matches)
    labels = sum(len(image.truth.labels) for image in images)
    return {
        "ap50": _average_precision(images, coco_truth, scored=False),
        "miou": float(np.mean([official_miou(image) for image in images])) if images else 0.0,
        "recall": hits / labels if labels else 0.0,
        "true_positives": hits,
        "actual_positives": labels,
        "swallowed_errors": matches.count(None),
    }


def official_miou(image: GroundedImage) -> float:
    """Mean IoU over greedily paired masks. Only pairs count: misses and surplus masks cost nothing."""
    ious = image.ious.T.copy()  # predictions first, as ties go to the earlier prediction
    paired = []
    while ious.size and np.max(ious) > 0:  # a nan (two empty masks) makes this False and ends the pairing
        row, column = np.unravel_index(np.argmax(ious), ious.shape)
        paired.append(ious[row, column])
        ious = np.delete(np.delete(ious, row, axis=0), column, axis=1)
    return float(np.mean(paired)) if paired else 0.0


def official_matches(image: GroundedImage) -> list[tuple[int, int]] | None:
    """Pairs (truth, prediction) that the official recall counts, best IoU first.

    The search stops at the first pair that fails, although later ones might pass. Where the best pair has no
    phrase (more masks than phrases) the official script raises an IndexError and swallows it, which loses the
    image's hits while its labels still count: None.
    """
    ious, similarities = image.ious.copy(), image.similarities.copy()
    matches: list[tuple[int, int]] = []
    while ious.size:
        row, column = (int(index) for index in np.unravel_index(np.argmax(ious), ious.shape))
        if ious[row, column] < 0.5:
            break
        if column >= similarities.shape[1]:
            return None
        if similarities[row, column] < THRESHOLD:
            break
        matches.append((row, column))
        for matrix in (ious, similarities):
            matrix[row, :] = matrix[:, column] = 0
    return matches


@dataclass
class Pair:
    """One true and one predicted mask that the optimal assignment put together."""

    truth: int
    prediction: int
    iou: float
    right: bool  # the phrase says what the truth says


def optimal_pairs(image: GroundedImage) -> list[Pair]:
    """One-to-one pairs with the largest sum of IoU and, of equal sums, the most right phrases; pairs of IoU 0 are
    dropped. A mask without words is never right."""
    ious = np.nan_to_num(image.ious, nan=1.0)  # two empty masks agree
    right = np.zeros(ious.shape, bool)
    for k, phrase in enumerate(image.prediction.phrases[: ious.shape[1]]):
        right[:, k] = image.similarities[:, k] >= THRESHOLD if phrase.strip() else False
    # Less than two different IoUs of masks differ by, in all pairs together: it decides between equal masks alone.
    best = linear_sum_assignment(ious + 1e-12 * right, maximize=True)
    pairs = [(int(row), int(column)) for row, column in zip(*best, strict=True)]
    return [Pair(*pair, float(ious[pair]), bool(right[pair])) for pair in pairs if ious[pair] > 0]


def fixed_grounding(images: list[GroundedImage], coco_truth: dict) -> dict:
    """ap50 (with the answers' scores), miou, recall, precision, pq, phrase_accuracy; fractions, None for 0 / 0.

    Two empty masks are a pair of IoU 1 in all of these but ap50, which is pycocotools' own and takes them for a miss.
    """
    paired = [optimal_pairs(image) for image in images]
    counts = [len(image.truth.masks) for image in images]
    miou, right = _miou_and_right(paired, counts)
    true, predicted = sum(counts), sum(len(image.prediction.masks) for image in images)
    found = sum(pair.iou >= 0.5 for pairs in paired for pair in pairs)
    strict = [[pair.iou for pair in pairs if pair.iou > 0.5] for pairs in paired]
    segments = sum(map(len, strict))
    # pairs + half of the unpaired predictions + half of the unpaired truths
    charged = segments + (predicted - segments) / 2 + (true - segments) / 2
    return {
        "ap50": _average_precision(images, coco_truth, scored=True),
        "miou": miou,
        "recall": right / true if true else None,
        "precision": right / predicted if predicted else (0.0 if true else None),
        "pq": sum(map(sum, strict)) / charged if charged else None,
        "phrase_accuracy": right / found if found else (0.0 if true else None),
        "images_without_masks": counts.count(0),
    }


def unseen_grounding(images: list[GroundedImage]) -> dict | None:
    """The fixed miou and recall over the phrases of things that training never showed, and their number; None for none.

    Matching is made over everything in the picture and only then restricted: a mask that goes to a seen thing is not a
    miss of an unseen one. Images without an unseen phrase are left out.
    """
    marked = [{k for k, unseen in enumerate(image.truth.unseen) if unseen} for image in images]
    paired = [
        [pair for pair in optimal_pairs(image) if pair.truth in wanted]
        for image, wanted in zip(images, marked, strict=True)
    ]
    miou, right = _miou_and_right(paired, [len(wanted) for wanted in marked])
    phrases = sum(map(len, marked))
    return {"miou": miou, "recall": right / phrases, "phrases": phrases} if phrases else None


def _miou_and_right(paired: list[list[Pair]], counts: list[int]) -> tuple[float | None, int]:
    """Mean over images of paired IoU / true masks, and how many pairs have IoU >= 0.5 and a right phrase."""
    mious = [sum(pair.iou for pair in pairs) / count for pairs, count in zip(paired, counts, strict=True) if count]
    right = sum(pair.right and pair.iou >= 0.5 for pairs in paired for pair in pairs)
    return (float(np.mean(mious)) if mious else None), right


def _average_precision(images: list[GroundedImage], coco_truth: dict, scored: bool) -> float | None:
    if not any(image.truth.masks for image in images):
        return None
    ids = {str(image["id"]): image["id"] for image in coco_truth["images"]}  # of one type, as the mask file has them
    detections = [
        {"image_id": ids[str(image.truth.image_id)], "segmentation": mask, "score": score if scored else 1.0}
        for image in images
        for mask, score in zip(image.prediction.masks, image.prediction.scores, strict=True)
    ]
    stats = coco_stats(coco_truth, detections)
    # -1 says that there is nothing to find: every true mask is a crowd.
    return 0.0 if stats is None else None if stats[1] < 0 else float(stats[1])
