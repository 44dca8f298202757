"""Masks on disk (COCO run lengths), overlaps between masks, and COCO average precision."""

import contextlib
import io
import warnings

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def decode_masks(records: list[dict], size: tuple[int, int] | None = None, name: str = "image") -> np.ndarray:
    """Run-length records to (M, H, W) bool.

    size: (H, W) that every record must have; also the size of the empty result. `name` names the image in errors.
    Raises ValueError for a record that is no run length, or of another size.
    """
    masks = []
    for position, record in enumerate(records):
        try:
            with warnings.catch_warnings():  # pycocotools 2.0 lags behind numpy 2's array protocol
                warnings.simplefilter("ignore", DeprecationWarning)
                mask = coco_mask.decode(record).astype(bool)
        except Exception as problem:  # pycocotools raises plain Exception, TypeError, KeyError ...
            raise ValueError(
                f"{name}: mask {position} isn't a COCO run length ({{'size': [H, W], 'counts': '...'}})"
            ) from problem
        if size is not None and mask.shape != tuple(size):
            raise ValueError(
                f"{name}: mask {position} is {mask.shape[0]} x {mask.shape[1]} (H x W), the image is "
                f"{size[0]} x {size[1]}; predict masks at the size of the image"
            )
        masks.append(mask)
    if not masks:
        return np.zeros((0, *(size or (1, 1))), bool)
    if len({mask.shape for mask in masks}) > 1:
        raise ValueError(f"{name}: its masks have different sizes: {sorted({mask.shape for mask in masks})}")
    return np.stack(masks)


def iou_matrix(true_masks: np.ndarray, predicted_masks: np.ndarray, empty: float = 1.0) -> np.ndarray:
    """Intersection over union of every pair: (G, H, W) and (P, H, W) bool to (G, P) float64 in 0..1.

    empty: the value for two empty masks, 0 / 0: 1 in the `fixed` protocol, nan in the official scripts.
    """
    if not len(true_masks) or not len(predicted_masks):
        return np.zeros((len(true_masks), len(predicted_masks)))
    true_flat = true_masks.reshape(len(true_masks), -1).astype(np.float64)  # (G, H*W)
    predicted_flat = predicted_masks.reshape(len(predicted_masks), -1).astype(np.float64)  # (P, H*W)
    intersection = true_flat @ predicted_flat.T  # (G, P): whole numbers, exact in float64
    union = true_flat.sum(1)[:, None] + predicted_flat.sum(1)[None] - intersection
    return np.where(union > 0, intersection / np.maximum(union, 1), empty)


def coco_stats(coco_truth: dict, detections: list[dict]) -> np.ndarray | None:
    """The twelve numbers of COCO's mask evaluation, category 1; index 1 is AP50. -1 marks a number without truths.

    coco_truth: a COCO dictionary (images, annotations with run-length masks, categories).
    detections: dictionaries with image_id, category_id, segmentation, score.
    Returns None where there is no detection at all: pycocotools can't load an empty list.
    """
    if not detections:
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = {
            "images": coco_truth["images"],
            "categories": coco_truth.get("categories") or [{"id": 1, "name": "object"}],
            "annotations": [dict(annotation) for annotation in coco_truth["annotations"]],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(detection) for detection in detections]), "segm")
        evaluation.params.catIds = [1]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats
