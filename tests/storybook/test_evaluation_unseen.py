"""The figures of unseen things alone: matched over everything, then restricted to what training never showed."""

import json
import shutil

import evaluation_fakes
import numpy as np
import pytest
from evaluation_fakes import FakeAnswer, Oracle, StorybookOracle, figures, make_sample, run

from glamm_mini.cli.evaluate import result_table
from glamm_mini.evaluation import TASKS, predict_samples, score_folder
from glamm_mini.evaluation.gcg import GroundedImage, unseen_grounding
from glamm_mini.evaluation.records import GroundedPrediction, GroundedTruth
from glamm_mini.evaluation.segmentation import unseen_refseg
from glamm_mini.storybook.dataset import _marked, evaluation_samples
from glamm_mini.storybook.language.vocabulary import UNSEEN_PAIRS, is_unseen, means_unseen
from glamm_mini.storybook.scores.attributes import unseen_regions

MARKED = ("gcg", "grounding", "refseg", "regcap")


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """These tests must pass without Java."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def orange_boats(monkeypatch):
    """Of the fakes' four things, the boat has a colour that training never shows it in, marked as storybook does."""
    monkeypatch.setitem(evaluation_fakes.THINGS[1], "colour", "orange")
    make = make_sample

    def with_members(task, number):
        sample = make(task, number)
        things = [thing | {"unseen": is_unseen(thing)} for thing in sample.extras["things"]]
        truths = [_marked(facts | {"members": (k,)}, things) for k, facts in enumerate(sample.extras["truth"])]
        sample.extras |= {"things": things, "truth": truths}
        return sample

    monkeypatch.setattr(evaluation_fakes, "make_sample", with_members)


class BlindTo(Oracle):
    """Right about everything but the things whose phrase holds a word: those get no mask, and a wrong class."""

    def __init__(self, task: str, word: str):
        super().__init__(task)
        self.word = word

    def answer(self, turn):
        pieces = turn.answer.split("[SEG]")
        masks = [mask & (self.word not in piece) for mask, piece in zip(turn.masks, pieces, strict=False)]
        masks = np.stack(masks) if masks else turn.masks
        return FakeAnswer(turn.answer.replace(self.word, "cactus"), masks)


def image_of(ious, similarities, unseen) -> GroundedImage:
    ious = np.array(ious, float)
    labels = ["it"] * len(ious)
    truth = GroundedTruth("a", (4, 4), ["it"], labels, [{}] * len(ious), [None] * len(ious), unseen)
    count = ious.shape[1]
    prediction = GroundedPrediction("it", ["it"] * count, [{}] * count, [1.0] * count)
    return GroundedImage(truth, prediction, ious, np.array(similarities, float))


def test_one_pair_of_each_class_is_unseen():
    assert ("boat", "orange") in UNSEEN_PAIRS and is_unseen({"cls": "boat", "colour": "orange"})
    assert not is_unseen({"cls": "boat", "colour": "blue"}) and not is_unseen({"cls": "boat", "colour": None})
    things = [{"cls": "boat", "colour": "orange"}, {"cls": "boat", "colour": "blue"}]
    assert means_unseen(things, (0,)) and not means_unseen(things, (1,))
    assert not means_unseen(things, (0, 1)) and not means_unseen(things, ())  # a mixed group; stuff


def test_matching_is_made_over_all_phrases_first():
    """The one mask goes to the seen thing, which it fits better; a matching of unseen ones alone would hand it over."""
    taken = image_of([[0.7], [0.6]], [[1], [1]], [False, True])
    assert unseen_grounding([taken]) == {"miou": 0.0, "recall": 0.0, "phrases": 1}
    other = image_of([[0.7], [0.6]], [[1], [1]], [True, False])
    assert unseen_grounding([other]) == {"miou": 0.7, "recall": 1.0, "phrases": 1}


