"""Scores and labels of the storybook at the values where a comparison could be one off."""

import numpy as np
import pytest
import torch

from glamm_mini.data.sample import Sample
from glamm_mini.evaluation.gcg import GroundedImage
from glamm_mini.evaluation.records import GroundedPrediction, GroundedTruth
from glamm_mini.storybook.pretrain.dense_labels import COVERED, IGNORE, KINDS, dense_labels, mask_boxes, mask_labels
from glamm_mini.storybook.scores.attributes import mention_scores, mentioned_classes, region_accuracy
from glamm_mini.storybook.scores.diagnosis import diagnose, image_score, tally
from glamm_mini.storybook.scores.same_phrase import storybook_similarity

BOAT = {"cls": "boat", "colour": "red", "pattern": "plain", "size": "small", "box": (0, 0, 4, 4)}


# --- what captions mention ----------------------------------------------------------------------------------------


def test_what_is_in_the_picture_is_right_although_no_reference_names_it():
    said = "A boat and a tree."
    assert mention_scores([["A boat."]], [{"boat", "tree"}], [said]) == {"class_recall": 1.0, "class_precision": 1.0}
    assert mention_scores([["A boat."]], [{"boat"}], [said]) == {"class_recall": 1.0, "class_precision": 0.5}
    assert mention_scores([["A boat and a tree."]], [set()], [said])["class_precision"] == 1.0


def test_what_is_mentioned_is_counted_once_and_over_all_images():
    scores = mention_scores([["A boat."], ["A tree, a kite."]], [set(), set()], ["A boat, a boat.", "A tree, a car."])
    assert scores == {"class_recall": pytest.approx(2 / 3), "class_precision": pytest.approx(2 / 3)}
    assert mention_scores([["A boat."]], [set()], ["Nothing."]) == {"class_recall": 0.0, "class_precision": 0.0}
    assert mention_scores([["Nothing."]], [set()], ["Nothing."]) == {"class_recall": None, "class_precision": None}
    assert mentioned_classes("night sky, sky; BOATS") >= {"night sky", "boat"}


def test_an_open_attribute_is_not_asked_for():
    sea = {"cls": "sea", "colour": None, "pattern": None, "size": None}
    assert region_accuracy([sea], ["the sea"]) == {"class_accuracy": 1.0, "colour": 1.0, "exact": 1.0}
    boat = {key: BOAT[key] for key in ("cls", "colour", "pattern", "size")}
    assert region_accuracy([boat], ["a red boat"]) == {"class_accuracy": 1.0, "colour": 1.0, "exact": 0.0}
    assert region_accuracy([boat], ["a boat"])["colour"] == 0.0, "colour is asked for, so silence is not right"
    assert region_accuracy([], []) == {"class_accuracy": None, "colour": None, "exact": None}


def test_counts_and_words_outside_the_world():
    assert storybook_similarity("two boats", "three boats") == 0 and storybook_similarity("two boats", "two boats") == 1
    assert storybook_similarity("a gizmo", "A  gizmo!") == 1 and storybook_similarity("a gizmo", "a gadget") == 0
    assert storybook_similarity("", "") == 0


# --- why points were lost -----------------------------------------------------------------------------------------


def image_of(ious, right, labels=("a red boat",), phrases=("a red boat",)) -> GroundedImage:
    ious = np.array(ious, float)
    truth = GroundedTruth("a", (1, 1), ["."], list(labels), [{}] * len(ious), [None] * len(ious))
    prediction = GroundedPrediction(".", list(phrases), [{}] * ious.shape[1], [1.0] * ious.shape[1])
    return GroundedImage(truth, prediction, ious, np.array(right, float))


@pytest.mark.parametrize(
    ("iou", "right", "kind"),
    [(0.5, 1, None), (0.49, 1, "rough"), (0.25, 0, "colour"), (0.24, 0, "missed"), (0.5, 0, "colour")],
)
def test_a_pair_is_found_from_one_half_on_and_meant_from_one_quarter_on(iou, right, kind):
    image = image_of([[iou]], [[right]], phrases=["a red boat" if right else "a blue boat"])
    kinds = [fault.kind for fault in diagnose(image) if fault.kind != "surplus"]
    assert kinds == ([kind] if kind else [])
    counts = tally([image])
    assert counts["right"] == (kind is None) and sum(counts.values()) - counts["surplus"] == 1
    assert image_score(image) == pytest.approx((iou + (kind is None)) / 2)


