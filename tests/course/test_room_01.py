"""What notebook 01 builds: run lengths and GranD-f records equal the library's, and its graders see near misses."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from glamm_mini.course.room_01 import grader as data
from glamm_mini.course.room_01 import pictures as views
from glamm_mini.course.room_01.lesson import (
    from_grandf,
    from_one_stream,
    from_own_streams,
    from_run_lengths,
    hidden_share,
    run_lengths,
    to_grandf,
)
from glamm_mini.storybook.world.sampling import sample_scene


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_run_lengths_are_those_of_pycocotools(density):
    rng = np.random.default_rng(3)
    for height, width in ((1, 1), (1, 9), (7, 1), (13, 21)):
        mask = rng.random((height, width)) < density
        counts = run_lengths(mask)
        theirs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        ours = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        assert ours["counts"] == theirs["counts"] and sum(counts[1::2]) == coco.area(theirs)
        assert np.array_equal(from_run_lengths(counts, mask.shape), mask)
    with pytest.raises(ValueError, match="hold 5 pixels; a mask of 2 x 3 has 6"):
        from_run_lengths([2, 3], (2, 3))


def test_a_grandf_record_comes_back_with_its_masks_joined():
    masks = np.zeros((3, 6, 8), bool)
    masks[0, :2], masks[1, 1:4, :3], masks[2, 3:5, 2:] = True, True, True
    caption = "Two kites over a boat."
    record = to_grandf("sa_1", caption, [(15, 21, [masks[0]]), (0, 9, list(masks[1:]))])
    assert list(record["groundings"]) == ["a boat", "Two kites"]
    assert record["groundings"]["Two kites"]["token_positives"] == [0, 9] and record["height"] == 6
    text, phrases = from_grandf(record)
    assert text == caption and [p[:2] for p in phrases] == [(0, 9), (15, 21)]
    assert np.array_equal(phrases[0][2], masks[1] | masks[2]) and phrases[0][2].dtype == bool
    with pytest.raises(ValueError, match="'a boat' is a phrase already"):
        to_grandf("sa_1", "a boat, a boat", [(0, 6, [masks[0]]), (8, 14, [masks[1]])])
    record["groundings"]["kites"] = {**record["groundings"]["a boat"], "token_positives": [4, 9]}
    with pytest.raises(ValueError, match="overlaps another"):
        from_grandf(record)


def test_one_stream_moves_all_scenes_and_own_streams_none():
    one = [from_one_stream(extra) for extra in (False, True)]
    own = [from_own_streams(extra) for extra in (False, True)]
    assert all(one[0][k] != one[1][k][:3] for k in range(1, 5))
    assert own[0] == [row[:3] for row in own[1]]


def test_what_is_in_front_hides_nothing_of_itself():
    scene = sample_scene("train", 0, 3)
    assert hidden_share(scene, len(scene.things) - 1) == 0
    assert any(hidden_share(scene, k) > 0.02 for k in range(len(scene.things)))


def test_graders_see_what_is_nearly_right():
    def wrong_side(whole):
        visible, taken = np.zeros_like(whole), np.zeros(whole.shape[1:], bool)
        for k in range(len(whole)):
            visible[k] = whole[k] & ~taken
            taken |= whole[k]
        return visible

    assert "expected" in data.grade_visible(wrong_side).message
    assert "dtype" in data.grade_visible(lambda whole: whole.astype(float)).message
    assert "case 1, for [" in data.grade_area(lambda counts: sum(counts[::2])).message
    assert not data.grade_spans(lambda text, phrases: [(text.index(p), text.index(p) + len(p)) for p in phrases])

    def spans(text, phrases, whole_words):
        out, at = [], 0
        for phrase in phrases:
            start = text.index(phrase, at)
            while whole_words and text[start + len(phrase)].isalpha():
                start = text.index(phrase, start + 1)
            at = start + len(phrase)
            out.append((start, at))
        return out

    assert data.grade_spans(lambda text, phrases: spans(text, phrases, True))
    assert not data.grade_spans(lambda text, phrases: spans(text, phrases, False)), "a kitesurfer holds no kite"


def test_views_are_pictures_of_what_they_say():
    scene = sample_scene("train", 0, 3)
    assert views.built_up(scene, most=4).width == 1200
    mask = np.eye(4, 6, dtype=bool)
    assert views.runs_picture(mask, run_lengths(mask)).height > 300
    assert views.spelled("A red kite.", [(0, 10)]).height < views.spelled("A red kite. " * 9, []).height
    image = np.full((4, 6, 3), 100, np.uint8)
    shown = np.asarray(views.outlined(image, mask, np.ones_like(mask)))
    assert len({tuple(pixel) for pixel in shown.reshape(-1, 3)}) == 2, "visible and hidden"
    picture, words = views.first_of_place({"seed": 1, "place": "winter"})
    index = int(words.split(":")[0].removeprefix("winter, seed 1, scene "))
    assert isinstance(picture, Image.Image) and sample_scene("train", 1, index).place == "winter"
