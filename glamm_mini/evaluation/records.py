"""Predictions and ground truth on disk: their formats, and reading them, with one clear error for what is wrong.

Ground truth: `{split}_{task}_gt.json`, or for gcg and grounding GranD-f's own `{split}_{task}_coco_mask_gt.json` and
`{split}_{task}_coco_caption_gt.json`. An annotation (gcg, grounding, regcap) or expression (refseg) of a thing that
training never showed has "unseen": true.

Predictions: one `<image_id>.json` an image, or for regcap and caption `results_<rank>.json`. `settings.json` beside
them says how they were made.

Rules: ids are whole numbers or texts and are compared as texts. Masks are COCO run lengths of the image's size, or, in
refseg, null for none. Without "scores" every mask has 1.0. More phrases than masks, or fewer, are taken as they are. An
image without a prediction counts as empty and is reported, as are files that belong to no image.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glamm_mini.evaluation.fields import by_id, checked
from glamm_mini.paths import write_whole

TASKS = ("gcg", "refseg", "regcap", "caption", "grounding", "vqa")
MASK_TASKS = ("gcg", "grounding")
LIST_TASKS = ("regcap", "caption")
SETTINGS = "settings.json"
NOT_RESULTS = (SETTINGS, "merged.json", "metrics.json")

# The forms of all files, for `checked`: of ground truth by task or kind, then of predictions.
IMAGE, SIDES = {"id": "id"}, {"height": "whole", "width": "whole"}
CAPTION = {"image_id": "id", "caption": "text"}
MARKS = {"iscrowd?": "mark", "unseen?": "mark"}
MASK = {"image_id": "id", "segmentation": "object", "area?": "area", "attributes?": "object", **MARKS}
EXPRESSION = {"sent_id": "id", "mask": "object", "unseen?": "mark", "kind?": "text"}
QUESTION = {"question_id": "id", "answer": "text", "also?": "texts", "kind?": "text"}
COCO = {"info?": "object", "images": [IMAGE], "annotations": [CAPTION]}
TRUTHS: dict[str, Any] = {
    "coco_mask": COCO | {"annotations": [MASK]},
    "coco_caption": COCO | {"images": [IMAGE | SIDES], "annotations": [CAPTION | {"labels?": "texts"}]},
    "regcap": COCO | {"annotations": [CAPTION | {"unseen?": "mark"}]},
    "caption": COCO,
    "refseg": [{"image_id": "id", "size": "size", "expressions": [EXPRESSION]}],
    "vqa": [{"image_id": "id", "questions": [QUESTION]}],
}
GROUNDED = {"caption": "text", "phrases": "texts", "pred_masks": "list", "scores?": "numbers"}
FORCED = {"sent_ids": "ids", "masks": "list"}
EXPRESSIONS = {"expressions": [{"sent_id": "id", "mask?": "object"}], "teacher_forced?": FORCED}
QUESTIONS = {"questions": [{"question_id": "id", "text": "text"}]}


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
    write_whole(path, json.dumps(content))


def truth_path(folder: Path, task: str, split: str, kind: str = "") -> Path:
    """Where a task's ground truth lies; `kind` is "coco_mask" or "coco_caption" for gcg and grounding."""
    return Path(folder) / f"{split}_{task}_{kind and kind + '_'}gt.json"


def read_truth(folder: Path, task: str, split: str, kind: str = "") -> tuple[Any, str]:
    """One ground truth file, of the form in TRUTHS, and its path.

    Raises ValueError if the file isn't there, naming what is, for another form, and for ids that are there twice, lead
    out of the folder or belong to no image.
    """
    path = truth_path(folder, task, split, kind)
    if not path.is_file():
        present = ", ".join(sorted(item.name for item in path.parent.glob("*_gt.json")))
        raise ValueError(
            f"No ground truth of task {task!r}, split {split!r}: expected {path}; there is {present or 'no other'}. "
            "Check --ground-truth and --split; `predict` writes it to OUT/ground_truth when it has finished."
        )
    content, where = checked(read_json(path), TRUTHS[kind or task], str(path)), str(path)
    is_list = isinstance(content, list)
    images = by_id(content, "image_id", where) if is_list else by_id(content["images"], "id", f"{where}: images")
    if not images:
        raise ValueError(f"{where} holds no image; there is nothing to score")
    for image_id in images:
        if Path(image_id).is_absolute() or {"..", "~"} & set(image_id.replace("\\", "/").split("/")):
            raise ValueError(f"{where}: the image id {image_id!r} would lead out of the folder of predictions")
    for k, annotation in enumerate(() if is_list else content["annotations"]):
        if str(annotation["image_id"]) not in images:
            wrong = f"'image_id' {annotation['image_id']!r} is not an id of its images"
            raise ValueError(f"{where}: annotations[{k}]: {wrong}")
    return content, where


