"""Figures of small cases that can be worked out by hand, at the values where a comparison could be one off."""

import numpy as np
import pytest
from evaluation_fakes import FakeAnswer, H, Oracle, W, figures, run
from evaluation_fakes import samples as samples_of

from glamm_mini.evaluation.gcg import (
    compare_images,
    fixed_grounding,
    official_grounding,
    official_matches,
    official_miou,
    optimal_pairs,
    unseen_grounding,
)
from glamm_mini.evaluation.masks import decode_masks, iou_matrix
from glamm_mini.evaluation.predict import compare_settings, predict_samples
from glamm_mini.evaluation.records import GroundedPrediction, GroundedTruth, read_json, strangers, write_json
from glamm_mini.evaluation.score import normalize_answer
from glamm_mini.evaluation.segmentation import (
    draw_expressions,
    fixed_refseg,
    official_refseg,
    refseg_absent,
    refseg_by_kind,
    unseen_refseg,
)
from glamm_mini.evaluation.similarity import THRESHOLD, cosine, get_similarity
from glamm_mini.evaluation.truth import TruthWriter, classes_present
from glamm_mini.processing.images import encode_mask

SIZE = (2, 4)


def mask(*pixels: int) -> dict:
    """A mask of 2 x 4 pixels, numbered row by row."""
    flat = np.zeros(8, bool)
    flat[list(pixels)] = True
    return encode_mask(flat.reshape(SIZE))


def graded(truth: str, phrase: str, attributes=None) -> float:
    """A similarity that the phrase says itself: "boat=0.5"."""
    return float(phrase.partition("=")[2] or truth == phrase)


def compared(true: list[dict], predicted: list[dict], phrases=None, scores=None, labels=None, unseen=None):
    """One image and its COCO truth; without phrases every mask has the words of the truth of its number."""
    labels = labels or [f"thing {k}" for k in range(len(true))]
    phrases = [f"thing {k}" for k in range(len(predicted))] if phrases is None else phrases
    truth = GroundedTruth("a", SIZE, ["."], labels, true, [None] * len(true), unseen or [False] * len(true))
    prediction = GroundedPrediction(".", phrases, predicted, scores or [1.0] * len(predicted))
    coco = {"images": [{"id": "a", "height": 2, "width": 4}]}
    coco["annotations"] = [{"image_id": "a", "segmentation": record} for record in true]
    return compare_images([truth], {"a": prediction}, graded), coco


# --- grounded captions --------------------------------------------------------------------------------------------


def test_two_empty_masks_are_a_hit_when_fixed_and_a_miss_officially():
    images, coco = compared([mask(), mask(0, 1)], [mask(), mask(0, 1)])
    fixed, official = fixed_grounding(images, coco), official_grounding(images, coco)
    assert {fixed[name] for name in ("miou", "recall", "precision", "pq", "phrase_accuracy")} == {1.0}
    assert [(pair.truth, pair.prediction, pair.iou) for pair in optimal_pairs(images[0])] == [(0, 0, 1.0), (1, 1, 1.0)]
    assert official["miou"] == 0.0, "the official search compares with nan, which is never larger, and ends"
    assert fixed["ap50"] < 1, "AP is pycocotools' own, for which an empty mask is found by nothing"


def test_an_empty_mask_is_not_like_a_full_one():
    images, coco = compared([mask()], [mask(0)])
    assert fixed_grounding(images, coco)["miou"] == 0 and optimal_pairs(images[0]) == []


def test_an_iou_of_exactly_one_half():
    images, coco = compared([mask(0, 1)], [mask(0)])
    fixed, official = fixed_grounding(images, coco), official_grounding(images, coco)
    assert fixed["miou"] == 0.5
    assert (fixed["recall"], fixed["precision"], fixed["phrase_accuracy"]) == (1.0, 1.0, 1.0), "0.5 is found"
    assert fixed["pq"] == 0.0, "panoptic quality asks for more than 0.5"
    assert official["recall"] == 1.0 and official_miou(images[0]) == 0.5


def test_an_iou_below_one_half():
    images, coco = compared([mask(0, 1, 2)], [mask(0)])
    fixed = fixed_grounding(images, coco)
    assert fixed["miou"] == pytest.approx(1 / 3) and fixed["recall"] == fixed["phrase_accuracy"] == 0.0
    assert official_grounding(images, coco)["recall"] == 0.0


