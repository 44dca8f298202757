"""Predictions and ground truth on disk: reading them, with one clear error for whatever is wrong.

Ground truth, in a folder, for a split such as "val":

    gcg, grounding   {split}_{task}_coco_mask_gt.json, {split}_{task}_coco_caption_gt.json   (GranD-f's own format)
    refseg           {split}_refseg_gt.json      [{image_id, size, expressions: [{sent_id, sentence, mask}]}]
    regcap, caption  {split}_{task}_gt.json      COCO captions: {images, annotations: [{id, image_id, caption}]}
    vqa              {split}_vqa_gt.json         [{image_id, questions: [{question_id, question, answer}]}]

An annotation (gcg, grounding, regcap) or expression (refseg) of a thing that training never showed has "unseen": true.

Predictions: one `<image_id>.json` an image, or for regcap and caption `results_<rank>.json`, lists of
{image_id, caption}. `settings.json` beside them says how they were made.

Rules: ids are whole numbers or texts and are compared as texts. Masks are COCO run lengths of the image's size, or, in
refseg, null for none. Without "scores" every mask has 1.0. More phrases than masks, or fewer, are taken as they are. An
image without a prediction counts as empty and is reported, as are files that belong to no image.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glamm_mini.evaluation.fields import by_id, shown
from glamm_mini.evaluation.fields import field as field_of

TASKS = ("gcg", "refseg", "regcap", "caption", "grounding", "vqa")
MASK_TASKS = ("gcg", "grounding")
LIST_TASKS = ("regcap", "caption")
SETTINGS = "settings.json"
NOT_RESULTS = (SETTINGS, "merged.json", "metrics.json")


@dataclass
class GroundedTruth:
    """What one image's grounded caption should be: label k belongs to mask k. where: its place, for errors."""

    image_id: Any
    size: tuple[int, int]
    captions: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    masks: list[dict] = field(default_factory=list)
    attributes: list[dict | None] = field(default_factory=list)
    unseen: list[bool] = field(default_factory=list)  # which were never shown in training, where the truth says so
    where: str = "ground truth"


@dataclass
class GroundedPrediction:
    """What was predicted for one image: phrase k belongs to mask k; one score a mask. where: its file, for errors."""

    caption: str = ""
    phrases: list[str] = field(default_factory=list)
    masks: list[dict] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    where: str = "prediction"


def check_task(task: str) -> None:
    """Raises ValueError unless `task` is one that can be scored."""
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; choose one of: {', '.join(TASKS)}.")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError naming the file and the line where it breaks."""
    try:
        return json.loads(Path(path).read_text("utf-8-sig"))
    except (ValueError, RecursionError) as problem:  # not JSON, not UTF-8, a number without end, lists without end
        where = f" (line {problem.lineno})" if isinstance(problem, json.JSONDecodeError) else ""
        advice = "If `predict` wrote it, delete it and run `predict` again."
        raise ValueError(f"{path} isn't valid JSON{where}. {advice}") from problem
    except OSError as problem:
        raise ValueError(f"{path} cannot be read ({problem.strerror}); expected a JSON file") from problem


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a stopped process never leaves half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content), "utf-8")
    os.replace(temporary, path)


# --- ground truth -------------------------------------------------------------------------------------------------


def truth_path(folder: Path, task: str, split: str, kind: str = "") -> Path:
    """Where a task's ground truth lies; `kind` is "mask" or "caption" for gcg and grounding."""
    name = f"{split}_{task}_coco_{kind}_gt.json" if task in MASK_TASKS else f"{split}_{task}_gt.json"
    return Path(folder) / name


def read_truth(folder: Path, task: str, split: str, kind: str = "") -> Any:
    """One ground truth file: a list (refseg, vqa), or a COCO object whose images and annotations have ids and places.

    Raises ValueError if the folder or the file isn't there, naming what is, and for records of another form.
    """
    path = truth_path(folder, task, split, kind)
    if not path.is_file():
        present = sorted(item.name for item in path.parent.glob("*_gt.json")) if path.parent.is_dir() else None
        found = "the folder doesn't exist" if present is None else f"the folder holds {', '.join(present) or 'none'}"
        found = "that is a folder" if path.is_dir() else found
        raise ValueError(
            f"No ground truth of task {task!r}, split {split!r}: expected {path}; {found}. "
            "Check --ground-truth and --split; `predict` writes it to OUT/ground_truth when it has finished."
        )
    content = read_json(path)
    if task in ("refseg", "vqa"):
        if not isinstance(content, list):
            raise ValueError(f"{path} holds {shown(content)}; expected a list of objects, one an image")
        images = by_id(content, "image_id", str(path))
    else:
        images = by_id(field_of(content, "images", "list", str(path)), "id", f"{path}: images")
    if not images:
        raise ValueError(f"{path} holds no image; there is nothing to score")
    for image_id in images:
        if Path(image_id).is_absolute() or {"..", "~"} & set(image_id.replace("\\", "/").split("/")):
            raise ValueError(f"{path}: the image id {image_id!r} would lead out of the folder of predictions")
    if isinstance(content, dict):
        field_of(content, "info", "object", str(path), {})
        for k, annotation in enumerate(field_of(content, "annotations", "list", str(path))):
            image_id = field_of(annotation, "image_id", "id", f"{path}: annotations[{k}]")
            if str(image_id) not in images:
                raise ValueError(f"{path}: annotations[{k}]: 'image_id' {image_id!r} is not an id of its images")
    return content


