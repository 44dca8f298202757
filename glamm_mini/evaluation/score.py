"""Score a folder of predictions against a folder of ground truth: every task, both protocols."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from glamm_mini import registry
from glamm_mini.evaluation import records
from glamm_mini.evaluation.captioning import Captions, caption_scores
from glamm_mini.evaluation.fields import by_id, check_choice, checked
from glamm_mini.evaluation.gcg import compare_images, fixed_grounding, official_grounding, unseen_grounding
from glamm_mini.evaluation.masks import decode_masks
from glamm_mini.evaluation.segmentation import (
    ABSENT,
    fixed_refseg,
    official_refseg,
    refseg_absent,
    refseg_by_kind,
    unseen_refseg,
)
from glamm_mini.evaluation.similarity import SIMILARITIES, get_similarity
from glamm_mini.paths import folder_path

PROTOCOLS = ("both", "official", "fixed")
Scored = tuple[dict | None, dict, dict, dict | None]
"""Official figures, fixed figures, what both stand on, and the fixed figures of unseen things alone."""
Place = tuple[str, Path, Path, str]
"""Task, folder of the predictions, folder of the ground truth, split."""


def score_folder(
    task: str, predictions: str | Path, ground_truth: str | Path, split: str, protocol: str = "both",
    similarity: str | None = None, meteor: bool = True, progress: Callable = lambda items: items,
) -> dict:  # fmt: skip
    """The figures of a task.

    protocol: "official", "fixed" or "both". similarity: which phrases mean the same, see `similarity`; by default
    "storybook" where the ground truth says it is storybook's, else "bert". meteor: False saves Java's start.

    Returns `{"gcg": {"official": {...}, "fixed": {...}, "images": n, "missing_predictions": n, "notes": [...]}}`;
    for tasks other than gcg the fixed figures stand at the top level and the official ones under "official".
    Fractions are 0..1, CIDEr on its own scale, None what can't be computed (a note says why). Where the ground truth
    holds things that training never showed, "unseen" has their own fixed figures (gcg, grounding, refseg, regcap);
    where it says of which kind a question or an expression is, "kinds" has the fixed figures of each (vqa, refseg).
    Expressions of the kind "absent", which fit nothing, count in `false_alarms` and under "kinds" alone.
    Raises ValueError for an unknown task, protocol or similarity, and for missing or broken files, TypeError for what
    is no path or, as `progress`, no function.
    """
    check_choice("task", task, records.TASKS)
    check_choice("protocol", protocol, PROTOCOLS)
    if similarity is not None:
        check_choice("similarity", similarity, SIMILARITIES)
    if not callable(progress):
        raise TypeError(f"progress is {progress!r}; expected a function that gives on what it is given, as tqdm does")
    progress = partial(_given_on, progress)
    place = (task, folder_path(predictions, "predictions"), folder_path(ground_truth, "ground_truth"), split)
    if task in records.MASK_TASKS:
        scored = _score_grounded(place, similarity, meteor, progress)
    elif task in records.LIST_TASKS:
        scored = _score_captions(place, meteor)
    else:
        scored = {"refseg": _score_refseg, "vqa": _score_vqa}[task](place, progress)
    official, fixed, about, unseen = scored
    figures = {"official": official} if protocol != "fixed" else {}
    figures |= {"fixed": fixed} if protocol != "official" else {}
    if task != "gcg":
        figures = {**figures.pop("fixed", {}), **figures}
    if unseen is not None and protocol != "official":
        figures["unseen"] = unseen
    if protocol == "official" or not about.get("kinds"):
        about.pop("kinds", None)
    return {task: {**figures, **about}}


def _given_on(progress: Callable, items: list) -> Iterator:
    """The items, as `progress` goes through them. Raises ValueError if it leaves some out."""
    shown, left = progress(items), iter(items)
    for _ in shown if isinstance(shown, Iterable) else ():
        yield from islice(left, 1)
    if lost := len(list(left)):
        raise ValueError(f"progress did not give on {lost} of {len(items)} images; expected all of them, as tqdm does")


def _score_grounded(place: Place, similarity: str | None, meteor: bool, progress: Callable) -> Scored:
    task, predictions, ground_truth, split = place
    truths, coco_truth = records.read_grounded_truth(ground_truth, task, split)
    ids = [truth.image_id for truth in truths]
    found = records.read_grounded_predictions(predictions, ids)
    name = similarity or _registered("similarity", coco_truth) or "bert"
    images = compare_images(truths, found, get_similarity(name), progress)
    official, fixed = official_grounding(images, coco_truth), fixed_grounding(images, coco_truth)
    about = {"similarity": name, **_about(ids, found, records.strangers(predictions, ids))}
    if task == "gcg":
        lacking = [truth.where for truth in truths if not truth.captions]
        if lacking:
            raise ValueError(f"{lacking[0]} has no caption in the caption file; answers are scored against one")
        captions = Captions([truth.captions for truth in truths], [image.prediction.caption for image in images])
        scores, notes = caption_scores({"all": captions}, meteor=meteor)
        official, fixed = official | scores["all"].total(), fixed | scores["all"].total()
        about["notes"] += notes
    return official, fixed, about, unseen_grounding(images)


def _score_captions(place: Place, meteor: bool) -> Scored:
    task, predictions, ground_truth, split = place
    truth, path = records.read_truth(ground_truth, task, split)
    references: dict[str, list[str]] = {}
    for annotation in truth["annotations"]:
        references.setdefault(str(annotation["image_id"]), []).append(annotation["caption"])
    found = records.read_results(predictions)
    answered = [image_id for image_id in references if image_id in found]
    if not answered:
        raise ValueError(f"{predictions} holds no caption for any image of the ground truth; check --split.")
    # The official script scores what was answered; a missing caption is an empty one in the fixed protocol.
    said = [found.get(image_id, "") for image_id in references]
    official = Captions([references[k] for k in answered], [found[k] for k in answered])
    fixed = Captions(list(references.values()), said)
    scores, notes = caption_scores({"official": official, "fixed": fixed}, meteor=meteor)
    known, unseen = _known_words(task, truth, references, said, path)
    about = _about(list(references), found, [image_id for image_id in found if image_id not in references])
    about["notes"] += notes
    if task == "regcap":  # officially each region is an "image"
        images = {image.get("file_name", image["id"]) for image in truth["images"]}
        about = {"regions": len(references), **about, "images": len(images)}
    return scores["official"].total(), scores["fixed"].total() | known, about, unseen


def _known_words(task: str, truth: dict, references: dict, said: list[str], path: str) -> tuple[dict, dict | None]:
    """What the data set's record tells about the captions' words, of everything and of unseen things."""
    name = _registered("scores", truth)
    if name is None:
        return {}, None
    own = registry.find("scores", name)
    if task == "caption":
        checked(truth, {"images": [{"classes?": "texts"}]}, path)
        classes = {str(image["id"]): set(image.get("classes") or ()) for image in truth["images"]}
        return own.mention_scores(list(references.values()), [classes[k] for k in references], said), None
    checked(truth, {"annotations": [{"attributes?": {"cls": "text"}}]}, path)
    regions = {str(annotation["image_id"]): annotation for annotation in truth["annotations"]}
    known = [regions[k].get("attributes") for k in references]
    if None in known:
        return {}, None
    marks = [bool(regions[k].get("unseen")) for k in references]
    return own.region_accuracy(known, said), own.unseen_regions(known, said, marks)


class _Asked(NamedTuple):
    """An image: what both files hold about it, and by id what was asked and what was said, {} where nothing was."""

    truth: dict
    record: dict
    asked: dict[str, tuple[dict, dict]]
    where: str
    file: str


def _read_asked(place: Place, part: str, name: str, form: dict) -> tuple[list[_Asked], dict]:
    """Every image of refseg or vqa, and what is told beside the figures."""
    task, predictions, ground_truth, split = place
    truths, path = records.read_truth(ground_truth, task, split)
    ids = [truth["image_id"] for truth in truths]
    found = records.read_image_records(predictions, ids, form)
    images = []
    for k, truth in enumerate(truths):
        record, where, file = found.get(ids[k], {part: []}), f"{path}[{k}]", str(predictions / f"{ids[k]}.json")
        asked = by_id(truth[part], name, f"{where}: {part}")
        said = by_id(record[part], name, f"{file}: {part}")
        for key in said:
            check_choice(f"{name!r} in {file}", key, asked)
        images.append(_Asked(truth, record, {key: (asked[key], said.get(key, {})) for key in asked}, where, file))
    return images, _about(ids, found, records.strangers(predictions, ids))


def _score_refseg(place: Place, progress: Callable) -> Scored:
    images, about = _read_asked(place, "expressions", "sent_id", records.EXPRESSIONS)
    pairs, unseen, kinds, drawn_items = [], [], [], []
    for truth, record, asked, where, file in progress(images):
        size = tuple(truth["size"])
        true_masks = decode_masks([one["mask"] for one, _ in asked.values()], size, f"{where}: the expressions' masks")
        for mask, (key, (expression, answer)) in zip(true_masks, asked.items(), strict=True):
            answered = [answer["mask"]] if answer.get("mask") else []
            # No mask at all gives an empty one.
            pairs.append((mask, decode_masks(answered, size, f"{file}: expression {key!r}, mask").any(0)))
            unseen.append(bool(expression.get("unseen")))
            kinds.append(expression.get("kind"))
            if kinds[-1] == ABSENT and mask.any():
                raise ValueError(f"{where}: expression {key!r} is of kind {ABSENT!r}, but its mask is not empty")
        if forced := record.get("teacher_forced"):  # masks of the expressions that the official variant drew
            drawn = [str(sent_id) for sent_id in forced["sent_ids"]]
            for key in drawn:
                check_choice(f"id among 'sent_ids' in {file}: teacher_forced", key, asked)
            masks = decode_masks(forced["masks"], size, f"{file}: teacher_forced: masks")
            drawn_items.append((true_masks[[list(asked).index(key) for key in drawn]], masks))
    official = official_refseg(drawn_items) if drawn_items else {"ciou": None, "giou": None}
    if not drawn_items:
        about["notes"].append("official is null: these predictions hold no teacher_forced masks")
    elif len(drawn_items) < len(images):
        about["notes"].append(f"official covers the {len(drawn_items)} images that have teacher-forced masks")
    about = {"expressions": len(pairs), **about, "kinds": refseg_by_kind(pairs, kinds)}
    absent = refseg_absent(pairs, kinds)
    meant = [k for k, kind in enumerate(kinds) if kind != ABSENT]
    pairs, unseen = [pairs[k] for k in meant], [unseen[k] for k in meant]
    return official, {**fixed_refseg(pairs), **absent}, about, unseen_refseg(pairs, unseen)


def _score_vqa(place: Place, progress: Callable) -> Scored:
    images, about = _read_asked(place, "questions", "question_id", records.QUESTIONS)
    entries = [entry for image in progress(images) for entry in image.asked.values()]
    expected = [[one["answer"], *one.get("also", ())] for one, _ in entries]
    answers = [said.get("text", "") for _, said in entries]
    about["notes"].append("official is null: the official code has no score for questions")
    kinds, about["kinds"] = [one.get("kind") for one, _ in entries], {}
    for kind in sorted({*kinds} - {None}):
        own = [k for k, name in enumerate(kinds) if name == kind]
        accuracy = answer_accuracy([expected[k] for k in own], [answers[k] for k in own])
        about["kinds"][kind] = {"accuracy": accuracy, "questions": len(own)}
    return None, {"accuracy": answer_accuracy(expected, answers)}, {"questions": len(expected), **about}, None


NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, single blanks, number words as digits: " Three!" and "3" are equal."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


def answer_accuracy(truths: list[list[str]], answers: list[str]) -> float | None:
    """Share of answers that equal one of their right ones after `normalize_answer`; None without questions."""
    pairs = zip(truths, answers, strict=True)
    right = [normalize_answer(answer) in map(normalize_answer, texts) for texts, answer in pairs]
    return sum(right) / len(right) if right else None


def _registered(kind: str, truth: dict) -> str | None:
    """The data set that a ground truth names, if it brings its own `kind` of scoring, see `registry`."""
    data = (truth.get("info") or {}).get("data")
    return data if data in registry.names(kind) else None


def _about(ids: list, found: dict, surplus: list[str]) -> dict:
    """What figures stand on; the ids are those of the ground truth."""
    missing = [image_id for image_id in ids if image_id not in found]
    notes = [
        f"{len(some)} {words} ({', '.join(map(str, some[:3]))}{' ...' if len(some) > 3 else ''})"
        for some, words in (
            (missing, f"of {len(ids)} predictions are missing and count as empty"),
            (surplus, "predictions belong to no image of the ground truth"),
        )
        if some
    ]
    return {"images": len(ids), "missing_predictions": len(missing), "notes": notes}
