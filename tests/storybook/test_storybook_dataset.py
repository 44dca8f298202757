"""Storybook samples: deterministic, within the mixture, and with the truth that scoring needs."""

import numpy as np
import pytest

from glamm_mini.storybook.dataset import EXPRESSIONS, StorybookDataset, Stress, evaluation_samples
from glamm_mini.storybook.language import tasks, vocabulary


def test_samples_are_fixed_by_their_number():
    one, two = (StorybookDataset("train", size=10, long_side=96)[4] for _ in range(2))
    assert (one.image == two.image).all() and one.image_id == two.image_id
    assert [[turn.answer for turn in turns] for turns in one.conversations] == [
        [turn.answer for turn in turns] for turns in two.conversations
    ]
    other = StorybookDataset("train", seed=1, size=10, long_side=96)[4]
    assert other.image.shape != one.image.shape or (other.image != one.image).any()


def test_words_do_not_depend_on_the_picture_size_alone():
    small, large = (StorybookDataset("train", size=8, long_side=side)[2] for side in (96, 192))
    assert small.extras["place"] == large.extras["place"]
    assert [thing["cls"] for thing in small.extras["things"]] == [thing["cls"] for thing in large.extras["things"]]


def test_every_sample_holds_masks_and_dense_labels():
    dataset = StorybookDataset("train", size=12, long_side=96)
    assert len(dataset) == 12
    for index in range(12):
        sample = dataset[index]
        height, width = sample.image.shape[:2]
        assert 1 <= len(sample.conversations) <= 4
        assert any(len(turn.masks) for turns in sample.conversations for turn in turns)
        things = sample.extras["things"]
        assert sample.extras["thing_masks"].shape == (len(things), height, width)
        assert sample.extras["stuff_masks"].shape == (len(sample.extras["stuff"]), height, width)
        for thing in things:
            assert thing["cls"] in vocabulary.CLASSES and thing["colour"] in vocabulary.COLOURS
            x0, y0, x1, y1 = map(int, thing["box"])
            assert sample.extras["thing_masks"][thing["mask"], y0:y1, x0:x1].any()


def test_iteration_ends():
    with pytest.raises(IndexError):
        StorybookDataset("val", size=2)[2]
    assert len(list(StorybookDataset("val", size=2, long_side=48))) == 2


def test_the_mixture_is_obeyed():
    dataset = StorybookDataset("train", size=3, long_side=64, mixture={"regcap": 1}, conversations=3)
    for sample in dataset:
        assert len(sample.conversations) == 3
        assert all("<bbox>" in turns[0].question for turns in sample.conversations)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"split": "dev"}, "split 'dev'"),
        ({"split": "val", "mixture": {"gcg": 0}}, "mixture"),
        ({"split": "val", "mixture": {"songs": 1}}, "mixture"),
        ({"split": "val", "mixture": {}}, "mixture"),
        ({"split": "val", "mixture": {"gcg": 2, "vqa": -1}}, "mixture"),
        ({"split": "val", "mixture": {"gcg": 1, "vqa": float("inf")}}, "mixture"),
        ({"split": "val", "conversations": 0}, "conversations is 0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        StorybookDataset(**settings)


def test_stress_changes_what_training_asks_and_nothing_else():
    mixture, size = {"gcg": 1, "refseg": 2, "vqa": 2}, 12
    plain, same, much = (
        [ds[i].conversations for i in range(size)]
        for ds in (
            StorybookDataset("train", 5, size, 64, mixture, 6, *stress)
            for stress in ((), (Stress(),), (Stress(absent=1.0, hard=1.0),))
        )
    )
    words = [[[t.question + t.answer for [t] in talk] for talk in ds] for ds in (plain, same, much)]
    assert words[0] == words[1] != words[2]
    answers = [t.answer for talk in much for [t] in talk]
    assert sum(a.startswith("There is no ") for a in answers) > 10 and not any("Sure, " in a for a in answers)
    easy = ("colour", "pattern", "place", "day or night")
    asked = [t.question for talk in much for [t] in talk if not len(t.masks) and "<bbox>" not in t.question]
    assert not any(word in question for question in asked for word in easy)


@pytest.mark.parametrize("task", tasks.TASKS)
def test_evaluation_samples(task):
    samples = list(evaluation_samples(task, "test", 7, 4, long_side=96))
    again = list(evaluation_samples(task, "test", 7, 4, long_side=96))
    assert len(samples) == 4 and len({sample.image_id for sample in samples}) == 4
    for sample, same in zip(samples, again, strict=True):
        assert sample.task == task and len(sample.extras["truth"]) == len(sample.conversations)
        assert [t.question for c in sample.conversations for t in c] == [
            t.question for c in same.conversations for t in c
        ]
        if task == "regcap":
            visible = [k for k, thing in enumerate(sample.extras["things"]) if thing["visible"]]
            assert sorted(truth["thing"] for truth in sample.extras["truth"]) == visible
            for turns, truth in zip(sample.conversations, sample.extras["truth"], strict=True):
                assert np.allclose(turns[0].boxes[0], sample.extras["things"][truth["thing"]]["box"])
        if task == "refseg":
            expressions = [truth["expression"] for truth in sample.extras["truth"]]
            assert 2 <= len(set(expressions)) == len(expressions) <= EXPRESSIONS + 1
            kinds = [truth["kind"] for truth in sample.extras["truth"]]
            assert kinds[-1] == "absent" and "absent" not in kinds[:-1]
        if task in ("gcg", "grounding"):
            (truth,) = sample.extras["truth"]
            assert len(truth["phrases"]) == sample.conversations[0][0].answer.count("[SEG]")


def test_evaluation_names_bad_requests():
    with pytest.raises(ValueError, match="task 'song'"):
        next(evaluation_samples("song", "test", 0, 1))
    with pytest.raises(ValueError, match="split 'dev'"):
        next(evaluation_samples("gcg", "dev", 0, 1))


def test_splits_and_seeds_have_their_own_names():
    names = {
        next(evaluation_samples("gcg", split, seed, 1, long_side=48)).image_id
        for split in vocabulary.SPLITS
        for seed in (0, 7)
    }
    assert len(names) == 2 * len(vocabulary.SPLITS)
