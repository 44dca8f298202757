"""Masks on disk (COCO run lengths), overlaps between masks, and COCO average precision."""

import contextlib
import io
import re
import warnings

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glamm_mini.evaluation.fields import checked, is_whole, shown


def run_lengths(record: dict, name: str) -> np.ndarray:
    """Lengths (N,) int64 of a COCO run-length record, column by column, the first of zeros; counts a text or a list.

    pycocotools would read past the end of a text and return any mask, so lengths are read and checked here.
    Raises ValueError, which begins with `name`, unless they are not negative and add up to the pixels of the size.
    """
    height, width = checked(record, {"size": "size"}, name)["size"]
    counts = record.get("counts")
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    # A number is at most six letters that say that it goes on, and one that ends it.
    if isinstance(text, str) and re.fullmatch("([P-o]{0,6}[0-O])+", text):
        lengths = _lengths_of_text(text)
    elif isinstance(counts, list) and all(is_whole(count) and abs(count) <= height * width for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise ValueError(f"{name}: 'counts' is {shown(counts)}; expected COCO run lengths, a whole text or a list")
    if (lengths < 0).any() or lengths.sum() != height * width:
        expected = f"expected none that is negative and {height} x {width} = {height * width} pixels"
        raise ValueError(f"{name}: its run lengths add up to {lengths.sum()}; {expected}")
    return lengths


def _lengths_of_text(text: str) -> np.ndarray:
    """COCO's text: five bits a letter from "0" on, the sixth says that the number goes on, lowest bits first; from the
    fourth number on a difference to the number before the last."""
    letters = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(letters & 32 == 0)  # the last letter of each number
    sizes = np.diff(ends, prepend=-1)  # letters of each number
    place = np.arange(len(letters)) - np.repeat(ends - sizes + 1, sizes)
    numbers = np.add.reduceat((letters & 31) << (5 * place), ends - sizes + 1)
    numbers -= np.where(letters[ends] & 16, 1 << (5 * sizes), 0)  # its highest bit is the sign
    for parity in (1, 2):
        numbers[parity::2] = np.cumsum(numbers[parity::2])
    return numbers


def decode_masks(records: list[dict], size: tuple[int, int] | None = None, name: str = "masks") -> np.ndarray:
    """Run-length records to (M, H, W) bool.

    size: (H, W) of every record, and of the empty result; by default the first's. `name`: the list in errors.
    Raises ValueError for a record that is not a run length, or of another size.
    """
    masks: list[np.ndarray] = []
    for position, record in enumerate(records):
        where = f"{name}[{position}]"
        shape = tuple(checked(record, {"size": "size"}, where)["size"])
        size = size or shape
        if shape != tuple(size):
            wrong = f"{where} is {shape[0]} x {shape[1]} (H x W); expected {size[0]} x {size[1]}"
            raise ValueError(f"{wrong}: predict masks at the size of the image")
        lengths = run_lengths(record, where)
        masks.append(np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(shape[::-1]).T)  # zeros first
    return np.stack(masks) if masks else np.zeros((0, *(size or (1, 1))), bool)


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

    coco_truth: a COCO dictionary (images with id; annotations with image_id and segmentation).
    detections: dictionaries with image_id, segmentation, score. Masks must have passed `decode_masks`.
    pycocotools counts two empty masks as a miss, and images with equal scores in the order of their ids.
    Returns None where there is no detection at all: pycocotools can't load an empty list.
    """
    if not detections:
        return None
    detections = [one | {"category_id": 1, "segmentation": _as_text(one["segmentation"])} for one in detections]
    true = []
    for one in coco_truth["annotations"]:
        mask, area = _as_text(one["segmentation"]), one.get("area")
        # Numbered anew: pycocotools takes an annotation of id 0 for unmatched, and the last of equal ids for all.
        true.append({"id": len(true) + 1, "image_id": one["image_id"], "category_id": 1, "segmentation": mask})
        true[-1] |= {"area": coco_mask.area(mask) if area is None else area, "iscrowd": one.get("iscrowd") or 0}
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # pycocotools prints its progress
        warnings.simplefilter("ignore", DeprecationWarning)  # and lags behind numpy 2's array protocol
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image["id"], "height": 0, "width": 0} for image in coco_truth["images"]],  # sides: unused
            "categories": [{"id": 1, "name": "object"}],
            "annotations": true,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(detections), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def _as_text(record: dict) -> dict:
    """A run-length record whose counts are a text."""
    return coco_mask.frPyObjects(record, *record["size"]) if isinstance(record["counts"], list) else record
