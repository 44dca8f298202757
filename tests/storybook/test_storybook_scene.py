"""The storybook records: reproducible everywhere, splits apart, unseen pairs kept, things where they belong."""

import hashlib
import subprocess
import sys
from collections import Counter

import pytest

from glamm_mini.storybook.language.vocabulary import (
    CLASSES,
    COLOURS,
    FLYING,
    HOMES,
    PATTERNS,
    PLACE_CLASSES,
    PLACES,
    SIZE_JITTER,
    SIZES,
    SPLITS,
    STUFF,
    UNSEEN_PAIRS,
)
from glamm_mini.storybook.world.layout import silhouette
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import keyed_rng

# Hashes of the first records: a change here changes the world, and WORLD_VERSION with it.
FINGERPRINTS = {
    "train": "a0f85a060bfb0aff",
    "val": "988b583a0a75e82a",
    "test": "35b04125e84c279a",
    "compositional": "663ff8e05bff7e8d",
}


def fingerprint(split: str, count: int = 20) -> str:
    records = "\n".join(repr(sample_scene(split, 0, index)) for index in range(count))
    return hashlib.sha256(records.encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def scenes():
    return {split: [sample_scene(split, 0, index) for index in range(250)] for split in SPLITS}


@pytest.mark.parametrize("split", SPLITS)
def test_records_are_the_same_everywhere(split):
    assert fingerprint(split) == FINGERPRINTS[split]


def test_records_do_not_depend_on_the_process():
    code = (
        "from glamm_mini.storybook.world.sampling import sample_scene; import hashlib; "
        "print(hashlib.sha256(repr(sample_scene('test', 3, 11)).encode()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(repr(sample_scene("test", 3, 11)).encode()).hexdigest()


def test_splits_and_seeds_never_meet():
    seen = Counter()
    for split in SPLITS:
        for seed in (0, 1):
            for index in range(60):
                scene = sample_scene(split, seed, index)
                seen[repr((scene.stuff, scene.things))] += 1
    assert max(seen.values()) == 1


def test_keys_give_streams_of_their_own():
    draws = [keyed_rng("train", 0, 5, purpose).random() for purpose in ("scene", "look", "scene")]
    assert draws[0] == draws[2] != draws[1]
    assert keyed_rng("train", 1, 23).random() != keyed_rng("train", 12, 3).random()


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="trian.*train, val, test, compositional"):
        sample_scene("trian", 0, 0)


def test_vocabulary_is_complete():
    assert len(CLASSES) >= 16 and len(COLOURS) == 8 and len(PATTERNS) == len(SIZES) == 3
    assert len(STUFF) >= 7 and len(PLACES) == 5
    assert set(HOMES) == set(CLASSES) and {k for kinds in HOMES.values() for k in kinds} <= set(STUFF)
    assert set().union(*PLACE_CLASSES.values()) == set(CLASSES)


def test_unseen_pairs_are_an_eighth_and_touch_every_class_and_colour():
    assert 0.10 <= len(UNSEEN_PAIRS) / (len(CLASSES) * len(COLOURS)) <= 0.14
    assert {cls for cls, _ in UNSEEN_PAIRS} == set(CLASSES)
    assert {colour for _, colour in UNSEEN_PAIRS} == set(COLOURS)


def test_unseen_pairs_only_in_the_compositional_split(scenes):
    for split, listed in scenes.items():
        for scene in listed:
            shown = any((thing.cls, thing.colour) in UNSEEN_PAIRS for thing in scene.things)
            assert shown == (split == "compositional"), (split, scene.index)


def test_size_words_match_extents(scenes):
    for scene in scenes["train"]:
        for thing in scene.things:
            assert abs(thing.extent / SIZES[thing.size] - 1) <= SIZE_JITTER + 1e-3
    steps = sorted(SIZES.values())
    for smaller, larger in zip(steps, steps[1:], strict=False):
        assert smaller * (1 + SIZE_JITTER) * 1.2 < larger * (1 - SIZE_JITTER)


def test_stuff_tiles_the_picture_from_sky_to_floor(scenes):
    for scene in scenes["train"]:
        assert scene.stuff[0].kind in ("sky", "night sky") and scene.stuff[0].top == 0 and scene.stuff[-1].bottom == 1
        assert 2 <= len(scene.stuff) <= 3
        for above, below in zip(scene.stuff, scene.stuff[1:], strict=False):
            assert above.bottom == below.top < below.bottom - 0.12


def test_things_are_inside_and_where_they_belong(scenes):
    for scene in scenes["val"]:
        width, height = scene.aspect
        horizon = scene.stuff[0].bottom
        assert 2 <= len(scene.things) <= 7
        for thing in scene.things:
            assert thing.cls in PLACE_CLASSES[scene.place] and set(HOMES[thing.cls]) & {s.kind for s in scene.stuff}
            box_width, box_height, _ = silhouette(thing.cls, thing.variant, thing.flip)
            half_x = box_width * thing.extent * (height / width) ** 0.5 / 2
            half_y = box_height * thing.extent * (width / height) ** 0.5 / 2
            assert half_x <= thing.x <= 1 - half_x and half_y <= thing.y <= 1 - half_y
            foot = thing.y + half_y
            if thing.cls in FLYING:
                assert thing.y < horizon + 0.02 + half_y
            else:
                assert any(s.kind in HOMES[thing.cls] and s.top < foot <= s.bottom for s in scene.stuff), thing


def test_nearer_ground_things_hide_farther_ones(scenes):
    for scene in scenes["val"]:
        feet = []
        for thing in scene.things:
            if thing.cls not in FLYING and thing.cls != "mountain":
                _, box_height, _ = silhouette(thing.cls, thing.variant, thing.flip)
                feet.append(thing.y + box_height * thing.extent * (scene.aspect[0] / scene.aspect[1]) ** 0.5 / 2)
        assert feet == sorted(feet)


def test_the_world_is_varied(scenes):
    train = scenes["train"] + scenes["val"]
    things = [thing for scene in train for thing in scene.things]
    for name, values, share in (("cls", CLASSES, 0.02), ("colour", COLOURS, 0.09), ("pattern", PATTERNS, 0.18),
                                ("size", SIZES, 0.2)):  # fmt: skip
        counts = Counter(getattr(thing, name) for thing in things)
        assert min(counts[value] for value in values) >= share * len(things), counts
    aspects = Counter(scene.aspect for scene in train)
    assert set(aspects) == {(1, 1), (4, 3), (3, 4), (3, 1)} and aspects[1, 1] > 0.4 * len(train)
    assert {s.kind for scene in train for s in scene.stuff} == set(STUFF)
    twins = sum(len({t.cls for t in scene.things}) < len(scene.things) for scene in train)
    assert 0.3 < twins / len(train) < 0.85
