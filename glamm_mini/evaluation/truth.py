"""From samples to ground truth files, in the formats that `records` describes."""

from pathlib import Path

from pycocotools import mask as coco_mask

from glamm_mini.data.sample import Sample, Turn
from glamm_mini.evaluation.records import MASK_TASKS, check_task, truth_path, write_json
from glamm_mini.processing.images import encode_mask
from glamm_mini.processing.tags import parse_grounded

ATTRIBUTES = ("cls", "colour", "pattern", "size")


class TruthWriter:
    """Collects the truth of one sample after another; `write` puts the files of a task into a folder.

    data: the name of the data set. What its samples know beyond the words (`extras`: attributes, classes, which things
    training never shows) goes into the files.
    """

    def __init__(self, task: str, split: str, data: str = "storybook"):
        check_task(task)
        self.task, self.split, self.data = task, split, data
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.captions: list[dict] = []

    def add(self, sample: Sample) -> None:
        """Take in one sample's truth."""
        height, width = sample.image.shape[:2]
        turns = single_turns(sample)
        if self.task in MASK_TASKS:
            self._add_image(sample, height, width)
            self._add_grounded(sample, turns[0])
        elif self.task == "refseg":
            said = self._marked(sample, expressions(sample))
            self.images.append({"image_id": sample.image_id, "size": [height, width], "expressions": said})
        elif self.task == "regcap":
            for k, turn in enumerate(turns):
                self._add_region(sample, turn, facts_of(sample, k), height, width)
        elif self.task == "caption":
            self._add_image(sample, height, width)
            self.images[-1]["classes"] = classes_present(sample)
            for turn in turns:
                self.annotations.append(self._caption(sample.image_id, turn, self.annotations))
        else:
            questions = [
                {"question_id": k, "question": turn.question, "answer": parse_grounded(turn.answer).caption}
                for k, turn in enumerate(turns)
            ]
            self.images.append({"image_id": sample.image_id, "questions": questions})

    def write(self, folder: str | Path) -> None:
        """Write the truth of all samples taken in."""
        coco = {"info": {"data": self.data}, "images": self.images}
        if self.task in MASK_TASKS:
            masks = {**coco, "annotations": self.annotations, "categories": [{"id": 1, "name": "object"}]}
            write_json(truth_path(folder, self.task, self.split, "mask"), masks)
            captions = {**coco, "annotations": self.captions}
            write_json(truth_path(folder, self.task, self.split, "caption"), captions)
        elif self.task in ("regcap", "caption"):
            write_json(truth_path(folder, self.task, self.split), {**coco, "annotations": self.annotations})
        else:
            write_json(truth_path(folder, self.task, self.split), self.images)

    def _add_image(self, sample: Sample, height: int, width: int, image_id=None) -> None:
        image_id = sample.image_id if image_id is None else image_id
        name = f"{sample.image_id}.png"
        self.images.append({"id": image_id, "file_name": name, "height": height, "width": width})

    def _caption(self, image_id, turn: Turn, collected: list) -> dict:
        return {"id": len(collected) + 1, "image_id": image_id, "caption": parse_grounded(turn.answer).caption}

    def _add_grounded(self, sample: Sample, turn: Turn) -> None:
        phrases = parse_grounded(turn.answer).phrases
        if len(phrases) != len(turn.masks):
            raise ValueError(f"{sample.image_id}: {len(phrases)} [SEG] in the answer, {len(turn.masks)} masks")
        labels = [phrase.text for phrase in phrases]
        self.captions.append({**self._caption(sample.image_id, turn, self.captions), "labels": labels})
        facts = facts_of(sample, 0).get("phrases") or [None] * len(labels)
        for mask, known in zip(turn.masks, facts, strict=True):
            record = encode_mask(mask)
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": sample.image_id,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": record,
                "area": float(mask.sum()),
                "bbox": coco_mask.toBbox(record).tolist(),
            }
            if known:  # what the record knows of the phrase, whatever its words leave open
                annotation["attributes"] = {key: known.get(key) for key in (*ATTRIBUTES, "count")}
                if known.get("unseen"):
                    annotation["unseen"] = True
            self.annotations.append(annotation)

    def _marked(self, sample: Sample, said: list[dict]) -> list[dict]:
        """Expressions, those marked that mean nothing but things that training never shows."""
        for k, expression in enumerate(said):
            if facts_of(sample, k).get("unseen"):
                expression["unseen"] = True
        return said

    def _add_region(self, sample: Sample, turn: Turn, facts: dict, height: int, width: int) -> None:
        number = len(self.annotations) + 1  # the official script needs annotation id == image id: one image a region
        self._add_image(sample, height, width, number)
        x0, y0, x1, y1 = (float(edge) for edge in turn.boxes[0])
        annotation = self._caption(number, turn, self.annotations)
        self.annotations.append(
            {
                **annotation,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
            }
        )
        if "thing" in facts:
            thing = sample.extras["things"][facts["thing"]]
            self.annotations[-1]["attributes"] = {key: thing[key] for key in ATTRIBUTES}
            if thing.get("unseen"):
                self.annotations[-1]["unseen"] = True


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


def classes_present(sample: Sample) -> list[str]:
    """Canonical classes of the visible things and kinds of stuff in the picture, as far as the record tells."""
    things = {thing["cls"] for thing in sample.extras.get("things", ()) if thing.get("visible", True)}
    return sorted(things | set(sample.extras.get("stuff", ())))
