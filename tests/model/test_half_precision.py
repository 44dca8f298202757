"""The tiny model in half precision says nearly the same as in float32, and draws the same things alike."""

from difflib import SequenceMatcher

import numpy as np
import pytest

import glamm_mini
from glamm_mini.assistant.assistant import Request
from glamm_mini.storybook.dataset import evaluation_samples

SEED = 2024  # scenes that neither training nor its validation drew


def described(dtype: str) -> list:
    glamm = glamm_mini.load("tiny", device="cpu", dtype=dtype)
    scenes = evaluation_samples("gcg", "test", SEED, 6)
    return glamm.answer_batch([Request(scene.image, glamm.wording.describe) for scene in scenes])


@pytest.fixture(scope="module")
def exact():
    return described("float32")


@pytest.mark.parametrize("dtype, words", [("bfloat16", 0.7), ("float16", 0.95)])
def test_answers_agree_with_float32(exact, dtype, words):
    """bfloat16 has 8 bits of fraction: where two words are nearly as likely, the other one may win."""
    answers, alike, overlaps = described(dtype), [], []
    for full, half in zip(exact, answers, strict=True):
        alike.append(SequenceMatcher(None, full.caption.split(), half.caption.split()).ratio())
        masks = {phrase.text: phrase.mask for phrase in full.phrases}
        for phrase in half.phrases:
            assert phrase.mask.dtype == bool and phrase.mask.shape == full.image.shape[:2]
            assert np.isfinite(phrase.score) and 0 <= phrase.score <= 1
            if phrase.text in masks:
                both, either = masks[phrase.text] & phrase.mask, masks[phrase.text] | phrase.mask
                overlaps.append(both.sum() / either.sum())
    assert np.mean(alike) > words, alike
    assert len(overlaps) >= len(exact) and np.median(overlaps) > 0.97, overlaps
