"""The storybook pictures: masks that fit the drawing, the same picture at every size, nameable colours."""

import time

import numpy as np
import pytest
from PIL import Image

from glamm_mini.storybook.language.vocabulary import CLASSES, COLOURS, PATTERNS, SIZES
from glamm_mini.storybook.world.art import brush as paint
from glamm_mini.storybook.world.art.forms import FORMS
from glamm_mini.storybook.world.art.things import coarse_silhouette
from glamm_mini.storybook.world.layout import GRID, silhouette
from glamm_mini.storybook.world.render import boxes_around, picture_size, render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import Scene, Stuff, Thing
from glamm_mini.storybook.world.silhouettes import SILHOUETTES


def alone(cls: str, form: int = 0, colour: str = "red", pattern: str = "plain", size: str = "large") -> Scene:
    """A scene of one thing in the middle of the sky."""
    thing = Thing(cls, colour, pattern, size, 0.5, 0.5, SIZES[size], False, (form + 0.5) / len(FORMS[cls]))
    return Scene("test", 0, 0, "town", (1, 1), (Stuff("sky", 0.0, 1.0),), (thing,))


@pytest.fixture(scope="module")
def drawn():
    scenes = [sample_scene(split, 4, index) for split in ("val", "compositional") for index in range(50)]
    return [(scene, render(scene)) for scene in scenes]


def test_shapes_and_types(drawn):
    for scene, picture in drawn:
        width, height = picture_size(scene.aspect, 128)
        assert picture.image.shape == (height, width, 3) and picture.image.dtype == np.uint8
        assert picture.thing_masks.shape == (len(scene.things), height, width) and picture.thing_masks.dtype == bool
        assert picture.stuff_masks.shape == (len(scene.stuff), height, width) and picture.stuff_masks.dtype == bool
        assert picture.boxes.shape == (len(scene.things), 4) and picture.boxes.dtype == np.float32


def test_every_pixel_has_exactly_one_mask(drawn):
    for _, picture in drawn:
        assert (picture.thing_masks.sum(0) + picture.stuff_masks.sum(0) == 1).all()


def test_every_thing_can_be_seen(drawn):
    for scene, picture in drawn:
        for thing, mask in zip(scene.things, picture.thing_masks, strict=True):
            whole = Scene(scene.split, scene.seed, scene.index, scene.place, scene.aspect, scene.stuff, (thing,))
            assert mask.sum() >= 60, (scene.index, thing)
            assert mask.sum() >= 0.42 * render(whole).thing_masks[0].sum(), (scene.index, thing)


def test_a_real_share_of_things_is_partly_hidden(drawn):
    hidden, count = 0, 0
    for scene, picture in drawn[:40]:
        for thing, mask in zip(scene.things, picture.thing_masks, strict=True):
            whole = Scene(scene.split, scene.seed, scene.index, scene.place, scene.aspect, scene.stuff, (thing,))
            hidden, count = hidden + (mask.sum() < 0.96 * render(whole).thing_masks[0].sum()), count + 1
    assert hidden > 0.15 * count


def test_boxes_fit_their_masks(drawn):
    for _, picture in drawn:
        for box, mask in zip(picture.boxes.astype(int), picture.thing_masks, strict=True):
            x0, y0, x1, y1 = box
            inside = mask[y0:y1, x0:x1]
            assert inside.sum() == mask.sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_an_empty_mask_has_a_box_of_zeros():
    assert boxes_around(np.zeros((1, 4, 5), bool)).tolist() == [[0, 0, 0, 0]]


def test_the_front_thing_hides_the_one_behind():
    stuff = (Stuff("sky", 0.0, 1.0),)
    back, front = (Thing("rock", c, "plain", "large", x, 0.5, 0.36) for c, x in (("red", 0.45), ("blue", 0.6)))
    picture = render(Scene("test", 0, 0, "town", (1, 1), stuff, (back, front)))
    swapped = render(Scene("test", 0, 0, "town", (1, 1), stuff, (front, back)))
    for shown in (picture, swapped):
        assert shown.thing_masks[1].sum() > 1.2 * shown.thing_masks[0].sum()
    assert abs(picture.image[picture.thing_masks[1]].mean(0) - COLOURS["blue"]).max() < 60


def test_the_same_picture_at_every_size(drawn):
    overlaps = []
    for scene, small in drawn[::4]:
        large = render(scene, long_side=512)
        height, width = small.image.shape[:2]
        for thing, mask, fine in zip(scene.things, small.thing_masks, large.thing_masks, strict=True):
            if thing.size == "small" or mask.sum() < 250:
                continue
            coarse = np.asarray(Image.fromarray(fine.astype(np.uint8) * 255).resize((width, height), Image.BOX)) > 127
            overlaps.append((coarse & mask).sum() / (coarse | mask).sum())
            assert overlaps[-1] > 0.85, (scene.index, thing)  # a picket is two pixels wide
        reduced = np.asarray(Image.fromarray(large.image).resize((width, height), Image.BOX)).astype(int)
        assert np.abs(reduced - small.image).mean() < 7
    assert len(overlaps) > 20 and np.mean(overlaps) > 0.94


