"""What notebook 09 builds equals the package and the reference, its graders see near misses, its pictures are right."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from glamm_mini.course.room_09 import grader as protocol
from glamm_mini.course.room_09 import pictures as views
from glamm_mini.course.room_09.lesson import (
    average_precision,
    best_pairs,
    cider,
    greedy_pairs,
    hits_by_score,
    interpolated,
    precision_recall,
    stopping_matches,
)
from glamm_mini.evaluation import records
from glamm_mini.evaluation.captioning import python_tokenize
from glamm_mini.evaluation.gcg import compare_images, official_grounding, official_matches, official_miou
from glamm_mini.evaluation.masks import coco_stats
from glamm_mini.evaluation.similarity import THRESHOLD, get_similarity
from glamm_mini.processing.images import encode_mask
from glamm_mini.visuals.palette import color

CASE = Path(__file__).parents[1] / "files" / "eval_case"
EXPECTED = json.loads((CASE / "expected.json").read_text())["gcg"]


@pytest.fixture(scope="module")
def case():
    truths, coco_truth = records.read_grounded_truth(CASE / "gcg" / "gt", "gcg", "val")
    predictions = records.read_grounded_predictions(CASE / "gcg" / "pred", [truth.image_id for truth in truths])
    return compare_images(truths, predictions, get_similarity("trigram")), coco_truth


# ---- what the notebook builds ----


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    ious, scores, images, annotations, detections = [], [], [], [], []
    for image_id in range(1, 7):
        truth = rng.random((rng.integers(1, 5), 12, 14)) < 0.4
        # Some are near a truth, some lie on one that is taken, some on nothing.
        masks = truth[rng.integers(0, len(truth), rng.integers(1, 7))] ^ (rng.random((1, 12, 14)) < rng.random() * 0.6)
        sure = np.round(rng.random(len(masks)), 1)  # equal scores occur
        images.append({"id": image_id, "height": 12, "width": 14, "file_name": ""})
        for mask in truth:
            area = float(mask.sum())
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0})
            annotations[-1] |= {"segmentation": encode_mask(mask), "area": area, "bbox": [0, 0, 14, 12]}
        for mask, score in zip(masks, sure, strict=True):
            record = {"image_id": image_id, "category_id": 1, "segmentation": encode_mask(mask), "score": float(score)}
            detections.append(record)
        both = np.einsum("ghw,phw->gp", truth.astype(int), masks.astype(int))
        ious.append(both / (truth.sum((1, 2))[:, None] + masks.sum((1, 2)) - both))
        scores.append(sure)
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    stats = coco_stats(truth, detections)
    assert average_precision(ious, scores) == pytest.approx(stats[1], abs=1e-5)
    assert average_precision(ious, scores, 0.75) == pytest.approx(stats[2], abs=1e-5)
    assert np.mean([average_precision(ious, scores, bar) for bar in protocol.BARS]) == pytest.approx(stats[0], abs=1e-5)


def test_average_precision_of_the_official_case(case):
    images, _ = case
    scores = [np.ones(image.ious.shape[1]) for image in images]
    # AP is pycocotools', for which two empty masks are a miss; for all other figures of `fixed` they are a hit.
    ious = [np.nan_to_num(image.ious) for image in images]
    assert average_precision(ious, scores) == pytest.approx(EXPECTED["AP50"], abs=1e-6)


def test_the_curve_and_its_hits_by_hand():
    hits = hits_by_score(np.array([[0.9, 0.7, 0.0], [0.0, 0.0, 0.5]]), np.array([0.8, 0.9, 0.4]))
    assert hits.tolist() == [False, True, True]
    precision, recall = precision_recall(hits, np.array([0.8, 0.9, 0.4]), 4)
    assert precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3]) and recall.tolist() == [0.25, 0.25, 0.5]
    smooth = interpolated(precision, recall)
    assert smooth.shape == (101,) and smooth[[0, 25]].tolist() == [1, 1]
    assert smooth[[26, 50]] == pytest.approx(2 / 3) and not smooth[51:].any()
    assert interpolated(np.zeros(0), np.zeros(0)).sum() == 0


def test_the_ways_of_pairing():
    rng = np.random.default_rng(5)
    for shape in [(1, 1), (2, 4), (4, 2), (5, 5), (0, 3), (3, 0)]:
        ious = rng.random(shape)
        pairs, theirs = best_pairs(ious), linear_sum_assignment(ious, maximize=True)
        assert pairs == list(zip(*(part.tolist() for part in theirs), strict=True))
        assert sum(ious[pair] for pair in greedy_pairs(ious)) <= ious[theirs].sum() + 1e-12
    assert greedy_pairs(np.array([[0.6, 0.56], [0.54, 0.0]])) == [(0, 0)], "a pair without overlap is none"


def test_greedy_pairs_and_the_search_that_stops_are_the_official_ones(case):
    for image in case[0]:
        if np.isnan(image.ious).any() or image.similarities.shape != image.ious.shape:
            continue
        values = [image.ious[pair] for pair in greedy_pairs(image.ious)]
        assert np.mean(values or [0.0]) == pytest.approx(official_miou(image), abs=1e-12)
        assert stopping_matches(image.ious, image.similarities >= THRESHOLD) == official_matches(image)
    assert official_grounding(*case)["recall"] == pytest.approx(EXPECTED["recall"])


def test_cider_is_the_reference_one(case):
    truths = [image.truth for image in case[0]]
    references = [[python_tokenize(text) for text in truth.captions] for truth in truths]
    captions = [python_tokenize(image.prediction.caption) for image in case[0]]
    assert cider(references, captions).mean() == pytest.approx(EXPECTED["caption"]["CIDEr"], abs=1e-5)
    assert cider(references, [""] * len(truths)).sum() == 0
    assert cider(references[:1], references[0][:1]).tolist() == [0], "with one picture nothing is rare"


# ---- graders ----


def test_graders_say_what_is_nearly_right():
    def only_sums(truth, masks):
        either = (truth | masks).sum()
        ratio = (truth & masks).sum() / either if either else 1.0
        return ratio, ratio

    def strikes_the_row(ious, agree):
        left, matches = ious.copy(), []
        while left.size and left.max() >= 0.5:
            row, column = np.unravel_index(left.argmax(), left.shape)
            if agree[row, column]:
                matches.append((row, column))
            left[row, :] = left[:, column] = 0
        return matches

    def without_scores(record):
        return record | {name: [entry for entry in record[name] for _ in (0, 1)] for name in ("phrases", "pred_masks")}

    assert "gIoU" in protocol.grade_averages(only_sums).message
    assert "two numbers" in protocol.grade_averages(lambda truth, masks: 0.5).message
    assert "expected" in protocol.grade_matches(strikes_the_row).message
    assert "ends too early" in protocol.grade_matches(stopping_matches).message
    assert "expected" in protocol.grade_matches(lambda ious, agree: greedy_pairs(ious)).message
    one_more = protocol.grade_matches(lambda ious, agree: [*protocol.patient_matches(ious, agree), (0, 0)])
    assert "does not count" in one_more.message
    assert protocol.grade_matches(protocol.patient_matches)
    assert "the value is" in protocol.grade_mean_ap(average_precision).message
    assert "'scores' has" in protocol.grade_twice(without_scores).message
    lists = ("phrases", "pred_masks", "scores")
    one_after_the_other = protocol.grade_twice(lambda record: record | {name: record[name] * 2 for name in lists})
    assert not one_after_the_other and "expected" in one_after_the_other.message


# ---- pictures ----


def test_the_matrix_frames_its_pairs():
    ious, agree = np.array([[0.8, 0.1], [0.0, 0.6]]), np.array([[True, False], [False, False]])
    plain = views.matrix_picture(ious, agree, ["a kite", "a " + "very " * 20 + "red boat"], [])
    framed = views.matrix_picture(ious, agree, ["a kite", "a boat"], [(0, 0), (1, 1)], title="both")
    low = views.matrix_picture(ious, agree, ["a kite", "a boat"], [(0, 0), (1, 1)], bar=0.9)
    edges = {name: set(map(tuple, np.asarray(p).reshape(-1, 3))) for name, p in (("framed", framed), ("low", low))}
    assert plain.width == 1040 and framed.height > plain.height
    for tint in (views.GREEN, views.WRONG):
        assert tint in edges["framed"] and tint not in edges["low"] - {views.GREEN}
    assert color(0) in edges["framed"] and views.UNPAIRED in edges["low"]


def test_a_higher_bar_finds_less(case):
    images = [image for image in case[0] if len(image.prediction.masks) == len(image.prediction.phrases)]
    pictures = [np.full((*image.truth.size, 3), 200, np.uint8) for image in images]
    explorer = views.bar_explorer(pictures, images)
    first = explorer.words
    explorer.choose(**{"IoU at least": 0.95})
    recalls = [float(words.split("recall ")[1].split(",")[0]) for words in (first, explorer.words)]
    assert recalls[1] < recalls[0] and "Scene 0" in first and f"All {len(images)} scenes" in first
    assert explorer.static_picture().width == 1200
    for image, picture in zip(images, pictures, strict=True):
        assert views.matching_view(picture, image).width == 1200