def read_grounded_truth(folder: Path, task: str, split: str) -> tuple[list[GroundedTruth], dict]:
    """Truths in the order of the caption file's images, and the COCO dictionary of the masks (for AP)."""
    masks, mask_path = read_truth(folder, task, split, "coco_mask")
    captions, caption_path = read_truth(folder, task, split, "coco_caption")
    truths: dict[str, GroundedTruth] = {}
    for k, image in enumerate(captions["images"]):
        size = image["height"], image["width"]
        checked({"size": size}, {"size": "size"}, f"{caption_path}: images[{k}]")
        truths[str(image["id"])] = GroundedTruth(image["id"], size, where=f"{mask_path}: image {image['id']}")
    kept = [image["id"] for image in masks["images"]]
    if len(set(map(type, kept))) > 1 or set(map(str, kept)) != set(truths):
        raise ValueError(f"{mask_path} and {caption_path} name different images; both need the same ids, of one type")
    for annotation in captions["annotations"]:
        truth = truths[str(annotation["image_id"])]
        truth.captions.append(annotation["caption"])
        truth.labels = truth.labels or annotation.get("labels") or []
    for annotation in masks["annotations"]:
        truth = truths[str(annotation["image_id"])]
        truth.masks.append(annotation["segmentation"])
        truth.attributes.append(annotation.get("attributes"))
        truth.unseen.append(bool(annotation.get("unseen")))
    for truth in truths.values():
        if len(truth.labels) != len(truth.masks):
            raise ValueError(
                f"{truth.where} has {len(truth.masks)} masks, {caption_path} has {len(truth.labels)} labels for it; "
                "the i-th label belongs to the i-th mask of its image"
            )
    return list(truths.values()), masks


def read_grounded_predictions(folder: Path, image_ids: list) -> dict[Any, GroundedPrediction]:
    """Predictions by image id; images without a file are absent."""
    predictions = {}
    for image_id, record in read_image_records(folder, image_ids, GROUNDED).items():
        where, masks, scores = f"{Path(folder) / str(image_id)}.json", record["pred_masks"], record.get("scores")
        scores = [1.0] * len(masks) if scores is None else [float(score) for score in scores]
        if len(scores) != len(masks):
            raise ValueError(f"{where}: 'scores' has {len(scores)} numbers for {len(masks)} masks; expected one a mask")
        predictions[image_id] = GroundedPrediction(record["caption"], record["phrases"], masks, scores, where)
    return predictions


def read_image_records(folder: Path, image_ids: list, form: dict) -> dict[Any, dict]:
    """`<image_id>.json` of each image that has one; some scripts write {"<image id>": {...}} into it.

    Raises ValueError if no image has a file, or a record has another form or says that it is another image's.
    """
    folder, records = _predictions_folder(folder), {}
    for image_id in image_ids:
        path = folder / f"{image_id}.json"
        if not path.exists():
            continue
        record = read_json(path)
        if isinstance(record, dict) and isinstance(record.get(str(image_id)), dict):
            record = record[str(image_id)]
        records[image_id] = checked(record, {"image_id?": "id", **form}, str(path))
        said = record.get("image_id", image_id)
        if said is not None and str(image_id) not in (str(said), Path(str(said)).stem):
            raise ValueError(f"{path}: 'image_id' is {said!r}; expected {image_id!r}, the file's name")
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
    paths = sorted(folder.glob("results_*.json")) or [folder / name for name in strangers(folder, [])]
    if not paths:
        raise ValueError(f"{folder} holds no results_<rank>.json. Check --predictions.")
    results: dict[str, str] = {}
    for path in paths:
        for k, record in enumerate(checked(read_json(path), [CAPTION], str(path))):
            image_id, caption = str(record["image_id"]), record["caption"]
            if results.setdefault(image_id, caption) != caption:
                raise ValueError(f"{path}[{k}]: image {image_id!r} has another caption already; expected one an image")
    return results


def _predictions_folder(folder: Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        wrong = "is a file" if folder.exists() else "doesn't exist"
        raise ValueError(f"No predictions: {folder} {wrong}; expected a folder. Check --predictions.")
    return folder