def test_rendering_is_repeatable():
    scene = sample_scene("val", 0, 1)
    first, second = render(scene), render(scene)
    assert (first.image == second.image).all() and (first.thing_masks == second.thing_masks).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_every_form_draws_its_extent_and_matches_its_silhouette(cls):
    assert len(FORMS[cls]) == len(SILHOUETTES[cls])
    for number, form in enumerate(FORMS[cls]):
        scene = alone(cls, number)
        thing, picture = scene.things[0], render(scene, long_side=512)
        width, height, cells = silhouette(cls, thing.variant, False)
        assert (width, height) == (form.width, form.height)
        x0, y0, x1, y1 = picture.boxes[0]
        assert abs(max(x1 - x0, y1 - y0) / 512 / thing.extent - 1) < 0.05
        assert abs((x1 - x0) / 512 / thing.extent - width) < 0.05
        assert abs((y1 - y0) / 512 / thing.extent - height) < 0.05
        old, new = (f"{int(rows, 16):0{GRID * GRID}b}" for rows in (SILHOUETTES[cls][number][2],
                                                                    coarse_silhouette(cls, number)))  # fmt: skip
        assert sum(a != b for a, b in zip(old, new, strict=True)) <= 0.05 * GRID**2, (cls, number)
        assert "".join(str(int(cell)) for row in cells for cell in row) == old


@pytest.mark.parametrize("cls", CLASSES)
def test_patterns_can_be_told(cls):
    for number in range(len(FORMS[cls])):
        for size in ("medium", "large"):
            images = [render(alone(cls, number, "blue", pattern, size)).image.astype(int) for pattern in PATTERNS]
            mask = render(alone(cls, number, "blue", "plain", size)).thing_masks[0]
            for a, b in ((0, 1), (0, 2), (1, 2)):
                changed = (np.abs(images[a] - images[b]).max(-1) > 40)[mask].mean()
                assert changed > 0.1, (cls, number, size, PATTERNS[a], PATTERNS[b], changed)


def _named_shares(image: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Which share of the mask is nearest to each named colour, in the light or in the shade; details left out."""
    tones = [(name, paint.mix(c, paint.INK, s)) for name, c in COLOURS.items() for s in (0.0, 0.22, 0.4)]
    details = (paint.INK, paint.WOOD, paint.BARK, paint.GLASS, paint.LAMP, paint.TYRE, paint.LEAF, paint.SLATE,
               paint.STEM)  # fmt: skip
    tones += [("", c) for c in details]
    pixels = image[mask].astype(int)
    nearest = ((pixels[:, None] - np.array([c for _, c in tones])) ** 2).sum(-1).argmin(1)
    names = np.array([name for name, _ in tones])[nearest]
    return {name: float((names == name).mean()) for name in COLOURS}


@pytest.mark.parametrize("cls", CLASSES)
def test_the_named_colour_dominates(cls):
    for number in range(len(FORMS[cls])):
        for colour in COLOURS:
            for pattern in PATTERNS:
                picture = render(alone(cls, number, colour, pattern))
                shares = _named_shares(picture.image, picture.thing_masks[0])
                own = shares.pop(colour)
                if pattern != "plain" and colour != "white":
                    shares.pop("white")  # the second colour of all patterns
                assert own > 0.2 and own > max(shares.values()), (cls, number, colour, pattern, own, shares)


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="long_side >= 16"):
        render(sample_scene("val", 0, 0), long_side=8)


def test_rendering_is_quick_enough_to_train_on():
    scenes = [sample_scene("train", 0, index) for index in range(80)]
    for scene in scenes:
        render(scene)  # fills the caches
    start = time.process_time()
    for scene in scenes:
        render(scene)
    assert (time.process_time() - start) / len(scenes) < 0.020


def test_patterns_reach_all_of_a_thing():
    pattern = render(alone("rock", 0, "blue", "striped"), long_side=256)
    plain = render(alone("rock", 0, "blue", "plain"), long_side=256)
    changed = np.abs(pattern.image.astype(int) - plain.image).max(-1) > 40
    x0, y0, x1, y1 = plain.boxes[0].astype(int)
    for piece in np.array_split(changed[y0:y1, x0:x1], 5, axis=1):
        assert piece.mean() > 0.12