def test_recall_counts_phrases_and_miou_images():
    first = image_of([[0.9, 0], [0, 0.8], [0, 0]], [[1, 1], [0, 0], [1, 1]], [True, True, False])
    second = image_of([[0.4]], [[1]], [True])
    seen = image_of([[1.0]], [[1]], [False])
    scores = unseen_grounding([first, second, seen])
    assert scores["phrases"] == 3
    assert scores["recall"] == pytest.approx(1 / 3)  # a wrong phrase, and a mask below one half
    assert scores["miou"] == pytest.approx((0.85 + 0.4) / 2)
    assert unseen_grounding([seen]) is None


def test_expressions_and_regions_are_restricted():
    full, empty = np.ones((2, 2), bool), np.zeros((2, 2), bool)
    pairs = [(full, full), (full, empty)]
    assert unseen_refseg(pairs, [False, True]) == {"ciou": 0.0, "giou": 0.0, "p50": 0.0, "expressions": 1}
    assert unseen_refseg(pairs, [True, False])["giou"] == 1.0 and unseen_refseg(pairs, [False, False]) is None
    boat = {"cls": "boat", "colour": "orange", "pattern": "plain", "size": "small"}
    said = ["A small plain orange boat.", "A small plain blue boat.", "A small plain orange car."]
    scores = unseen_regions([boat] * 3, said, [False, True, True])
    assert scores == {"class_accuracy": 0.5, "colour": 0.5, "exact": 0.0, "regions": 2}
    assert unseen_regions([boat], said[:1], [False]) is None


@pytest.mark.parametrize("task", MARKED)
def test_being_blind_to_unseen_things_shows_there_alone(task, tmp_path, orange_boats):
    run(task, BlindTo(task, "boat"), tmp_path / "unseen")
    run(task, BlindTo(task, "tree"), tmp_path / "seen")
    blind, fine = figures(task, tmp_path / "unseen"), figures(task, tmp_path / "seen")
    name = {"refseg": "giou", "regcap": "class_accuracy"}.get(task, "recall")
    assert blind["unseen"][name] == 0.0 and fine["unseen"][name] == 1.0
    for scores in (blind, fine):
        everything = scores["fixed"] if task == "gcg" else scores
        assert everything[name] == 0.75
    counted = {"refseg": ("expressions", 8), "regcap": ("regions", 4)}.get(task, ("phrases", 4))
    assert blind["unseen"][counted[0]] == counted[1]
    assert "unseen" not in figures(task, tmp_path / "unseen", protocol="official")
    assert "unseen things" in [column.header for column in result_table(task, blind).columns]


@pytest.mark.parametrize("task", TASKS)
def test_without_unseen_things_there_are_no_such_figures(task, tmp_path):
    run(task, Oracle(task), tmp_path)
    scores = figures(task, tmp_path)
    assert "unseen" not in scores
    assert "unseen things" not in [column.header for column in result_table(task, scores).columns]


def test_data_that_marks_nothing_has_no_unseen_things(tmp_path):
    settings = {"task": "gcg", "data": "elsewhere"}
    predict_samples("gcg", Oracle("gcg"), evaluation_fakes.samples("gcg"), tmp_path, "test", settings)
    assert not any("unseen" in path.read_text() for path in (tmp_path / "ground_truth").iterdir())


@pytest.mark.parametrize("task", TASKS)
def test_storybook_marks_what_training_never_shows(task, tmp_path):
    for split in ("test", "compositional"):
        oracle = StorybookOracle()
        stories = oracle.watch(evaluation_samples(task, split, 3, 6, long_side=64))
        predict_samples(task, oracle, stories, tmp_path / split, split, {"data": "storybook"})
        scores = score_folder(task, tmp_path / split, tmp_path / split / "ground_truth", split, meteor=False)[task]
        assert ("unseen" in scores) == (split == "compositional" and task in MARKED)
    if task in MARKED:
        counts = ("phrases", "expressions", "regions")
        assert {value for name, value in scores["unseen"].items() if name not in counts} == {1.0}
    if task in ("gcg", "grounding"):
        path = tmp_path / "compositional" / "ground_truth" / f"compositional_{task}_coco_mask_gt.json"
        for annotation in json.loads(path.read_text())["annotations"]:
            assert bool(annotation.get("unseen")) == is_unseen(annotation["attributes"])
