"""Masks, scores and files for whatever is drawn: equal to pycocotools to the last bit, and read back as written."""

import contextlib
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from glamm_mini.evaluation.fields import LARGEST
from glamm_mini.evaluation.gcg import GroundedImage, fixed_grounding, official_grounding, optimal_pairs
from glamm_mini.evaluation.masks import coco_stats, decode_masks, iou_matrix, run_lengths
from glamm_mini.evaluation.records import (
    GroundedPrediction,
    GroundedTruth,
    read_grounded_predictions,
    read_json,
    read_results,
    write_json,
)
from glamm_mini.evaluation.segmentation import fixed_refseg, official_refseg
from glamm_mini.processing.images import encode_mask

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
masks = sizes.flatmap(lambda size: arrays.arrays(bool, size))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text("abc_-0123456789", min_size=1, max_size=8)


def stacks(size: tuple[int, int], most: int = 4, least: int = 0):
    return st.integers(least, most).flatmap(lambda count: arrays.arrays(bool, (count, *size)))


# --- run lengths --------------------------------------------------------------------------------------------------


@given(masks)
def test_run_lengths_are_those_of_pycocotools(mask):
    theirs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    ours = encode_mask(mask)
    assert ours == {"size": list(mask.shape), "counts": theirs["counts"].decode()}
    assert np.array_equal(decode_masks([ours])[0], mask) and np.array_equal(coco_mask.decode(ours), mask)
    lengths = run_lengths(ours, "mask")
    assert lengths.sum() == mask.size and lengths[1::2].sum() == mask.sum() == coco_mask.area(theirs)
    as_list = {"size": list(mask.shape), "counts": lengths.tolist()}
    assert np.array_equal(decode_masks([as_list])[0], mask)
    assert decode_masks([theirs])[0].shape == mask.shape, "counts may be bytes"


@settings(max_examples=30)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_long_runs_are_read_as_written(lengths):
    height = sum(lengths)
    text = coco_mask.frPyObjects({"size": [height, 1], "counts": lengths}, height, 1)
    assert run_lengths(text, "mask").tolist() == lengths


def test_the_largest_picture_has_a_run_length():
    side = 2**14
    text = coco_mask.frPyObjects({"size": [side, side], "counts": [side * side - 1, 1]}, side, side)
    assert run_lengths(text, "mask").tolist() == [side * side - 1, 1] and side * side == LARGEST


@given(masks, st.integers(0, 3), st.integers(1, 5))
def test_a_run_more_or_less_is_seen(mask, place, more):
    record = {"size": list(mask.shape), "counts": run_lengths(encode_mask(mask), "mask").tolist()}
    record["counts"].insert(place, more)
    with pytest.raises(ValueError, match="^mask: "):
        run_lengths(record, "mask")


@given(st.text("0123456789:;<=?@ABCOPQRTZ`abcdenoé", max_size=12), sizes)
def test_no_text_of_counts_is_read_past_its_end(text, size):
    record = {"size": list(size), "counts": text}
    try:
        lengths = run_lengths(record, "mask")
    except ValueError as error:
        assert str(error).startswith("mask")
    else:
        assert lengths.min() >= 0 and lengths.sum() == size[0] * size[1]


# --- overlaps -----------------------------------------------------------------------------------------------------


@given(sizes.flatmap(lambda size: st.tuples(stacks(size), stacks(size))))
def test_ious_are_those_of_pycocotools(both):
    true, predicted = both
    ours = iou_matrix(true, predicted, empty=0.0)  # pycocotools takes 0 / 0 for 0
    assert ours.shape == (len(true), len(predicted))
    if ours.size:
        theirs = coco_mask.iou(*([encode_mask(m) for m in part] for part in (true, predicted)), [0] * len(predicted))
        np.testing.assert_array_equal(ours, theirs)
        filled = iou_matrix(true, predicted)
        assert (filled[~true.any((1, 2))][:, ~predicted.any((1, 2))] == 1).all()


@given(sizes.flatmap(lambda size: stacks(size, 6, 1)).filter(lambda stack: len(stack) % 2 == 0))
def test_ciou_and_giou_are_those_of_five_lines(stack):
    pairs = list(zip(stack[::2], stack[1::2], strict=True))
    both = [float((a & b).sum()) for a, b in pairs]
    either = [float((a | b).sum()) for a, b in pairs]
    ious = [i / u if u else 1.0 for i, u in zip(both, either, strict=True)]
    scores = fixed_refseg(pairs)
    assert scores["ciou"] == (sum(both) / sum(either) if sum(either) else 1.0)
    assert scores["giou"] == pytest.approx(np.mean(ious), abs=1e-15) and scores["p50"] == np.mean(np.array(ious) >= 0.5)
    official = official_refseg([(a[None], b[None]) for a, b in pairs])
    assert official["giou"] == pytest.approx(scores["giou"], abs=1e-4)
    assert official["ciou"] == pytest.approx(scores["ciou"] if sum(either) else 0.0, abs=1e-9)


# --- average precision --------------------------------------------------------------------------------------------

image = st.tuples(stacks((4, 5)), stacks((4, 5)), st.lists(st.sampled_from([0.1, 0.5, 1.0]), min_size=4, max_size=4))


