"""Pictures with known truth, assistants without a model, and runs of them: what the evaluation tests share."""

import json
from pathlib import Path

import numpy as np

from glamm_mini.assistant.assistant import Request
from glamm_mini.data.sample import Sample, Turn
from glamm_mini.evaluation import predict_samples, score_folder
from glamm_mini.processing.images import encode_mask
from glamm_mini.processing.tags import parse_grounded

H, W = 48, 64
THINGS = [
    {"cls": "balloon", "colour": "red", "pattern": "striped", "size": "small", "box": (4, 4, 16, 20)},
    {"cls": "boat", "colour": "blue", "pattern": "plain", "size": "large", "box": (24, 20, 56, 32)},
    {"cls": "tree", "colour": "green", "pattern": "dotted", "size": "medium", "box": (40, 2, 56, 18)},
    {"cls": "kite", "colour": "yellow", "pattern": "plain", "size": "small", "box": (2, 30, 14, 44)},
]


def rectangle(box) -> np.ndarray:
    mask = np.zeros((H, W), bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def make_sample(task: str, number: int) -> Sample:
    things = [THINGS[(number + k) % 4] for k in range(4 if task == "refseg" else 2)]
    masks = np.stack([rectangle(thing["box"]) for thing in things])
    names = [f"the {thing['colour']} {thing['cls']}" for thing in things]
    boxes = np.array([thing["box"] for thing in things], np.float32)
    none = np.zeros((0, H, W), bool)
    if task in ("gcg", "grounding"):
        answer = f"<p> A {names[0][4:]} </p> [SEG] and <p> {names[1]} </p> [SEG] over the sea."
        turns = [Turn("Describe the picture.", answer, masks=masks)]
    elif task == "refseg":
        turns = [
            Turn(f"Segment {name}.", f"<p> {name} </p> [SEG].", masks=masks[k : k + 1]) for k, name in enumerate(names)
        ]
    elif task == "regcap":
        turns = [
            Turn("What is <bbox>?", f"A {t['size']} {t['colour']} {t['pattern']} {t['cls']}.", boxes[k : k + 1], none)
            for k, t in enumerate(things)
        ]
    elif task == "caption":
        caption = f"A {things[0]['cls']} and a {things[1]['cls']} over the sea."
        turns = [Turn("Tell me what you see.", caption, masks=none)]
    else:
        turns = [Turn("How many boats are there?", "Three", masks=none), Turn("Is it night?", "no", masks=none)]
    image = np.full((H, W, 3), number, np.uint8)  # tells the fake assistants which picture they see
    phrases = [{**{key: thing[key] for key in ("cls", "colour", "pattern", "size")}, "count": 1} for thing in things]
    truth = [{"phrases": phrases, "thing": k, "expression": names[k % len(names)]} for k in range(len(turns))]
    extras = {"things": things, "stuff": ["sea"], "truth": truth}
    return Sample(image, [[turn] for turn in turns], f"picture_{number:03}", task, extras)


class FakePhrase:
    def __init__(self, text: str, mask: np.ndarray):
        self.text, self.mask, self.score = text, mask, 0.9


class FakeAnswer:
    def __init__(self, text: str, masks: np.ndarray):
        grounded = parse_grounded(text)
        self.text, self.caption = text, grounded.caption
        self.phrases = [FakePhrase(phrase.text, mask) for phrase, mask in zip(grounded.phrases, masks, strict=True)]

    def to_dict(self, image_id=None) -> dict:
        phrases, masks = [p.text for p in self.phrases], [encode_mask(p.mask) for p in self.phrases]
        record = {"image_id": image_id, "caption": self.caption, "phrases": phrases, "pred_masks": masks}
        return {**record, "scores": [p.score for p in self.phrases]}


class Oracle:
    """Answers with the truth."""

    def __init__(self, task: str):
        self.task, self.asked = task, 0

    def turn_of(self, image: np.ndarray, question: str, boxes) -> Turn:
        turns = [conversation[0] for conversation in make_sample(self.task, int(image[0, 0, 0])).conversations]
        same = [turn for turn in turns if turn.question == question]
        return next((t for t in same if boxes is not None and np.array_equal(t.boxes, boxes)), same[0])

    def answer(self, turn: Turn) -> FakeAnswer:
        return FakeAnswer(turn.answer, turn.masks)

    def answer_batch(self, requests: list[Request]) -> list[FakeAnswer]:
        self.asked += len(requests)
        return [self.answer(self.turn_of(request.image, request.question, request.boxes)) for request in requests]

    def teacher_force(self, image, conversation) -> list[np.ndarray]:
        return [mask for question, _ in conversation for mask in self.turn_of(image, question, None).masks]


class Careless(Oracle):
    """Calls every balloon blue, moves every mask by three pixels, and forgets each second mask."""

    def answer(self, turn: Turn) -> FakeAnswer:
        text = turn.answer.replace("red balloon", "blue balloon").replace("striped", "plain").replace("Three", "two")
        masks = np.roll(turn.masks, 3, axis=-1)
        if len(masks) > 1:
            return FakeAnswer(text.replace("[SEG]", "", 1), masks[1:])
        return FakeAnswer(text.replace("[SEG]", ""), masks[:0]) if "kite" in text else FakeAnswer(text, masks)


def samples(task: str, count: int = 8) -> list[Sample]:
    return [make_sample(task, number) for number in range(count)]


def run(task: str, glamm, folder: Path, count: int = 8, **options) -> None:
    settings = {"task": task, "data": "storybook", "limit": count}
    predict_samples(task, glamm, samples(task, count), folder, "test", settings, batch_size=5, **options)


def figures(task: str, folder: Path, **options) -> dict:
    scores = score_folder(task, folder, folder / "ground_truth", "test", meteor=False, **options)[task]
    json.dumps(scores, allow_nan=False)
    return scores


class StorybookOracle:
    """Answers storybook's own samples with their truth; pictures are told apart by identity."""

    def __init__(self):
        self.turns = {}

    def watch(self, stories):
        for sample in stories:
            for (turn,) in sample.conversations:
                key = (id(sample.image), turn.question, turn.boxes.tobytes())
                self.turns[key] = (turn, sample)
            yield sample

    def answer_batch(self, requests):
        none = np.zeros((0, 4), np.float32)
        keys = [(id(r.image), r.question, (none if r.boxes is None else r.boxes).tobytes()) for r in requests]
        return [FakeAnswer(self.turns[key][0].answer, self.turns[key][0].masks) for key in keys]

    def teacher_force(self, image, conversation):
        return [mask for question, _ in conversation for mask in self.turns[(id(image), question, b"")][0].masks]
