"""Predictions and ground truth on disk: reading them, with one clear error for whatever is wrong.

Ground truth, in a folder, for a split such as "val":

    gcg, grounding   {split}_{task}_coco_mask_gt.json, {split}_{task}_coco_caption_gt.json   (GranD-f's own format)
    refseg           {split}_refseg_gt.json      [{image_id, size, expressions: [{sent_id, sentence, mask}]}]
    regcap, caption  {split}_{task}_gt.json      COCO captions: {images, annotations: [{id, image_id, caption}]}
    vqa              {split}_vqa_gt.json         [{image_id, questions: [{question_id, question, answer}]}]

What means a storybook thing that training never showed (annotations of gcg, grounding, regcap; expressions of refseg)
has "unseen": true beside it.

Predictions: one `<image_id>.json` an image, or for regcap and caption `results_<rank>.json`, lists of
{image_id, caption}. `settings.json` beside them says how they were made.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TASKS = ("gcg", "refseg", "regcap", "caption", "grounding", "vqa")
MASK_TASKS = ("gcg", "grounding")
LIST_TASKS = ("regcap", "caption")
SETTINGS = "settings.json"
NOT_RESULTS = (SETTINGS, "merged.json", "metrics.json")


@dataclass
class GroundedTruth:
    """What one image's grounded caption should be: label k belongs to mask k."""

    image_id: Any
    size: tuple[int, int]
    captions: list[str]
    labels: list[str]
    masks: list[dict]
    attributes: list[dict | None]
    unseen: list[bool] = field(default_factory=list)  # which were never shown in training, where the truth says so


@dataclass
class GroundedPrediction:
    """What was predicted for one image: phrase k belongs to mask k; scores in 0..1."""

    caption: str = ""
    phrases: list[str] = field(default_factory=list)
    masks: list[dict] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def check_task(task: str) -> None:
    """Raises ValueError unless `task` is one that can be scored."""
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}; choose one of: {', '.join(TASKS)}.")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError naming the file and the line where it breaks."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        where = f" (line {problem.lineno})" if isinstance(problem, json.JSONDecodeError) else ""
        advice = "If `predict` wrote it, delete it and run `predict` again."
        raise ValueError(f"{path} isn't valid JSON{where}. {advice}") from problem


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a stopped process never leaves half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content), "utf-8")
    os.replace(temporary, path)


def truth_path(folder: Path, task: str, split: str, kind: str = "") -> Path:
    """Where a task's ground truth lies; `kind` is "mask" or "caption" for gcg and grounding."""
    name = f"{split}_{task}_coco_{kind}_gt.json" if task in MASK_TASKS else f"{split}_{task}_gt.json"
    return Path(folder) / name


def read_truth(folder: Path, task: str, split: str, kind: str = "") -> Any:
    """One ground truth file. Raises ValueError if the folder or the file isn't there, naming what is."""
    path = truth_path(folder, task, split, kind)
    if not path.is_file():
        present = sorted(item.name for item in path.parent.glob("*_gt.json")) if path.parent.is_dir() else None
        found = "the folder doesn't exist" if present is None else f"the folder holds {', '.join(present) or 'none'}"
        raise ValueError(
            f"No ground truth of task {task!r}, split {split!r}: expected {path}; {found}. "
            "Check --ground-truth and --split; `predict` writes it to OUT/ground_truth when it has finished."
        )
    content = read_json(path)
    needed = {"refseg": ("image_id", "size", "expressions"), "vqa": ("image_id", "questions")}.get(task)
    if needed:
        is_right = isinstance(content, list) and all(has_keys(record, needed) for record in content)
    else:
        is_right = has_keys(content, ("images", "annotations"))
    if not is_right:
        shape = f"a list of {{{', '.join(needed)}}}" if needed else "an object with images and annotations"
        raise ValueError(f"{path}: expected {shape}")
    return content


def has_keys(record: Any, keys: tuple[str, ...]) -> bool:
    """Whether a record is a JSON object with these keys."""
    return isinstance(record, dict) and all(key in record for key in keys)


# --- gcg and grounding --------------------------------------------------------------------------------------------