@pytest.mark.parametrize(("value", "hit"), [(THRESHOLD, 1.0), (THRESHOLD - 0.01, 0.0)])
def test_a_similarity_at_the_threshold_is_right(value, hit):
    images, coco = compared([mask(0, 1)], [mask(0, 1)], [f"boat={value}"])
    assert fixed_grounding(images, coco)["recall"] == official_grounding(images, coco)["recall"] == hit


def test_panoptic_quality_charges_half_of_what_is_unpaired():
    # One pair of IoU 2/3, one more truth, two more predictions.
    images, coco = compared([mask(0, 1, 2), mask(7)], [mask(0, 1), mask(5), mask(6)])
    fixed = fixed_grounding(images, coco)
    assert fixed["pq"] == pytest.approx((2 / 3) / (1 + 2 / 2 + 1 / 2))
    assert fixed["miou"] == pytest.approx(1 / 3) and fixed["recall"] == 0.5
    assert fixed["precision"] == pytest.approx(1 / 3) and fixed["phrase_accuracy"] == 1.0


def test_optimal_pairs_are_not_greedy_ones():
    # The best single pair (2/3) would leave the second truth with nothing.
    images, _ = compared([mask(0, 1, 2), mask(0, 1)], [mask(0, 1), mask(2)])
    pairs = {pair.truth: (pair.prediction, pair.iou) for pair in optimal_pairs(images[0])}
    assert pairs == {0: (1, pytest.approx(1 / 3)), 1: (0, 1.0)}


def test_of_equal_masks_the_one_with_the_right_words_is_taken():
    same, other = mask(0, 1), mask(2)
    for phrases in (["wrong", "thing 0", "x"], ["thing 0", "wrong", "x"], ["x", "wrong", "thing 0"]):
        predicted = [other if phrase == "x" else same for phrase in phrases]
        fixed = fixed_grounding(*compared([same], predicted, phrases))
        assert (fixed["recall"], fixed["precision"], fixed["miou"]) == (1.0, pytest.approx(1 / 3), 1.0)
    # Right words do not outweigh a better mask.
    images, coco = compared([mask(0, 1, 2)], [mask(0, 1), mask(0, 1, 2)], ["thing 0", "wrong"])
    assert fixed_grounding(images, coco)["miou"] == 1.0 and fixed_grounding(images, coco)["recall"] == 0.0


def test_crowds_alone_give_no_ap():
    images, coco = compared([mask(0, 1)], [mask(0, 1)])
    coco["annotations"][0] |= {"iscrowd": 1}
    assert fixed_grounding(images, coco)["ap50"] is None


def test_a_mask_without_words_is_never_right_and_costs_the_official_image():
    images, coco = compared([mask(0)], [mask(0)], phrases=[])
    assert not optimal_pairs(images[0])[0].right and official_matches(images[0]) is None
    assert official_grounding(images, coco)["swallowed_errors"] == 1
    blank, _ = compared([mask(0)], [mask(0)], phrases=[" "], labels=[" "])
    assert not optimal_pairs(blank[0])[0].right
    more, _ = compared([mask(0)], [mask(0)], phrases=["thing 0", "thing 1"])
    assert optimal_pairs(more[0])[0].right and official_matches(more[0]) == [(0, 0)]


def test_the_official_search_stops_at_a_wrong_phrase():
    images, coco = compared([mask(0), mask(2, 3)], [mask(0), mask(2)], ["wrong", "thing 1"])
    assert official_matches(images[0]) == [] and fixed_grounding(images, coco)["recall"] == 0.5


def test_figures_of_nothing_are_none_or_zero():
    images, coco = compared([], [])
    fixed = fixed_grounding(images, coco)
    assert all(fixed[name] is None for name in ("ap50", "miou", "recall", "precision", "pq", "phrase_accuracy"))
    assert fixed["images_without_masks"] == 1
    images, coco = compared([], [mask(0)])
    fixed = fixed_grounding(images, coco)
    assert fixed["ap50"] is None and fixed["recall"] is None and fixed["precision"] == 0.0 and fixed["pq"] == 0.0
    images, coco = compared([mask(0)], [])
    fixed = fixed_grounding(images, coco)
    assert {fixed[name] for name in ("ap50", "miou", "recall", "precision", "pq", "phrase_accuracy")} == {0.0}
    assert official_grounding([], {"images": [], "annotations": []})["miou"] == 0.0