@pytest.mark.parametrize(
    ("own", "other", "neighbour"), [(0.24, 0.5, True), (0.25, 0.5, False), (0.24, 0.49, False), (0.0, 1.0, True)]
)
def test_right_words_on_another_thing_are_a_neighbours_mask(own, other, neighbour):
    labels = ("a red boat", "a blue tree")
    image = image_of([[own], [other]], [[1], [0]], labels, ("a red boat",))
    faults = {fault.kind: fault.detail for fault in diagnose(image)}
    assert ("neighbour" in faults) == neighbour
    assert not neighbour or faults["neighbour"] == "red boat drawn on blue tree"


# --- labels that teach the encoder --------------------------------------------------------------------------------


def scene(height: int, width: int, covered: int = 0) -> Sample:
    """A sea as large as the picture, and a boat on the first `covered` pixels of every row of its upper left corner."""
    boat = np.zeros((1, height, width), bool)
    boat[0, :4, :covered] = True
    extras = {"things": [BOAT], "thing_masks": boat, "stuff": ["sea"], "stuff_masks": ~boat}
    return Sample(np.zeros((height, width, 3), np.uint8), [], "scene", extras=extras)


@pytest.mark.parametrize(("height", "labeled"), [(5, False), (6, False), (7, True), (8, True)])
def test_a_patch_is_labeled_when_more_than_half_of_it_is_picture(height, labeled):
    kinds = dense_labels([scene(height, 8)], grid=2).attributes["kind"][0]  # patches of 4 x 4; the rest is padding
    assert kinds[0].tolist() == [KINDS.index("sea")] * 2
    assert kinds[1].tolist() == [KINDS.index("sea") if labeled else IGNORE] * 2


@pytest.mark.parametrize(("covered", "kind"), [(1, "sea"), (2, "boat")])
def test_a_patch_belongs_to_the_thing_that_covers_enough_of_it(covered, kind):
    assert 1 / 4 < COVERED < 2 / 4
    labels = dense_labels([scene(8, 8, covered)], grid=2)
    assert labels.attributes["kind"][0, 0, 0] == KINDS.index(kind)
    assert bool(labels.has_box[0, 0, 0]) == (kind == "boat") and not labels.has_box[0, 1].any()
    assert (labels.attributes["colour"][0, 0, 0] == IGNORE) == (kind == "sea")


def test_a_mask_means_what_it_covers_by_more_than_half():
    sample = scene(8, 8, 4)
    half, most = torch.zeros(1, 8, 8, dtype=torch.bool), torch.zeros(1, 8, 8, dtype=torch.bool)
    half[0, :2, :4], most[0, :3, :4] = True, True
    assert mask_labels([sample], [half]).attributes["kind"].flatten().tolist() == [IGNORE]
    assert mask_labels([sample], [most]).attributes["kind"].flatten().tolist() == [KINDS.index("boat")]


def test_a_mask_means_what_it_covers_most():
    sample = scene(8, 8, 4)
    tree = BOAT | {"cls": "tree"}
    other = np.zeros((1, 8, 8), bool)
    other[0, 4:, :5] = True
    things = np.concatenate([sample.extras["thing_masks"], other])
    sample.extras |= {"things": [BOAT, tree], "thing_masks": things}
    own = torch.zeros(1, 8, 8, dtype=torch.bool)
    own[0, :4, :4] = own[0, 4:, :3] = True  # all of the boat, six tenths of the tree
    assert mask_labels([sample], [own]).attributes["kind"].flatten().tolist() == [KINDS.index("boat")]
    own[0, 4:, :5] = True
    labels = mask_labels([sample], [own]).attributes
    assert labels["kind"].item() == IGNORE and labels["colour"].item() != IGNORE, "what both share is said"


def test_boxes_of_masks_end_behind_the_last_pixel():
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 4, 6] = masks[1, 1, 2] = masks[1, 3, 2] = True
    assert mask_boxes(masks).tolist() == [[6, 4, 7, 5], [2, 1, 3, 4], [0, 0, 0, 0]]
    assert mask_boxes(masks[:0]).shape == (0, 4)