def theirs(images: list) -> np.ndarray:
    """pycocotools called as its own demonstration does."""
    truth, found = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}, []
    for k, (true, predicted, scores) in enumerate(images, 1):
        truth["images"].append({"id": k, "height": 4, "width": 5})
        for mask in true:
            record = encode_mask(mask)
            number = len(truth["annotations"]) + 1
            truth["annotations"].append({"id": number, "image_id": k, "category_id": 1, "iscrowd": 0})
            truth["annotations"][-1] |= {"segmentation": record, "area": float(mask.sum())}
        for mask, score in zip(predicted, scores, strict=False):
            found.append({"image_id": k, "category_id": 1, "segmentation": encode_mask(mask), "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def grounded(images: list, named: bool) -> tuple[list[GroundedImage], dict]:
    """The same as images to score; named: ids are texts, sorted as the numbers are."""
    done, coco = [], {"images": [], "annotations": []}
    for k, (true, predicted, scores) in enumerate(images, 1):
        image_id = f"picture_{k:03}" if named else k
        coco["images"].append({"id": image_id, "height": 4, "width": 5})
        records = [encode_mask(mask) for mask in true]
        coco["annotations"] += [{"image_id": image_id, "segmentation": record} for record in records]
        labels = [str(i) for i in range(len(true))]
        truth = GroundedTruth(image_id, (4, 5), ["."], labels, records, [None] * len(true), [False] * len(true))
        said = [encode_mask(mask) for mask in predicted]
        prediction = GroundedPrediction(".", ["x"] * len(said), said, scores[: len(said)])
        ious = iou_matrix(true, predicted, np.nan)
        done.append(GroundedImage(truth, prediction, ious, np.ones((len(true), len(said)))))
    return done, coco


@settings(max_examples=40)
@given(st.lists(image, min_size=1, max_size=5), st.booleans())
def test_average_precision_is_that_of_pycocotools(images, named):
    done, coco = grounded(images, named)
    fixed = fixed_grounding(done, coco)
    if not any(len(true) for true, _, _ in images):
        assert fixed["ap50"] is None
        return
    if not any(len(predicted) for _, predicted, _ in images):
        assert fixed["ap50"] == 0.0 and coco_stats(coco, []) is None
        return
    expected = theirs(images)
    assert fixed["ap50"] == expected[1]
    equal = theirs([(true, predicted, [1.0] * 4) for true, predicted, _ in images])
    assert official_grounding(done, coco)["ap50"] == equal[1]


@settings(max_examples=40)
@given(st.lists(image, min_size=1, max_size=4))
def test_fixed_figures_are_fractions_and_agree_with_one_another(images):
    done, coco = grounded(images, True)
    fixed = fixed_grounding(done, coco)
    for name in ("ap50", "miou", "recall", "precision", "pq", "phrase_accuracy"):
        assert fixed[name] is None or 0 <= fixed[name] <= 1
    pairs = [optimal_pairs(one) for one in done]
    found = sum(pair.iou >= 0.5 for some in pairs for pair in some)
    assert found == round((fixed["recall"] or 0) * sum(len(true) for true, _, _ in images))
    for some in pairs:
        assert len({pair.truth for pair in some}) == len({pair.prediction for pair in some}) == len(some)
    again = fixed_grounding(list(reversed(done)), coco)
    assert {name: value for name, value in again.items() if name != "miou"} == {
        name: value for name, value in fixed.items() if name != "miou"
    }
    assert again["miou"] == fixed["miou"] or again["miou"] == pytest.approx(fixed["miou"])


def test_a_crowd_costs_nothing():
    true = np.zeros((2, 4, 5), bool)
    true[0, :2], true[1, 2:] = True, True
    done, coco = grounded([(true, true, [0.9, 0.8, 0.1, 0.1])], False)
    done[0].prediction.masks[1] = encode_mask(np.roll(true[1], 1, 0))
    before = fixed_grounding(done, coco)["ap50"]
    coco["annotations"][1]["iscrowd"] = 1
    assert before < fixed_grounding(done, coco)["ap50"] == pytest.approx(1.0)


# --- files --------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_json_is_read_as_written(value):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "value.json"
        write_json(path, value)
        assert read_json(path) == value and [item.name for item in path.parent.iterdir()] == ["value.json"]
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert read_json(path) == value, "as Windows' editors save it"


@settings(max_examples=30)
@given(st.dictionaries(names, st.tuples(texts, st.lists(texts, max_size=3), stacks((3, 4), 3)), min_size=1, max_size=4))
def test_predictions_are_read_as_written(predictions):
    with TemporaryDirectory() as folder:
        for image_id, (caption, phrases, found) in predictions.items():
            record = {"image_id": image_id, "caption": caption, "phrases": phrases}
            record |= {"pred_masks": [encode_mask(mask) for mask in found], "scores": [0.25] * len(found)}
            write_json(Path(folder) / f"{image_id}.json", record)
        read = read_grounded_predictions(Path(folder), [*predictions, "not there"])
        assert set(read) == set(predictions)
        for image_id, (caption, phrases, found) in predictions.items():
            assert (read[image_id].caption, read[image_id].phrases) == (caption, phrases)
            assert read[image_id].scores == [0.25] * len(found)
            assert np.array_equal(decode_masks(read[image_id].masks, (3, 4)), found)


@settings(max_examples=30)
@given(st.dictionaries(st.integers(0, 999) | names, texts, max_size=5), st.integers(1, 3))
def test_captions_are_read_as_written_whoever_wrote_them(captions, ranks):
    texts_of = {str(image_id): caption for image_id, caption in captions.items()}
    records = [{"image_id": image_id, "caption": caption} for image_id, caption in texts_of.items()]
    with TemporaryDirectory() as folder:
        for rank in range(ranks):  # each writes its share, and what padding repeats
            write_json(Path(folder) / f"results_{rank}.json", records[rank::ranks] + records[:1])
        assert read_results(Path(folder)) == texts_of
        assert json.dumps(texts_of)
