"""Storybook samples: scenes drawn and talked about, for training and for scoring, each fixed by its number."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from glamm_mini.data.sample import Sample, Turn
from glamm_mini.storybook.language import exchanges, tasks, vocabulary
from glamm_mini.storybook.world.relations import View
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import keyed_rng

MIXTURE = {"gcg": 3.5, "refseg": 6.0, "regcap": 4.0, "caption": 0.4, "grounding": 1.0, "vqa": 12.0, "chat": 0.7}
"""Weights of the tasks in training. Every supervised token weighs the same there, and a grounded caption has 60 of
them, a referring answer 12, a region 10, the answer to a question 3: short answers are asked for more often."""


@dataclass(frozen=True)
class Stress:
    """What training asks for more than evaluation does; by default nothing.

    absent: share of the referring expressions that fit nothing in the picture. hard: share of the questions that are
    drawn from HARD alone.
    """

    absent: float = 0.0
    hard: float = 0.0


HARD = ("size", "where", "count", "box")
"""Kinds of questions that a model learns last: to compare, to count, to say what is beside a box."""

SIZES = {"train": 100_000, "val": 1_000, "test": 1_000, "compositional": 1_000}
"""How long `StorybookDataset` calls itself when no size is given; any index below it is a scene of its own."""

EXPRESSIONS = 3
"""Referring expressions per picture in `evaluation_samples`."""


def _check_split(split: str) -> None:
    if split not in vocabulary.SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(vocabulary.SPLITS)}")


def image_id(split: str, seed: int, index: int) -> str:
    """ "storybook_test_7_000012": names a scene, and the file of its predictions."""
    return f"storybook_{split}_{seed}_{index:06d}"


def truth_of(view: View) -> dict:
    """What there is to know of a view, for dense pretraining and for scoring.

    Returns:
        things: a dict (cls, colour, pattern, size, box as four floats in pixels, mask: its row in thing_masks,
            visible: whether enough of it shows to be asked for; unseen: whether training never shows its class in its
            colour) for each thing, back to front;
        thing_masks (N, H, W) bool; stuff: the kind of each region; stuff_masks (S, H, W) bool; place.
    """
    visible = set(view.things)
    things = [
        {
            "cls": thing.cls,
            "colour": thing.colour,
            "pattern": thing.pattern,
            "size": thing.size,
            "box": view.boxes[k],
            "mask": k,
            "visible": k in visible,
            "unseen": vocabulary.is_unseen({"cls": thing.cls, "colour": thing.colour}),
        }
        for k, thing in enumerate(view.scene.things)
    ]
    return {
        "things": things,
        "thing_masks": view.picture.thing_masks,
        "stuff": [stuff.kind for stuff in view.scene.stuff],
        "stuff_masks": view.picture.stuff_masks,
        "place": view.scene.place,
    }


class StorybookDataset:
    """Scenes of a split with conversations about them. `ds[i]` is the same on every machine and in every process.

    Args:
        split: "train", "val", "test" or "compositional". seed: another seed is another world of the same split.
        size: number of scenes; by default that of SIZES. math.inf: without end, and so without a length.
        long_side: longer side of the pictures, in pixels.
        mixture: task to weight; tasks left out are never drawn. By default MIXTURE.
        conversations: how many are drawn per scene; where the mixture allows it, one at least is "gcg" or "refseg".
        stress: how the talk differs from that of evaluation.

    Raises:
        ValueError: for an unknown split or task, or a mixture without weight.
    """

    def __init__(
        self,
        split: str,
        seed: int = 0,
        size: float | None = None,
        long_side: int = 128,
        mixture: dict[str, float] | None = None,
        conversations: int = 4,
        stress: Stress = Stress(),
    ):
        _check_split(split)
        mixture = dict(MIXTURE if mixture is None else mixture)
        unknown = [task for task in mixture if task not in tasks.TASKS]
        if unknown or min(mixture.values(), default=-1) < 0 or not 0 < sum(mixture.values()) < math.inf:
            raise ValueError(
                f"mixture {mixture} needs weights of at least 0, one of them above 0, for tasks among {tasks.TASKS}"
            )
        if conversations < 1:
            raise ValueError(f"conversations is {conversations}: draw at least 1 per scene")
        self.split, self.seed, self.long_side, self.conversations = split, seed, long_side, conversations
        self.size, self.stress = SIZES[split] if size is None else size, stress
        self._tasks = tuple(task for task in tasks.TASKS if mixture.get(task, 0) > 0)
        self._weights = tuple(mixture[task] for task in self._tasks)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Sample:
        """The scene `index`, drawn, with its conversations. Raises IndexError beyond the size."""
        if not 0 <= index < self.size:
            raise IndexError(f"scene {index} of {self.size}")
        scene = sample_scene(self.split, self.seed, index)
        view = View(scene, render(scene, self.long_side))
        made = self.talk(view)
        return Sample(view.picture.image, made, image_id(self.split, self.seed, index), "mixture", truth_of(view))

    def talk(self, view: View, draw: int = 0) -> list[list[Turn]]:
        """The conversations about a view, drawn by the mixture from a stream of the scene's own.

        `draw`: another number is other talk about the same picture, for a pool of pictures that is used many times.
        """
        scene = view.scene
        rng = keyed_rng(scene.split, scene.seed, scene.index, "talk", draw)
        drawn = rng.choices(self._tasks, self._weights, k=self.conversations)
        masked = [task for task in self._tasks if task in ("gcg", "refseg")]
        if masked and not any(task in masked for task in drawn):
            drawn[0] = masked[int(rng.random() * len(masked))]
        made = [self._converse(task, view, rng) for task in drawn]
        return [conversation[0] for conversation in made if conversation]

    def _converse(self, task: str, view: View, rng: random.Random) -> exchanges.Made | None:
        stress = self.stress
        if task == "refseg" and stress.absent and rng.random() < stress.absent:
            return exchanges.absent(view, rng)
        if task == "vqa" and stress.hard and rng.random() < stress.hard:
            return exchanges.vqa(view, rng, HARD)
        return tasks.converse(task, view, rng)


def evaluation_samples(task: str, split: str, seed: int, limit: int, long_side: int = 256) -> Iterator[Sample]:
    """Samples of one task for scoring, one per scene 0 .. limit - 1; a scene that allows none is passed over.

    gcg, caption, grounding, vqa, chat: one conversation; refseg: up to EXPRESSIONS different expressions, each its
    own conversation, and one that fits nothing; regcap: one conversation per visible thing.

    Yields:
        Sample whose extras hold `truth_of` the scene and "truth": per conversation what scoring needs
        (gcg, grounding, refseg: "phrases", one dict cls, colour, pattern, size, count, members per [SEG]; None where
        a phrase leaves it open; refseg also "expression", "kind", "members"; regcap: "thing", an index of things;
        vqa: "kind", and "also", other answers that are right).

    Raises:
        ValueError: for an unknown task or split.
    """
    _check_split(split)
    if task not in tasks.TASKS:
        raise ValueError(f"task {task!r} is unknown: choose one of {', '.join(tasks.TASKS)}")
    for index in range(limit):
        scene = sample_scene(split, seed, index)
        view = View(scene, render(scene, long_side))
        rng = keyed_rng(split, seed, index, "evaluation", task)
        made = _evaluate(task, view, rng)
        if made:
            extras = truth_of(view)
            extras["truth"] = [_marked(truth, extras["things"]) for _, truth in made]
            yield Sample(view.picture.image, [turns for turns, _ in made], image_id(split, seed, index), task, extras)


def _marked(truth: dict, things: list[dict]) -> dict:
    """The truth with `unseen` for phrases, and for an expression, that mean nothing but things training never shows."""
    for phrase in truth.get("phrases", ()):
        if phrase:
            phrase["unseen"] = vocabulary.is_unseen(phrase)
    return truth | {"unseen": vocabulary.means_unseen(things, truth.get("members") or ())}


def _evaluate(task: str, view: View, rng) -> list[tuple[list, dict]]:
    """The conversations of one scene for scoring, each with its truth."""
    if task == "regcap":
        return [exchanges.regcap(view, rng, k) for k in view.things]
    if task != "refseg":
        made = tasks.converse(task, view, rng)
        return [made] if made else []
    found: dict[tuple, exchanges.Made] = {}
    for _ in range(4 * EXPRESSIONS):
        made = exchanges.refseg(view, rng)
        if made and len(found) < EXPRESSIONS:
            truth = made[1]
            # The same thing may be asked for again in another way, not in the same way with a synonym.
            found.setdefault((truth["members"], truth["stuff"], truth["kind"]), made)
    nothing = exchanges.absent(view, rng)
    return [*found.values(), *([nothing] if nothing else [])]