def test_only_fixed_ap_knows_the_answers_scores():
    images, coco = compared([mask(0)], [mask(7), mask(0)], ["x", "thing 0"], scores=[0.1, 0.9])
    assert fixed_grounding(images, coco)["ap50"] == pytest.approx(1.0)
    assert official_grounding(images, coco)["ap50"] == pytest.approx(0.5)


def test_unseen_figures_are_those_of_the_marked_things():
    images, _ = compared([mask(0, 1), mask(4, 5)], [mask(0), mask(4, 5)], unseen=[True, False])
    assert unseen_grounding(images) == {"miou": 0.5, "recall": 1.0, "phrases": 1}, "an IoU of 0.5 is found"
    images, _ = compared([mask(0, 1), mask(4, 5)], [mask(4, 5), mask(0, 1, 2)], unseen=[True, False])
    assert unseen_grounding(images) == {"miou": pytest.approx(2 / 3), "recall": 0.0, "phrases": 1}
    assert unseen_grounding(compared([mask(0)], [mask(0)])[0]) is None


# --- referring expressions ----------------------------------------------------------------------------------------


def test_p50_counts_an_iou_of_exactly_one_half():
    true, half, third = (decode_masks([mask(*pixels)])[0] for pixels in ((0, 1), (0,), (0, 1, 2, 3, 4, 5)))
    assert fixed_refseg([(true, half)]) == {"ciou": 0.5, "giou": 0.5, "p50": 1.0}
    scores = fixed_refseg([(true, half), (true, third)])
    assert scores == {"ciou": pytest.approx(3 / 8), "giou": pytest.approx((1 / 2 + 1 / 3) / 2), "p50": 0.5}
    assert fixed_refseg([]) == {"ciou": None, "giou": None, "p50": None}
    assert unseen_refseg([(true, half), (true, third)], [True, False]) == {
        "ciou": 0.5, "giou": 0.5, "p50": 1.0, "expressions": 1,
    }  # fmt: skip
    assert unseen_refseg([(true, half)], [False]) is None


def test_a_mask_is_astray_below_an_iou_of_one_tenth():
    def cut(pixels: int) -> np.ndarray:
        return np.arange(12).reshape(3, 4) < pixels

    tenth, less, half = (cut(1), cut(10)), (cut(1), cut(11)), (cut(1), cut(2))
    found = refseg_by_kind([tenth, less, half, less], ["group", "class", "class", None])
    assert list(found.items()) == [
        ("class", {"p50": 0.5, "astray": 0.5, "expressions": 2}),
        ("group", {"p50": 0.0, "astray": 0.0, "expressions": 1}),
    ]
    assert refseg_by_kind([tenth], [None]) == {}


def test_what_is_absent_and_what_is_missed():
    true, none = (np.array([[pixel, False]]) for pixel in (True, False))
    kinds = ["absent", "absent", "class", None, None]
    pairs = [(none, none), (none, true), (true, none), (true, true), (true, true)]
    assert refseg_absent(pairs, kinds) == {"false_alarms": 0.5, "missed": pytest.approx(1 / 3)}
    assert refseg_absent(pairs[2:], kinds[2:]) == {} == refseg_absent([], [])
    assert refseg_absent(pairs[:1], kinds[:1]) == {"false_alarms": 0.0, "missed": None}


def test_an_expression_without_a_prediction_counts_in_giou_alone():
    true = decode_masks([mask(0, 1), mask(2, 3)])
    scores = official_refseg([(true, true[:1])])
    assert scores["ciou"] == pytest.approx(1.0) and scores["giou"] == pytest.approx(0.5, abs=1e-4)


def test_at_most_three_expressions_are_drawn():
    assert {tuple(draw_expressions(name, 3, 0)) for name in "abcdefgh"} == {(0, 1, 2)}
    for seed in range(5):
        drawn = draw_expressions("a", 4, seed)
        assert len(set(drawn)) == 3 and set(drawn) <= {0, 1, 2, 3}
    assert len({tuple(draw_expressions(name, 20, 0)) for name in "abcde"}) > 1, "each image has a draw of its own"


# --- small parts --------------------------------------------------------------------------------------------------


def test_iou_of_two_empty_masks_is_what_is_asked_for():
    empty, full = np.zeros((1, *SIZE), bool), np.ones((1, *SIZE), bool)
    assert iou_matrix(empty, empty).item() == 1.0 and np.isnan(iou_matrix(empty, empty, empty=np.nan).item())
    assert iou_matrix(empty, full).item() == 0.0 and iou_matrix(full, full[:0]).shape == (1, 0)
    assert decode_masks([], (3, 5)).shape == (0, 3, 5) and decode_masks([]).shape == (0, 1, 1)


