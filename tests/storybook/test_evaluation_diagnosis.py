"""Causes of lost points, one hand-made picture a rule."""

import numpy as np
import pytest

from glamm_mini.evaluation.gcg import GroundedImage
from glamm_mini.evaluation.records import GroundedPrediction, GroundedTruth
from glamm_mini.evaluation.similarity import get_similarity
from glamm_mini.storybook.scores.diagnosis import KINDS, Fault, cause, diagnose, image_score, tally


def image_of(labels: list[str], phrases: list[str], ious) -> GroundedImage:
    """A picture of which only overlaps and words are known; IoU rows are true things, columns are predictions."""
    same = get_similarity("storybook")
    similarities = np.array([[same(label, phrase, None) for phrase in phrases] for label in labels])
    similarities = similarities.reshape(len(labels), len(phrases))
    ious = np.array(ious, float)
    truth = GroundedTruth("a", (4, 4), [""], labels, [{}] * len(labels), [None] * len(labels))
    masks = ious.shape[1]
    return GroundedImage(truth, GroundedPrediction("", phrases, [{}] * masks, [1.0] * masks), ious, similarities)


@pytest.mark.parametrize(
    "labels, phrases, ious, expected",
    [
        (["A red balloon"], ["a red balloon"], [[0.9]], "nothing wrong"),
        (["A red balloon"], ["a red mushroom"], [[0.9]], "wrong class: mushroom for balloon"),
        (["A red balloon"], ["a green balloon"], [[0.9]], "wrong color: green for red (balloon)"),
        (["A striped kite"], ["a dotted kite"], [[0.9]], "wrong pattern: dotted for striped (kite)"),
        (["a small kite"], ["a large kite"], [[0.9]], "wrong size: large for small (kite)"),
        (["three birds"], ["two birds"], [[0.9]], "wrong count: 2 for 3 (bird)"),
        (["a boat"], ["a red thing"], [[0.9]], 'wrong words: "red thing" for boat'),
        (["a boat"], [], [[0.9]], "wrong words: none for boat"),
        (["a boat"], ["a car"], [[0.41]], "wrong class: car for boat (IoU 0.41)"),
        (["a boat"], ["a boat"], [[0.31]], "mask rough: boat (IoU 0.31)"),
        (["a boat"], ["a boat"], [[0.0]], "missed: boat; surplus: boat"),
        (["The fence"], [], np.zeros((1, 0)), "missed: fence"),
        (["a boat"], ["a car"], [[0.1]], "missed: boat; surplus: car"),
        (["a boat", "a tree"], ["a boat"], [[0.0], [0.8]], "mask of a neighbor: boat drawn on tree; missed: tree"),
        (["a boat", "a boat"], ["a boat"], [[0.0], [0.8]], "missed: boat"),  # its twin's mask is its twin's
    ],
)
def test_each_rule(labels, phrases, ious, expected):
    assert cause(diagnose(image_of(labels, phrases, ious))) == expected


def test_a_mask_is_used_once():
    """Two boats are missed, one stray mask: only one of them can have strayed."""
    image = image_of(["a red boat", "a boat", "a tree"], ["a red boat"], [[0.0], [0.0], [0.9]])
    assert [fault.kind for fault in diagnose(image)] == ["neighbour", "missed", "missed"]


def test_long_causes_are_cut_and_counted():
    faults = [Fault("class", "x for y"), *[Fault("missed", name) for name in "abcd"], Fault("surplus", "z")]
    assert cause(faults) == "wrong class: x for y; missed: a, b; and 2 more"


def test_the_tally_adds_up():
    images = [
        image_of(["a boat", "a tree"], ["a boat"], [[0.9], [0.0]]),
        image_of(["a boat", "a tree"], ["a car", "a kite", "a sun"], [[0.9, 0, 0], [0, 0.3, 0]]),
    ]
    counts = tally(images)
    assert set(counts) == {"right", *KINDS}
    assert sum(number for kind, number in counts.items() if kind != "surplus") == 4
    assert (counts["right"], counts["missed"], counts["class"], counts["surplus"]) == (1, 1, 2, 1)


def test_the_score_charges_masks_and_words():
    assert image_score(image_of(["a boat"], ["a boat"], [[0.8]])) == pytest.approx(0.9)
    assert image_score(image_of(["a boat"], ["a car"], [[0.8]])) == pytest.approx(0.4)
    assert image_score(image_of(["a boat", "a tree"], ["a boat"], [[0.8], [0]])) == pytest.approx(0.45)
    assert image_score(image_of([], [], np.zeros((0, 0)))) == 1.0
