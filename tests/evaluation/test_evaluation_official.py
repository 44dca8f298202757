"""The official scores of a synthetic evaluation (tests/data/eval_case), figure by figure."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from glamm_mini.evaluation import records
from glamm_mini.evaluation.captioning import Captions, caption_scores, ptb_tokenize, python_tokenize
from glamm_mini.evaluation.gcg import (
    compare_images,
    fixed_grounding,
    official_grounding,
    official_matches,
    official_miou,
    optimal_pairs,
)
from glamm_mini.evaluation.masks import coco_stats, decode_masks
from glamm_mini.evaluation.segmentation import fixed_refseg, official_refseg
from glamm_mini.evaluation.similarity import get_similarity

CASE = Path(__file__).parents[1] / "files" / "eval_case"
EXPECTED = json.loads((CASE / "expected.json").read_text())
GCG = EXPECTED["gcg"]


@pytest.fixture(scope="module")
def case():
    truths, coco_truth = records.read_grounded_truth(CASE / "gcg" / "gt", "gcg", "val")
    predictions = records.read_grounded_predictions(CASE / "gcg" / "pred", [truth.image_id for truth in truths])
    return compare_images(truths, predictions, get_similarity("trigram")), coco_truth


def test_gcg_scores_are_the_official_ones(case):
    scores = official_grounding(*case)
    assert scores["ap50"] == pytest.approx(GCG["AP50"], abs=1e-12)
    assert scores["miou"] == pytest.approx(GCG["miou"], abs=1e-12)
    assert scores["recall"] == pytest.approx(GCG["recall"], abs=1e-12)
    assert (scores["true_positives"], scores["actual_positives"]) == (15, 27)
    assert scores["swallowed_errors"] == 1  # sa_007 has more masks than phrases


def test_all_twelve_coco_numbers(case):
    images, coco_truth = case
    detections = [
        {"image_id": image.truth.image_id, "category_id": 1, "segmentation": mask, "score": 1.0}
        for image in images
        for mask in image.prediction.masks
    ]
    np.testing.assert_allclose(coco_stats(coco_truth, detections), GCG["coco_stats"], atol=1e-12)


@pytest.mark.parametrize("number", range(12))
def test_gcg_image_by_image(case, number):
    image = case[0][number]
    expected = GCG["per_image"][image.truth.image_id]
    assert official_miou(image) == pytest.approx(expected["miou"], abs=1e-12)
    shape = image.ious.shape
    np.testing.assert_allclose(image.ious, np.reshape(expected["iou_gt_by_pred"], shape), atol=1e-12)
    similarities = np.reshape(expected["text_sim_gt_by_pred"], image.similarities.shape)
    np.testing.assert_allclose(image.similarities, similarities, atol=1e-12)
    matches = official_matches(image)
    if "exception" in expected:
        assert matches is None
    else:
        assert [list(match) for match in matches] == expected["matches_gt_pred"]


def test_fixed_charges_what_official_forgives(case):
    images, coco_truth = case
    official, fixed = official_grounding(*case), fixed_grounding(images, coco_truth)
    assert fixed["miou"] < official["miou"]  # misses count
    pairs = {image.truth.image_id: optimal_pairs(image) for image in images}
    # sa_006: the official search stops at a wrong phrase and loses two good pairs.
    assert sum(pair.right and pair.iou >= 0.5 for pair in pairs["sa_006"]) == 2
    # sa_007: three masks and one phrase; a mask without a phrase is never right, but costs no error.
    assert [pair.right for pair in pairs["sa_007"]].count(True) == 1
    assert 0 < fixed["recall"] <= 1 and fixed["precision"] < 1 and 0 < fixed["pq"] < 1


def test_refseg_scores_are_the_official_ones():
    items = []
    for item in json.loads((CASE / "refseg_inputs.json").read_text()):
        size = tuple(item["size"])
        items.append((decode_masks(item["gt"], size), decode_masks(item["pred"], size)))
    scores = official_refseg(items)
    assert scores["giou"] == pytest.approx(EXPECTED["refseg"]["gIoU"], abs=1e-6)  # the official one is float32
    assert scores["ciou"] == pytest.approx(EXPECTED["refseg"]["cIoU"], abs=1e-6)
    for item, expected in zip(items, EXPECTED["refseg"]["per_item"], strict=True):
        one = official_refseg([item])
        # an average of one item divides by its count + 1e-5
        assert one["giou"] == pytest.approx(expected["gIoU"], abs=2e-5)
        assert one["ciou"] == pytest.approx(expected["cIoU"], abs=1e-6)


def test_two_empty_masks_agree_only_when_fixed():
    empty = np.zeros((1, 4, 4), bool)
    assert official_refseg([(empty, empty)])["giou"] < 1
    assert fixed_refseg([(empty[0], empty[0])]) == {"ciou": 1.0, "giou": 1.0, "p50": 1.0}


def _corpora(case) -> dict[str, Captions]:
    images = case[0]
    truth = json.loads((CASE / "region_gt.json").read_text())
    found = records.read_results(CASE / "region_results")
    regions = Captions(
        [[annotation["caption"]] for annotation in truth["annotations"]],
        [found[str(annotation["image_id"])] for annotation in truth["annotations"]],
    )
    gcg = Captions([image.truth.captions for image in images], [image.prediction.caption for image in images])
    return {"gcg": gcg, "regcap": regions}


def test_cider_is_the_official_one(case):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    scores, _ = caption_scores(_corpora(case), meteor=False)
    assert scores["gcg"].cider == pytest.approx(GCG["caption"]["CIDEr"], abs=1e-9)
    assert scores["regcap"].cider == pytest.approx(EXPECTED["region_captioning"]["CIDEr"], abs=1e-9)
    each = [GCG["per_image"][image.truth.image_id]["caption"]["CIDEr"] for image in case[0]]
    np.testing.assert_allclose(scores["gcg"].each_cider, each, atol=1e-9)


@pytest.mark.java
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_meteor_is_the_official_one_in_any_language(case, monkeypatch):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de")  # German decimals broke METEOR
    scores, notes = caption_scores(_corpora(case))
    assert notes == []
    assert scores["gcg"].meteor == pytest.approx(GCG["caption"]["METEOR"], abs=1e-9)
    assert scores["regcap"].meteor == pytest.approx(EXPECTED["region_captioning"]["METEOR"], abs=1e-9)
    each = [GCG["per_image"][image.truth.image_id]["caption"]["METEOR"] for image in case[0]]
    np.testing.assert_allclose(scores["gcg"].each_meteor, each, atol=1e-9)


def test_without_java_meteor_is_none_and_says_why(case, monkeypatch):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores, notes = caption_scores(_corpora(case))
    assert scores["gcg"].meteor is None
    assert scores["gcg"].cider == pytest.approx(GCG["caption"]["CIDEr"], abs=0.01)
    assert any("Java" in note for note in notes)


def test_without_pycocoevalcap_both_are_none_and_say_what_to_install(case, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocoevalcap.cider.cider", None)
    scores, notes = caption_scores(_corpora(case))
    assert scores["gcg"].meteor is None and scores["gcg"].cider is None
    assert "glamm-mini[eval]" in notes[0]


@pytest.mark.java
@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer needs Java")
def test_python_tokens_are_the_ptb_tokens_of_ordinary_captions(case):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    texts = [text for corpus in _corpora(case).values() for text in corpus.hypotheses + sum(corpus.references, [])]
    texts += ["A man's dog doesn't bark;\nit (really) can't: 3.5 red-striped kites!", "", "Here you see: two boats."]
    found = [text.replace("-lrb- ", "").replace("-rrb- ", "") for text in ptb_tokenize(texts)]
    assert [python_tokenize(text) for text in texts] == found


@pytest.mark.java
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
def test_a_meteor_that_takes_too_long_is_stopped_and_noted(case):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    scores, notes = caption_scores(_corpora(case), timeout=0.2)
    assert scores["gcg"].meteor is None and scores["gcg"].cider is not None
    assert any("METEOR didn't finish" in note for note in notes)