def test_trigrams_know_the_ends_of_words():
    same = get_similarity("trigram")
    assert same("A kite", "a kite", None) == pytest.approx(1.0) and same("", "", None) == 0.0
    assert 0 < same("kite", "kites", None) < 1 and same("kite", "boat", None) == 0.0
    assert cosine(np.zeros(3), np.ones(3)) == 0.0


@pytest.mark.parametrize(
    ("written", "meant"),
    [("Twenty!", "20"), ("zero", "0"), ("a  red-one", "a red 1"), ("No.", "no"), ("twenty-one", "20 1"), ("", "")],
)
def test_answers_are_compared_without_their_spelling(written, meant):
    assert normalize_answer(written) == meant


def test_ground_truth_keeps_where_a_thing_lies(tmp_path):
    run("gcg", Oracle("gcg"), tmp_path / "gcg", count=1)
    run("regcap", Oracle("regcap"), tmp_path / "regcap", count=1)
    [first, _] = read_json(tmp_path / "gcg" / "ground_truth" / "test_gcg_coco_mask_gt.json")["annotations"]
    assert first["bbox"] == [4, 4, 12, 16] and first["area"] == 12 * 16 and first["id"] == 1
    [region, _] = read_json(tmp_path / "regcap" / "ground_truth" / "test_regcap_gt.json")["annotations"]
    assert region["bbox"] == [4, 4, 12, 16] and region["area"] == 12 * 16 and region["image_id"] == region["id"] == 1


def test_classes_present_are_the_visible_ones(samples):
    sample = samples[0]
    sample.extras = {"things": [{"cls": "boat", "visible": False}, {"cls": "kite"}], "stuff": ["sea"]}
    assert classes_present(sample) == ["kite", "sea"]
    with pytest.raises(ValueError, match="'gcc'"):
        TruthWriter("gcc", "test")


def test_settings_are_compared_key_by_key(tmp_path):
    write_json(tmp_path / "settings.json", {"limit": 3, "old": 1})
    compare_settings(tmp_path, {"limit": 3, "old": 1})
    compare_settings(tmp_path / "nowhere", {"limit": 3})
    for other in ({"limit": 3}, {"limit": 3, "old": 1, "new": 2}, {"limit": 4, "old": 1}):
        with pytest.raises(ValueError, match="old|new|limit"):
            compare_settings(tmp_path, other)
    assert strangers(tmp_path, []) == []


def test_a_carelessly_drawn_mask_costs_what_it_should(tmp_path):
    """The balloon (12 x 16) moved by six of its twelve columns overlaps itself by a third."""

    class Late(Oracle):
        def answer(self, turn):
            answer = super().answer(turn)
            answer.phrases[0].mask = np.roll(turn.masks[0], 6, axis=-1)
            return answer

    run("gcg", Late("gcg"), tmp_path, count=1)
    assert figures("gcg", tmp_path)["fixed"]["miou"] == pytest.approx((1 / 3 + 1) / 2)
    assert (H, W) == (48, 64)


def test_the_masks_of_one_answer_are_put_together(tmp_path):
    """An answer may name the parts of what was asked for one by one."""

    class InParts(Oracle):
        def answer(self, turn):
            columns = np.arange(W) % 2 == 0
            masks = np.stack([turn.masks[0] & columns, turn.masks[0] & ~columns])
            return FakeAnswer("<p> one part </p> [SEG] and <p> the other </p> [SEG].", masks)

    run("refseg", InParts("refseg"), tmp_path, count=2)
    assert figures("refseg", tmp_path)["giou"] == 1.0


@pytest.mark.parametrize(("size", "asked"), [(3, [4, 4, 4]), (4, [4, 4, 4]), (5, [8, 4])])
def test_questions_of_one_image_are_asked_together(size, asked, tmp_path):
    class Counted(Oracle):
        def answer_batch(self, requests):
            self.sizes.append(len(requests))
            return super().answer_batch(requests)

    oracle = Counted("refseg")
    oracle.sizes = []
    predict_samples("refseg", oracle, samples_of("refseg", 3), tmp_path, "test", {}, batch_size=size)
    assert oracle.sizes == asked