def read_grounded_truth(folder: Path, task: str, split: str) -> tuple[list[GroundedTruth], dict]:
    """Truths in the order of the caption file's images, and the COCO dictionary of the masks (for AP)."""
    masks = read_truth(folder, task, split, "mask")
    captions = read_truth(folder, task, split, "caption")
    mask_path, caption_path = (truth_path(folder, task, split, kind) for kind in ("mask", "caption"))
    truths: dict[str, GroundedTruth] = {}
    for k, image in enumerate(captions["images"]):
        where = f"{caption_path}: images[{k}]"
        sides = [field_of(image, side, "whole", where) for side in ("height", "width")]
        size = tuple(field_of({"size": sides}, "size", "size", where))
        truths[str(image["id"])] = GroundedTruth(image["id"], size, where=f"{mask_path}: image {image['id']}")
    kept = {type(image["id"]) for image in masks["images"]}
    if len(kept) > 1 or {str(image["id"]) for image in masks["images"]} != set(truths):
        raise ValueError(f"{mask_path} and {caption_path} name different images; both need the same ids, of one type")
    for k, annotation in enumerate(captions["annotations"]):
        truth, where = truths[str(annotation["image_id"])], f"{caption_path}: annotations[{k}]"
        truth.captions.append(field_of(annotation, "caption", "text", where))
        truth.labels = truth.labels or field_of(annotation, "labels", "texts", where)
    for k, annotation in enumerate(masks["annotations"]):
        truth, where = truths[str(annotation["image_id"])], f"{mask_path}: annotations[{k}]"
        truth.masks.append(field_of(annotation, "segmentation", "object", where))
        truth.attributes.append(field_of(annotation, "attributes", "object", where, None))
        truth.unseen.append(bool(annotation.get("unseen")))
        for name in ("area", "iscrowd"):
            field_of(annotation, name, "number", where, 0)
    for truth in truths.values():
        if len(truth.labels) != len(truth.masks):
            raise ValueError(
                f"{truth.where} has {len(truth.masks)} masks, {caption_path} has {len(truth.labels)} labels for it; "
                "the i-th label belongs to the i-th mask of its image"
            )
    return list(truths.values()), masks


# --- predictions --------------------------------------------------------------------------------------------------


def read_grounded_predictions(folder: Path, image_ids: list) -> dict[Any, GroundedPrediction]:
    """Predictions by image id; images without a file are absent."""
    predictions = {}
    for image_id, record in read_image_records(folder, image_ids).items():
        where = str(Path(folder) / f"{image_id}.json")
        caption, phrases = field_of(record, "caption", "text", where), field_of(record, "phrases", "texts", where)
        masks = field_of(record, "pred_masks", "list", where)
        scores = field_of(record, "scores", "numbers", where, [1.0] * len(masks))
        if len(scores) != len(masks):
            raise ValueError(f"{where}: 'scores' has {len(scores)} numbers for {len(masks)} masks; expected one a mask")
        predictions[image_id] = GroundedPrediction(caption, phrases, masks, [float(s) for s in scores], where)
    return predictions


def read_image_records(folder: Path, image_ids: list) -> dict[Any, dict]:
    """`<image_id>.json` of each image that has one; some scripts write {"<image id>": {...}} into it.

    Raises ValueError if no image has a file, or a record is not an object or says that it is another image's.
    """
    folder = _predictions_folder(folder)
    records = {}
    for image_id in image_ids:
        path = folder / f"{image_id}.json"
        if not path.exists():
            continue
        record = read_json(path)
        if not isinstance(record, dict):
            raise ValueError(f"{path} holds {shown(record)}; expected an object")
        if isinstance(record.get(str(image_id)), dict):
            record = {"image_id": image_id, **record[str(image_id)]}
        said = field_of(record, "image_id", "id", str(path), image_id)
        if str(image_id) not in (str(said), Path(str(said)).stem):
            raise ValueError(f"{path}: 'image_id' is {said!r}; expected {image_id!r}, the file's name")
        records[image_id] = record
    if not records:
        raise ValueError(
            f"{folder} holds no prediction for any of the {len(image_ids)} images of the ground truth: expected "
            f"files such as {image_ids[0]}.json. Check --predictions and --split."
        )
    return records


def strangers(folder: Path, image_ids: list) -> list[str]:
    """Names of JSON files that are not a prediction for any of the images."""
    known = {*NOT_RESULTS, *(Path(f"{image_id}.json").name for image_id in image_ids)}
    return sorted(path.name for path in Path(folder).glob("*.json") if path.name not in known)


def read_results(folder: Path) -> dict[str, str]:
    """Captions by image id, as text, from all `results_<rank>.json` (where none is, all JSON lists of the folder).

    An id may come twice, as padding between processes makes it, if its captions are equal; else ValueError.
    """
    folder = _predictions_folder(folder)
    paths = sorted(folder.glob("results_*.json"))
    paths = paths or sorted(path for path in folder.glob("*.json") if path.name not in NOT_RESULTS)
    if not paths:
        raise ValueError(f"{folder} holds no results_<rank>.json. Check --predictions.")
    results: dict[str, str] = {}
    for path in paths:
        records = read_json(path)
        if not isinstance(records, list):
            raise ValueError(f"{path} holds {shown(records)}; expected a list of objects with image_id and caption")
        for k, record in enumerate(records):
            image_id = str(field_of(record, "image_id", "id", f"{path}[{k}]"))
            caption = field_of(record, "caption", "text", f"{path}[{k}]")
            if results.setdefault(image_id, caption) != caption:
                raise ValueError(f"{path}[{k}]: image {image_id!r} has another caption already; expected one an image")
    return results


def _predictions_folder(folder: Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        wrong = "is a file" if folder.exists() else "doesn't exist"
        raise ValueError(f"No predictions: {folder} {wrong}; expected a folder. Check --predictions.")
    return folder
