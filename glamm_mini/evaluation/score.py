"""Score a folder of predictions against a folder of ground truth: every task, both protocols."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from glamm_mini import registry
from glamm_mini.evaluation import records
from glamm_mini.evaluation.captioning import Captions, CaptionScores, caption_scores
from glamm_mini.evaluation.fields import by_id, field
from glamm_mini.evaluation.gcg import compare_images, fixed_grounding, official_grounding
from glamm_mini.evaluation.masks import decode_masks
from glamm_mini.evaluation.segmentation import fixed_refseg, official_refseg
from glamm_mini.evaluation.similarity import SIMILARITIES, get_similarity
from glamm_mini.evaluation.unseen import unseen_grounding, unseen_refseg

PROTOCOLS = ("both", "official", "fixed")
Scored = tuple[dict | None, dict, dict, dict | None]
"""Official figures, fixed figures, what both stand on, and the fixed figures of unseen things alone."""


def score_folder(
    task: str,
    predictions: str | Path,
    ground_truth: str | Path,
    split: str,
    protocol: str = "both",
    similarity: str | None = None,
    meteor: bool = True,
    progress: Callable = lambda items: items,
) -> dict:
    """The figures of a task.

    protocol: "official", "fixed" or "both". similarity: which phrases mean the same, see `similarity`; by default
    "storybook" where the ground truth says it is storybook's, else "bert". meteor: False saves Java's start.

    Returns `{"gcg": {"official": {...}, "fixed": {...}, "images": n, "missing_predictions": n, "notes": [...]}}`;
    for tasks other than gcg the fixed figures stand at the top level and the official ones under "official".
    Fractions are 0..1, CIDEr on its own scale, None what can't be computed (a note says why). Where the ground truth
    holds things that training never showed, "unseen" has their own fixed figures (gcg, grounding, refseg, regcap).
    Raises ValueError for an unknown task, protocol or similarity, and for missing or broken files.
    """
    records.check_task(task)
    if protocol not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}; choose one of: {', '.join(PROTOCOLS)}.")
    if similarity is not None and similarity not in SIMILARITIES:
        raise ValueError(f"Unknown similarity {similarity!r}; choose one of: {', '.join(SIMILARITIES)}.")
    predictions, ground_truth = Path(predictions), Path(ground_truth)
    if task in records.MASK_TASKS:
        scored = _score_grounded(task, predictions, ground_truth, split, similarity, meteor, progress)
    elif task in records.LIST_TASKS:
        scored = _score_captions(task, predictions, ground_truth, split, meteor)
    else:
        scored = {"refseg": _score_refseg, "vqa": _score_vqa}[task](predictions, ground_truth, split, progress)
    official, fixed, about, unseen = scored
    figures: dict = {}
    if task == "gcg":
        figures = {"official": official, "fixed": fixed}
        figures = {name: part for name, part in figures.items() if protocol in ("both", name)}
    else:
        figures = dict(fixed) if protocol != "official" else {}
        if protocol != "fixed":
            figures["official"] = official
    if unseen is not None and protocol != "official":
        figures["unseen"] = unseen
    return {task: {**figures, **about}}


def _score_grounded(
    task: str, predictions: Path, ground_truth: Path, split: str, similarity: str | None, meteor: bool,
    progress: Callable,
) -> Scored:  # fmt: skip
    truths, coco_truth = records.read_grounded_truth(ground_truth, task, split)
    ids = [truth.image_id for truth in truths]
    found = records.read_grounded_predictions(predictions, ids)
    data = _data_name(coco_truth)
    name = similarity or (data if data in registry.names("similarity") else "bert")
    images = compare_images(truths, found, get_similarity(name), progress)
    official, fixed = official_grounding(images, coco_truth), fixed_grounding(images, coco_truth)
    notes = _missing(ids, found) + _left_out(records.strangers(predictions, ids))
    if task == "gcg":
        captions = Captions([truth.captions for truth in truths], [image.prediction.caption for image in images])
        scores, caption_notes = caption_scores({"all": captions}, meteor=meteor)
        words = _words(scores["all"])
        official, fixed, notes = {**official, **words}, {**fixed, **words}, notes + caption_notes
    about = _about(len(truths), len(truths) - len(found), notes, similarity=name)
    return official, fixed, about, unseen_grounding(images)


def _score_refseg(predictions: Path, ground_truth: Path, split: str, progress: Callable) -> Scored:
    truths = records.read_truth(ground_truth, "refseg", split)
    ids = [truth["image_id"] for truth in truths]
    found = records.read_image_records(predictions, ids)
    path = records.truth_path(ground_truth, "refseg", split)
    pairs, unseen, forced_items = [], [], []
    for k, truth in enumerate(progress(truths)):
        where, file = f"{path}[{k}]", str(predictions / f"{truth['image_id']}.json")
        size = tuple(field(truth, "size", "size", where))
        asked = by_id(field(truth, "expressions", "list", where), "sent_id", f"{where}: expressions")
        true_masks = decode_masks(
            [field(expression, "mask", "object", f"{where}: expression {key!r}") for key, expression in asked.items()],
            size, f"{where}: the expressions' masks",
        )  # fmt: skip
        record = found.get(truth["image_id"], {"expressions": []})
        said = _answers_to(asked, record, "expressions", "sent_id", file)
        for mask, (key, expression) in zip(true_masks, asked.items(), strict=True):
            answered = field(said.get(key, {}), "mask", "object", f"{file}: expression {key!r}", None)
            predicted = decode_masks([answered] if answered else [], size, f"{file}: expression {key!r}, mask")
            pairs.append((mask, predicted.any(0)))  # no mask at all gives an empty one
            unseen.append(bool(expression.get("unseen")))
        forced = field(record, "teacher_forced", "object", file, None)
        if forced:
            forced_items.append(_teacher_forced(forced, list(asked), true_masks, f"{file}: teacher_forced"))
    notes = _missing(ids, found) + _left_out(records.strangers(predictions, ids))
    official = official_refseg(forced_items) if forced_items else {"ciou": None, "giou": None}
    if not forced_items:
        notes.append("official is null: these predictions hold no teacher_forced masks")
    elif len(forced_items) < len(truths):
        notes.append(f"official covers the {len(forced_items)} images that have teacher-forced masks")
    about = _about(len(truths), len(truths) - len(found), notes, expressions=len(pairs))
    return official, fixed_refseg(pairs), about, unseen_refseg(pairs, unseen)


def _answers_to(asked: dict, record: dict, part: str, name: str, file: str) -> dict[str, dict]:
    """The entries of a prediction's list by id. Raises ValueError for an id that the truth does not ask for."""
    said = by_id(field(record, part, "list", file), name, f"{file}: {part}")
    unknown = [key for key in said if key not in asked]
    if unknown:
        raise ValueError(f"{file}: {part} has {name} {unknown[0]!r}; expected one of {', '.join(asked) or 'none'}")
    return said


