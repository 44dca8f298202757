"""Score a folder of predictions against a folder of ground truth: every task, both protocols."""

from collections.abc import Callable
from pathlib import Path

from glamm_mini import registry
from glamm_mini.evaluation import records
from glamm_mini.evaluation.answers import answer_accuracy
from glamm_mini.evaluation.captioning import Captions, CaptionScores, caption_scores
from glamm_mini.evaluation.gcg import fixed_grounding, official_grounding, prepare
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
    scorer = {
        "gcg": _score_grounded,
        "grounding": _score_grounded,
        "refseg": _score_refseg,
        "regcap": _score_captions,
        "caption": _score_captions,
        "vqa": _score_vqa,
    }[task]
    official, fixed, about, unseen = scorer(
        task, Path(predictions), Path(ground_truth), split, similarity=similarity, meteor=meteor, progress=progress
    )
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


def _score_grounded(task, predictions, ground_truth, split, similarity, meteor, progress) -> Scored:
    truths, coco_truth = records.read_grounded_truth(ground_truth, task, split)
    found = records.read_grounded_predictions(predictions, [truth.image_id for truth in truths])
    data = _data_name(coco_truth)
    name = similarity or (data if data in registry.names("similarity") else "bert")
    images = prepare(truths, found, get_similarity(name), progress)
    official, fixed = official_grounding(images, coco_truth), fixed_grounding(images, coco_truth)
    notes = _missing([truth.image_id for truth in truths], found)
    if task == "gcg":
        captions = Captions([truth.captions for truth in truths], [image.prediction.caption for image in images])
        scores, caption_notes = caption_scores({"all": captions}, meteor=meteor)
        words = {"meteor": scores["all"].meteor, "cider": scores["all"].cider}
        official, fixed, notes = {**official, **words}, {**fixed, **words}, notes + caption_notes
    about = _about(len(truths), len(truths) - len(found), notes, similarity=name)
    return official, fixed, about, unseen_grounding(images)


def _score_refseg(task, predictions, ground_truth, split, similarity, meteor, progress) -> Scored:
    truths = records.read_truth(ground_truth, task, split)
    ids = [truth["image_id"] for truth in truths]
    found = records.read_image_records(predictions, ids, "expressions", ("sent_id",))
    pairs, unseen, forced_items = [], [], []
    for truth in progress(truths):
        image_id, size = truth["image_id"], tuple(truth["size"])
        record = found.get(image_id) or {"expressions": []}
        said = {expression["sent_id"]: expression.get("mask") for expression in record["expressions"]}
        masks = [expression["mask"] for expression in truth["expressions"]]
        true_masks = decode_masks(masks, size, f"image {image_id}, ground truth")
        for mask, expression in zip(true_masks, truth["expressions"], strict=True):
            answered = said.get(expression["sent_id"])
            predicted = decode_masks([answered] if answered else [], size, f"image {image_id}, prediction")
            pairs.append((mask, predicted.any(0)))  # no mask at all gives an empty one
            unseen.append(bool(expression.get("unseen")))
        forced = record.get("teacher_forced")
        if forced:
            place = {expression["sent_id"]: k for k, expression in enumerate(truth["expressions"])}
            drawn = true_masks[[place[sent_id] for sent_id in forced["sent_ids"]]]
            forced_masks = decode_masks(forced["masks"], size, f"image {image_id}, teacher-forced prediction")
            forced_items.append((drawn, forced_masks))
    notes = _missing(ids, found)
    official = official_refseg(forced_items) if forced_items else {"ciou": None, "giou": None}
    if not forced_items:
        notes.append("official is null: these predictions hold no teacher_forced masks")
    elif len(forced_items) < len(truths):
        notes.append(f"official covers the {len(forced_items)} images that have teacher-forced masks")
    about = _about(len(truths), len(truths) - len(found), notes, expressions=len(pairs))
    return official, fixed_refseg(pairs), about, unseen_refseg(pairs, unseen)


def _score_captions(task, predictions, ground_truth, split, similarity, meteor, progress) -> Scored:
    truth = records.read_truth(ground_truth, task, split)
    found = records.read_results(predictions)
    references: dict = {}
    for annotation in truth["annotations"]:
        references.setdefault(annotation["image_id"], []).append(annotation["caption"])
    answered = {image_id: references[image_id] for image_id in references if image_id in found}
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
        words, unseen = _known_words(own, task, truth, references, found)
        fixed.update(words)
    notes = _missing(list(references), found) + notes
    regions = {"regions": len(references)} if task == "regcap" else {}  # officially each region is an "image"
    images = len({image["file_name"] for image in truth["images"]}) if regions else len(references)
    return _words(scores["official"]), fixed, _about(images, len(references) - len(answered), notes, **regions), unseen


def _known_words(own, task: str, truth: dict, references: dict, found: dict) -> tuple[dict, dict | None]:
    """What the record tells about the captions' words, of everything and of unseen things."""
    captions = [found.get(image_id, "") for image_id in references]
    if task == "regcap":
        regions = {annotation["image_id"]: annotation for annotation in truth["annotations"]}
        attributes = [regions[image_id].get("attributes") for image_id in references]
        if None in attributes:
            return {}, None
        marks = [bool(regions[image_id].get("unseen")) for image_id in references]
        return own.region_accuracy(attributes, captions), own.unseen_regions(attributes, captions, marks)
    present = {image["id"]: set(image.get("classes", ())) for image in truth["images"]}
    return own.mention_scores(list(references.values()), [present[image_id] for image_id in references], captions), None


def _score_vqa(task, predictions, ground_truth, split, similarity, meteor, progress) -> Scored:
    truths = records.read_truth(ground_truth, task, split)
    ids = [truth["image_id"] for truth in truths]
    found = records.read_image_records(predictions, ids, "questions", ("question_id", "text"))
    expected, answers = [], []
    for truth in progress(truths):
        record = found.get(truth["image_id"]) or {"questions": []}
        said = {question["question_id"]: question["text"] for question in record["questions"]}
        for question in truth["questions"]:
            expected.append(question["answer"])
            answers.append(said.get(question["question_id"], ""))
    notes = _missing(ids, found)
    notes.append("official is null: the official code has no score for questions")
    about = _about(len(truths), len(truths) - len(found), notes, questions=len(expected))
    return None, {"accuracy": answer_accuracy(expected, answers)}, about, None


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


def _about(images: int, missing: int, notes: list[str], **more) -> dict:
    return {**more, "images": images, "missing_predictions": missing, "notes": notes}
