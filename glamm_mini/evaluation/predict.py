"""Ask a model about samples and write its answers, image by image, so that a stopped run goes on where it was.

Several processes share the work: process `rank` of `world` answers samples rank, rank + world, ...
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from glamm_mini.data.sample import Sample
from glamm_mini.evaluation.records import LIST_TASKS, SETTINGS, read_json, read_results, write_json
from glamm_mini.evaluation.segmentation import draw_expressions
from glamm_mini.evaluation.truth import TruthWriter, expressions, single_turns
from glamm_mini.paths import folder_path
from glamm_mini.processing.images import encode_mask

UNTOLD = {"dtype": "float32", "quantize": None, "vision_tower": None, "drop": []}
"""What older folders were made with, whose settings do not say how the model was loaded."""


def predict_samples(
    task: str, glamm, samples: Iterable[Sample], folder: str | Path, split: str, settings: dict, seed: int = 0,
    batch_size: int = 8, rank: int = 0, world: int = 1,
    wait: Callable[[], None] = lambda: None, advance: Callable[[int], None] = lambda count: None,
) -> None:  # fmt: skip
    """Write predictions to `folder` and, in process 0, the ground truth to `folder/ground_truth`.

    glamm: an Assistant, or anything with its answer_batch (and teacher_force, for refseg).
    settings: what the predictions depend on; kept beside them, and compared before a run goes on.
    batch_size: questions asked at once; the questions about one image are never split.
    wait: returns when all processes have called it. advance: told how many samples are done.
    Raises ValueError for an unknown task or a folder made with other settings.
    """
    truth, folder = TruthWriter(task, split, settings.get("data", "")), folder_path(folder, "folder")
    compare_settings(folder, settings)
    wait()  # no process writes settings before all have compared them
    if rank == 0:
        write_json(folder / SETTINGS, settings)
    answers = _Answers(task, glamm, folder, seed, rank)
    wait()  # no process writes results before all have read what is there
    batch, questions = [], 0
    for number, sample in enumerate(samples):
        first, questions = questions + 1, questions + len(sample.conversations)
        # Of regcap one result a region, numbered over the whole set.
        ids = range(first, questions + 1) if task == "regcap" else [sample.image_id]
        if rank == 0:
            truth.add(sample)
        if number % world == rank and answers.are_known(ids):
            advance(1)
        elif number % world == rank:
            batch.append((sample, ids))
        if sum(len(one.conversations) for one, _ in batch) >= batch_size:
            advance(answers.ask(batch))
            batch = []
    if batch:
        advance(answers.ask(batch))
    if rank == 0:
        truth.write(folder / "ground_truth")
    wait()


def compare_settings(folder: str | Path, settings: dict) -> None:
    """Raises ValueError if `folder` was made with other settings, or holds something else altogether."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        if any(path.parent.glob("*.json")):
            raise ValueError(f"{folder} holds JSON files but no {SETTINGS}; choose an empty folder for --out.")
        return
    found = read_json(path)
    before = {key: value for key, value in UNTOLD.items() if key in settings}
    before |= found if isinstance(found, dict) else {}
    different = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
    if different:
        changes = "; ".join(f"{key} was {before.get(key)!r}, is {settings.get(key)!r}" for key in different)
        raise ValueError(
            f"{folder} holds predictions made with other settings ({changes}). "
            "Choose another --out, or delete the folder to start anew."
        )


def fingerprint(glamm) -> str | None:
    """A short name of a model's weights, so that predictions of two trainings are never mixed; None without weights."""
    model = getattr(glamm, "model", None)
    if not hasattr(model, "named_parameters"):
        return None
    check = 0
    for name, parameter in model.named_parameters():
        piece = parameter.detach().reshape(-1)[:64].float().cpu().numpy()
        check = zlib.crc32(piece.tobytes(), zlib.crc32(name.encode(), check))
    return f"{check:08x}"


class _Answers:
    """Asks, and keeps what came back in the files of one task."""

    def __init__(self, task: str, glamm, folder: Path, seed: int, rank: int):
        self.task, self.glamm, self.folder, self.seed = task, glamm, folder, seed
        self.path = folder / f"results_{rank}.json"
        written = sorted(folder.glob("results_*.json")) if task in LIST_TASKS else []
        self.known = set(read_results(folder)) if written else set()
        self.results = read_json(self.path) if self.path in written else []

    def are_known(self, ids: Sequence) -> bool:
        if self.task in LIST_TASKS:
            return self.known.issuperset(map(str, ids))
        return (self.folder / f"{ids[0]}.json").is_file()

    def ask(self, batch: list[tuple[Sample, Sequence]]) -> int:
        """Returns how many samples were asked about."""
        from glamm_mini.assistant.assistant import Request

        requests = [
            Request(sample.image, turn.question, boxes=turn.boxes if len(turn.boxes) else None)
            for sample, _ in batch
            for turn in single_turns(sample)
        ]
        answers = iter(self.glamm.answer_batch(requests))
        for sample, ids in batch:
            own = [next(answers) for _ in sample.conversations]
            if self.task in LIST_TASKS:  # caption: one result an image, the first answer
                self.results += [{"image_id": k, "caption": a.caption} for k, a in zip(ids, own, strict=False)]
                continue
            if self.task == "refseg":
                record = {"image_id": sample.image_id, **self._expressions(sample, own)}
            elif self.task == "vqa":
                said = enumerate(zip(single_turns(sample), own, strict=True))
                said = [{"question_id": k, "question": turn.question, "text": a.caption} for k, (turn, a) in said]
                record = {"image_id": sample.image_id, "questions": said}
            else:
                record = {**own[0].to_dict(image_id=sample.image_id), "text": own[0].text}
            write_json(self.folder / f"{sample.image_id}.json", record)
        if self.task in LIST_TASKS:
            write_json(self.path, self.results)
        return len(batch)

    def _expressions(self, sample: Sample, answers: list) -> dict:
        said = []
        for truth, answer in zip(expressions(sample), answers, strict=True):
            mask = np.zeros(sample.image.shape[:2], bool)  # stays empty where no mask came
            for phrase in answer.phrases:
                mask |= phrase.mask
            said.append({**truth, "text": answer.text, "mask": encode_mask(mask)})
        # The official variant: the true answers are given, their [SEG] states make the masks, and all drawn
        # expressions stand in one conversation, so that later ones see the earlier ones.
        turns = single_turns(sample)
        shown = [k for k, turn in enumerate(turns) if len(turn.masks)]  # what fits nothing has no [SEG] to force
        drawn = [shown[k] for k in draw_expressions(sample.image_id, len(shown), self.seed)]
        given = [(turns[k].question, turns[k].answer) for k in drawn]
        forced = iter(self.glamm.teacher_force(sample.image, given) if given else [])
        masks = [np.any([next(forced) for _ in turns[k].masks], axis=0) for k in drawn]
        return {"expressions": said, "teacher_forced": {"sent_ids": drawn, "masks": [encode_mask(m) for m in masks]}}