def _teacher_forced(forced: dict, asked: list[str], true_masks: np.ndarray, where: str) -> tuple:
    """(true, predicted) masks of the expressions that the official variant drew."""
    drawn = [str(sent_id) for sent_id in field(forced, "sent_ids", "ids", where)]
    unknown = [key for key in drawn if key not in asked]
    if unknown:
        raise ValueError(f"{where}: 'sent_ids' holds {unknown[0]!r}; expected some of {', '.join(asked)}")
    masks = decode_masks(field(forced, "masks", "list", where), true_masks.shape[1:], f"{where}: masks")
    return true_masks[[asked.index(key) for key in drawn]], masks


def _score_captions(task: str, predictions: Path, ground_truth: Path, split: str, meteor: bool) -> Scored:
    truth = records.read_truth(ground_truth, task, split)
    path = records.truth_path(ground_truth, task, split)
    references: dict[str, list[str]] = {}
    for k, annotation in enumerate(truth["annotations"]):
        caption = field(annotation, "caption", "text", f"{path}: annotations[{k}]")
        references.setdefault(str(annotation["image_id"]), []).append(caption)
    found = records.read_results(predictions)
    answered = {image_id: texts for image_id, texts in references.items() if image_id in found}
    if not answered:
        raise ValueError(f"{predictions} holds no caption for any image of the ground truth; check --split.")
    # The official script scores what was answered; a missing caption is an empty one in the fixed protocol.
    corpora = {
        "official": Captions(list(answered.values()), [found[image_id] for image_id in answered]),
        "fixed": Captions(list(references.values()), [found.get(image_id, "") for image_id in references]),
    }
    scores, notes = caption_scores(corpora, meteor=meteor)
    fixed, unseen = _words(scores["fixed"]), None
    own = _own_scores(_data_name(truth))
    if own:
        words, unseen = _known_words(own, task, truth, references, found, str(path))
        fixed.update(words)
    surplus = [image_id for image_id in found if image_id not in references]
    notes = _missing(list(references), found) + _left_out(surplus) + notes
    regions = {"regions": len(references)} if task == "regcap" else {}  # officially each region is an "image"
    images = len({image.get("file_name", image["id"]) for image in truth["images"]}) if regions else len(references)
    about = _about(images, len(references) - len(answered), notes, **regions)
    return _words(scores["official"]), fixed, about, unseen


