"""From samples to ground truth files, in the formats that `records` describes."""

from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from glamm_mini.data.sample import Sample, Turn
from glamm_mini.evaluation.fields import check_choice
from glamm_mini.evaluation.records import LIST_TASKS, MASK_TASKS, TASKS, truth_path, write_json
from glamm_mini.processing.images import encode_mask
from glamm_mini.processing.tags import parse_grounded

ATTRIBUTES = ("cls", "colour", "pattern", "size", "count")


class TruthWriter:
    """Collects the truth of one sample after another; `write` puts the files of a task into a folder.

    data: the name of the data set. What its samples know beyond the words (`extras`: attributes, classes, which things
    training never shows) goes into the files.
    """

    def __init__(self, task: str, split: str, data: str = "storybook"):
        check_choice("task", task, TASKS)
        self.task, self.split, self.data = task, split, data
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.captions: list[dict] = []

    def add(self, sample: Sample) -> None:
        """Take in one sample's truth."""
        turns, image_id = single_turns(sample), sample.image_id
        captions = [parse_grounded(turn.answer).caption for turn in turns]
        if self.task in MASK_TASKS:
            self._add_image(sample, image_id)
            self._add_grounded(sample, turns[0])
        elif self.task == "refseg":
            said = expressions(sample)
            for k, expression in enumerate(said):
                expression |= _marks(facts_of(sample, k))
            self.images.append({"image_id": image_id, "size": list(sample.image.shape[:2]), "expressions": said})
        elif self.task == "regcap":
            for k, turn in enumerate(turns):
                self._add_region(sample, turn, captions[k], facts_of(sample, k).get("thing"))
        elif self.task == "caption":
            self._add_image(sample, image_id, classes=classes_present(sample))
            for caption in captions:
                self.annotations.append({"id": len(self.annotations) + 1, "image_id": image_id, "caption": caption})
        else:
            questions = [
                {"question_id": k, "question": turn.question, "answer": captions[k]} | _marks(facts_of(sample, k))
                for k, turn in enumerate(turns)
            ]
            self.images.append({"image_id": image_id, "questions": questions})

    def write(self, folder: str | Path) -> None:
        """Write the truth of all samples taken in."""
        files: dict[str, Any] = {"": self.images}
        coco = {"info": {"data": self.data}, "images": self.images, "annotations": self.annotations}
        if self.task in MASK_TASKS:
            files = {"coco_mask": coco | {"categories": [{"id": 1, "name": "object"}]}}
            files["coco_caption"] = coco | {"annotations": self.captions}
        elif self.task in LIST_TASKS:
            files = {"": coco}
        for kind, content in files.items():
            write_json(truth_path(folder, self.task, self.split, kind), content)

    def _add_image(self, sample: Sample, image_id: Any, **more) -> None:
        height, width = sample.image.shape[:2]
        record = {"id": image_id, "file_name": f"{sample.image_id}.png", "height": height, "width": width}
        self.images.append(record | more)

    def _add_grounded(self, sample: Sample, turn: Turn) -> None:
        answer = parse_grounded(turn.answer)
        labels = [phrase.text for phrase in answer.phrases]
        if len(labels) != len(turn.masks):
            raise ValueError(f"{sample.image_id}: {len(labels)} [SEG] in the answer, {len(turn.masks)} masks")
        known = {"image_id": sample.image_id, "caption": answer.caption, "labels": labels}
        self.captions.append({"id": len(self.captions) + 1, **known})
        facts = facts_of(sample, 0).get("phrases") or [None] * len(labels)
        for mask, thing in zip(turn.masks, facts, strict=True):
            record = encode_mask(mask)
            place = {"area": float(mask.sum()), "bbox": coco_mask.toBbox(record).tolist()}
            self._annotate(sample.image_id, thing, segmentation=record, **place)

    def _add_region(self, sample: Sample, turn: Turn, caption: str, thing: int | None) -> None:
        number = len(self.annotations) + 1  # the official script needs annotation id == image id: one image a region
        self._add_image(sample, number)
        x0, y0, x1, y1 = turn.boxes[0].tolist()
        place = {"area": (x1 - x0) * (y1 - y0), "bbox": [x0, y0, x1 - x0, y1 - y0]}
        known = None if thing is None else sample.extras["things"][thing]
        self._annotate(number, known, caption=caption, **place)

    def _annotate(self, image_id: Any, thing: dict | None, **more) -> None:
        """An annotation with what the record knows of the thing, whatever its words leave open."""
        annotation = {"id": len(self.annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0, **more}
        if thing:
            annotation["attributes"] = {key: thing[key] for key in ATTRIBUTES if key in thing}
            if thing.get("unseen"):
                annotation["unseen"] = True
        self.annotations.append(annotation)


def single_turns(sample: Sample) -> list[Turn]:
    """The one turn of each conversation. Raises ValueError if one has more: scoring asks single questions."""
    if sample.image is None or any(len(conversation) != 1 for conversation in sample.conversations):
        raise ValueError(f"{sample.image_id}: scoring needs an image and conversations of one turn")
    return [conversation[0] for conversation in sample.conversations]


def expressions(sample: Sample) -> list[dict]:
    """The truth of each expression: {sent_id, sentence, mask}; the mask is the union of the answer's masks."""
    return [
        {
            "sent_id": k,
            "sentence": facts_of(sample, k).get("expression") or turn.question,
            "mask": encode_mask(turn.masks.any(0)),
        }
        for k, turn in enumerate(single_turns(sample))
    ]


def facts_of(sample: Sample, conversation: int) -> dict:
    """What the data set keeps beside a conversation for scoring; empty where it keeps nothing."""
    truths = sample.extras.get("truth")
    return truths[conversation] if truths else {}


def _marks(facts: dict) -> dict:
    """Of a question or an expression: its kind, that training never shows what it means, and what else is a right
    answer; where they are known."""
    return {name: facts[name] for name in ("kind", "unseen", "also") if facts.get(name)}


def classes_present(sample: Sample) -> list[str]:
    """Canonical classes of the visible things and kinds of stuff in the picture, as far as the record tells."""
    things = {thing["cls"] for thing in sample.extras.get("things", ()) if thing.get("visible", True)}
    return sorted(things | set(sample.extras.get("stuff", ())))