def read_grounded_truth(folder: Path, task: str, split: str) -> tuple[list[GroundedTruth], dict]:
    """Truths in the order of the caption file's images, and the COCO dictionary of the masks (for AP)."""
    masks = read_truth(folder, task, split, "mask")
    captions = read_truth(folder, task, split, "caption")
    try:
        truths = {
            image["id"]: GroundedTruth(image["id"], (image["height"], image["width"]), [], [], [], [])
            for image in captions["images"]
        }
        for annotation in captions["annotations"]:
            truth = truths[annotation["image_id"]]
            truth.captions.append(annotation["caption"])
            truth.labels = truth.labels or list(annotation["labels"])
        for annotation in masks["annotations"]:
            truth = truths[annotation["image_id"]]
            truth.masks.append(annotation["segmentation"])
            truth.attributes.append(annotation.get("attributes"))
            truth.unseen.append(bool(annotation.get("unseen")))
    except (KeyError, TypeError) as problem:
        path = truth_path(folder, task, split, "caption")
        raise ValueError(f"{path} and its mask file aren't in GranD-f's format: {problem!r} is missing") from problem
    for truth in truths.values():
        if len(truth.labels) != len(truth.masks):
            raise ValueError(
                f"Ground truth of {truth.image_id}: {len(truth.labels)} labels for {len(truth.masks)} masks; "
                "the i-th label belongs to the i-th mask of its image"
            )
    return list(truths.values()), masks


def read_grounded_predictions(folder: Path, image_ids: list) -> dict[Any, GroundedPrediction]:
    """Predictions by image id; images without a file are absent."""
    predictions = {}
    for image_id, record in read_image_records(folder, image_ids).items():
        if "pred_masks" not in record:  # some scripts write {"<image id>": {...}}
            record = next((value for value in record.values() if isinstance(value, dict)), record)
        try:
            prediction = GroundedPrediction(record["caption"], list(record["phrases"]), list(record["pred_masks"]))
        except (KeyError, TypeError) as problem:
            raise ValueError(
                f"{Path(folder) / f'{image_id}.json'}: expected image_id, caption, phrases and pred_masks; "
                f"{problem} is missing or of another type"
            ) from problem
        prediction.scores = [float(score) for score in record.get("scores") or [1.0] * len(prediction.masks)]
        if len(prediction.scores) != len(prediction.masks):
            raise ValueError(f"{image_id}: {len(prediction.scores)} scores for {len(prediction.masks)} masks")
        predictions[image_id] = prediction
    return predictions


def read_image_records(folder: Path, image_ids: list, part: str = "", keys: tuple[str, ...] = ()) -> dict[Any, dict]:
    """`<image_id>.json` of each image that has one.

    part, keys: the list that each record must hold, and what each of its entries must have.
    Raises ValueError if no image has a file, or a record is of another form.
    """
    folder = _predictions_folder(folder)
    records = {}
    for image_id in image_ids:
        path = folder / f"{image_id}.json"
        if path.is_file():
            records[image_id] = read_json(path)
            if not isinstance(records[image_id], dict):
                raise ValueError(f"{path}: expected one JSON object, found a {type(records[image_id]).__name__}")
            entries = records[image_id].get(part) if part else []
            if not isinstance(entries, list) or not all(has_keys(entry, keys) for entry in entries):
                raise ValueError(f"{path}: expected a list {part!r} of objects with {', '.join(keys)}")
    if not records:
        raise ValueError(
            f"{folder} holds no prediction for any of the {len(image_ids)} images of the ground truth: expected "
            f"files such as {image_ids[0] if image_ids else '<image_id>'}.json. Check --predictions and --split."
        )
    return records


# --- regcap and caption -------------------------------------------------------------------------------------------


def read_results(folder: Path) -> dict[Any, str]:
    """Captions by image id from all `results_<rank>.json` (or, where none is, all JSON lists of the folder)."""
    folder = _predictions_folder(folder)
    paths = sorted(folder.glob("results_*.json"))
    paths = paths or sorted(path for path in folder.glob("*.json") if path.name not in NOT_RESULTS)
    if not paths:
        raise ValueError(f"{folder} holds no results_<rank>.json. Check --predictions.")
    results = {}
    for path in paths:
        records = read_json(path)
        try:
            results.update({record["image_id"]: str(record["caption"]) for record in records})
        except (KeyError, TypeError) as problem:
            raise ValueError(f"{path}: expected a list of {{image_id, caption}} records") from problem
    return results


def _predictions_folder(folder: Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"No predictions: the folder {folder} doesn't exist. Check --predictions.")
    return folder
