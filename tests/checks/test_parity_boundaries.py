"""The comparison of numbers at the edge of what is allowed."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from glamm_mini.checks.parity import compare, weights
from glamm_mini.checks.parity.compare import FEATURES, GRADIENTS, LOGITS, Comparison, measured_row, tolerance_of


@pytest.mark.parametrize(("share", "ok"), [(0.0, True), (1.0, True), (1.0 + 1e-9, False), (math.nan, False)])
def test_all_of_the_tolerance_may_be_used_up(share, ok):
    row = Comparison("vision", "a", 0.5, 1e-4, share)
    assert row.ok is ok and row.to_dict()["ok"] is ok
    assert Comparison("vision", "a", math.inf, 0.0, math.inf).to_dict()["difference"] is None


@pytest.mark.parametrize(("ours", "share"), [(2.0, 1.0), (0.0, 1.0), (1.5, 0.5), (3.0, 2.0)])
def test_a_number_may_differ_by_the_tolerance_times_one_more_than_itself(ours, share):
    stored = {"a": np.array([1.0, 0.0])}
    assert weights.measure(stored, "a", np.array([ours, 0.0]), 0.5) == (abs(ours - 1), share)
    assert weights.measure(stored, "a", np.array([1.0, 0.5]), 0.5) == (0.5, 1.0), "near zero it is the tolerance"


def test_the_probe_sees_what_the_sample_does_not():
    x = np.zeros(weights.FULL_MAX + 1, np.float32)
    stored = weights.summarize("a", x)
    assert stored["a__step"] > 1 and stored["a__stats"][1] == 0
    x[1] = 1.0  # between two numbers of the sample
    largest, share = weights.measure(stored, "a", x, 1e-4)
    first = weights.z("probe/a", (2,))[1]
    assert largest == 0 and share == pytest.approx(abs(first) / math.sqrt(len(x)) / (10 * 1e-4))


def test_whole_numbers_must_be_equal():
    stored = {"a": np.array([1, 2]), "b": np.array([True])}
    assert measured_row("splice", "a", stored, np.array([1, 2]), 0.0).ok
    assert not measured_row("splice", "a", stored, np.array([1, 3]), 1.0).ok
    assert not measured_row("splice", "b", stored, np.array([False]), 1.0).ok
    other = measured_row("splice", "a", stored, np.array([1, 2, 3]), 0.0)
    assert not other.ok and "shape" in other.note


@pytest.mark.parametrize(
    ("areas", "near", "ok"),
    [([10, 7], [0, 0], True), ([12, 7], [2, 0], True), ([12, 7], [1, 0], False), ([10, 8], [5, 0], False)],
)
def test_pixels_near_the_threshold_may_fall_on_either_side(areas, near, ok):
    row = compare._area("generate", "a/mask_area", np.array([10, 7]), np.array(areas), np.array(near))
    assert row.ok is ok


def test_another_number_of_masks_fails():
    assert not compare._area("generate", "a", np.array([10, 7]), np.array([10]), np.array([9])).ok
    assert compare._area("generate", "a", np.zeros(0), np.zeros(0), np.zeros(0)).ok


@pytest.mark.parametrize(
    ("expected", "ours", "ok"),
    [
        (2.0, 2.0 * (1 + 0.9 * GRADIENTS), True), (2.0, 2.0 * (1 + 1.1 * GRADIENTS), False), (0.0, 5e-7, True),
        (0.0, 5e-6, False), (1.0, math.nan, False), (1.0, math.inf, False),
    ],
)  # fmt: skip
def test_norms_of_gradients_are_relative(expected, ours, ok):
    case = SimpleNamespace(gradient_norms=lambda tag: {"w": expected})
    assert compare._norm(case, "seg", "seg/grad_norm/w", ours).ok is ok


@pytest.mark.parametrize(("off", "ok"), [(0.9 * GRADIENTS, True), (2.5 * GRADIENTS, False)])
def test_gradients_are_compared_on_the_scale_of_the_largest_entry(off, ok):
    stored = {"seg/grad/w": np.array([1000.0, 0.0], np.float32)}
    row = compare._gradient(stored, "seg/grad/w", np.array([1000.0, 1000 * off], np.float32))
    assert row.ok is ok and row.note


def test_logits_may_differ_more_than_features():
    assert LOGITS > FEATURES
    assert tolerance_of("seg/logits") == tolerance_of("a/low_res_masks_image0") == tolerance_of("seg/loss") == LOGITS
    assert tolerance_of("seg/embeds") == tolerance_of("logits/embeds") == tolerance_of("fuse_in_level0") == FEATURES