def _known_words(own, task: str, truth: dict, references: dict, found: dict, path: str) -> tuple[dict, dict | None]:
    """What the record tells about the captions' words, of everything and of unseen things."""
    captions = [found.get(image_id, "") for image_id in references]
    if task == "regcap":
        regions = {str(annotation["image_id"]): annotation for annotation in truth["annotations"]}
        known = [field(regions[k], "attributes", "object", f"{path}: region {k}", None) for k in references]
        if None in known:
            return {}, None
        for image_id, attributes in zip(references, known, strict=True):
            field(attributes, "cls", "text", f"{path}: region {image_id}, attributes")
        marks = [bool(regions[image_id].get("unseen")) for image_id in references]
        return own.region_accuracy(known, captions), own.unseen_regions(known, captions, marks)
    present = {
        str(image["id"]): set(field(image, "classes", "texts", f"{path}: image {image['id']}", []))
        for image in truth["images"]
    }
    return own.mention_scores(list(references.values()), [present[image_id] for image_id in references], captions), None


def _score_vqa(predictions: Path, ground_truth: Path, split: str, progress: Callable) -> Scored:
    truths = records.read_truth(ground_truth, "vqa", split)
    ids = [truth["image_id"] for truth in truths]
    found = records.read_image_records(predictions, ids)
    path = records.truth_path(ground_truth, "vqa", split)
    expected, answers = [], []
    for k, truth in enumerate(progress(truths)):
        where, file = f"{path}[{k}]", str(predictions / f"{truth['image_id']}.json")
        asked = by_id(field(truth, "questions", "list", where), "question_id", f"{where}: questions")
        record = found.get(truth["image_id"], {"questions": []})
        said = _answers_to(asked, record, "questions", "question_id", file)
        for key, question in asked.items():
            expected.append(field(question, "answer", "text", f"{where}: question {key!r}"))
            answers.append(field(said[key], "text", "text", f"{file}: question {key!r}") if key in said else "")
    notes = _missing(ids, found) + _left_out(records.strangers(predictions, ids))
    notes.append("official is null: the official code has no score for questions")
    about = _about(len(truths), len(truths) - len(found), notes, questions=len(expected))
    return None, {"accuracy": answer_accuracy(expected, answers)}, about, None


# --- short answers ------------------------------------------------------------------------------------------------

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, single blanks, number words as digits: " Three!" and "3" are equal."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(DIGITS.get(word, word) for word in words)


def answer_accuracy(truths: list[str], answers: list[str]) -> float | None:
    """Share of answers that equal the truth after `normalize_answer`; None without questions."""
    if not truths:
        return None
    pairs = zip(truths, answers, strict=True)
    return sum(normalize_answer(truth) == normalize_answer(answer) for truth, answer in pairs) / len(truths)


# --- what is told beside the figures ------------------------------------------------------------------------------


def _words(scores: CaptionScores) -> dict:
    return {"meteor": scores.meteor, "cider": scores.cider}


def _data_name(truth: dict) -> str:
    return str((truth.get("info") or {}).get("data"))


def _own_scores(data: str):
    """The module of figures that this data set registered, or None."""
    return registry.find("scores", data) if data in registry.names("scores") else None


def _missing(image_ids: list, found: dict) -> list[str]:
    missing = [image_id for image_id in image_ids if image_id not in found]
    if not missing:
        return []
    some = ", ".join(str(image_id) for image_id in missing[:3]) + (" ..." if len(missing) > 3 else "")
    return [f"{len(missing)} of {len(image_ids)} predictions are missing and count as empty ({some})"]


def _left_out(surplus: list[str]) -> list[str]:
    some = ", ".join(surplus[:3]) + (" ..." if len(surplus) > 3 else "")
    return [f"{len(surplus)} predictions belong to no image of the ground truth ({some})"] if surplus else []


def _about(images: int, missing: int, notes: list[str], **more) -> dict:
    return {**more, "images": images, "missing_predictions": missing, "notes": notes}
