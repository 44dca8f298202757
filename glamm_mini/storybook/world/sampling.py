"""Composes scenes: the place, its stuff, and things that stand where they belong."""

import random
from collections.abc import Sequence

from glamm_mini.storybook.language.vocabulary import (
    COLOURS,
    GROUNDS,
    PLACE_CLASSES,
    PLACES,
    SIZE_JITTER,
    SIZES,
    SPLITS,
    UNSEEN_PAIRS,
)
from glamm_mini.storybook.world.layout import Layout, fits
from glamm_mini.storybook.world.scene import Scene, Stuff, Thing, keyed_rng

ASPECTS = (((1, 1), 0.55), ((4, 3), 0.20), ((3, 4), 0.15), ((3, 1), 0.10))
_COUNTS = ((2, 0.10), (3, 0.18), (4, 0.24), (5, 0.22), (6, 0.16), (7, 0.10))
_SIZE_ODDS = (("small", 0.32), ("medium", 0.36), ("large", 0.32))
_PATTERN_ODDS = (("plain", 0.50), ("striped", 0.25), ("dotted", 0.25))
_SINGLES = ("sun", "lighthouse")  # two of them would look odd
_NIGHT, _TWIN, _SAME_COLOUR, _CROWD = 0.26, 0.26, 0.40, 0.48


def weighted_pick(rng: random.Random, odds: Sequence[tuple]):
    """One of the (value, weight) pairs' values; uses a single `rng.random()`."""
    mark = rng.random() * sum(weight for _, weight in odds)
    for value, weight in odds:
        mark -= weight
        if mark < 0:
            return value
    return odds[-1][0]


def sample_scene(split: str, seed: int, index: int) -> Scene:
    """Scene number `index` of a split; see `scene.sample_scene`."""
    if split not in SPLITS:
        raise ValueError(f"unknown storybook split {split!r}; the splits are {', '.join(SPLITS)}")
    rng = keyed_rng(split, seed, index, "scene")
    while True:
        aspect = weighted_pick(rng, ASPECTS)
        place = PLACES[int(rng.random() * len(PLACES))]
        stuff = _stuff(rng, place)
        layout = Layout(aspect, stuff)
        wanted = weighted_pick(rng, _COUNTS)
        for _ in range(3 * wanted):
            if len(layout.placed) < wanted:
                unseen = split == "compositional" and (not layout.placed or rng.random() < 0.25)
                thing = _thing(rng, place, layout, unseen)
                if thing is not None:
                    layout.add(rng, thing, _CROWD)
        if len(layout.placed) >= 2:
            things = sorted(layout.placed, key=lambda placed: placed.depth)
            return Scene(split, seed, index, place, aspect, stuff, tuple(placed.thing for placed in things))


def _stuff(rng: random.Random, place: str) -> tuple[Stuff, ...]:
    """The sky and one or two grounds below a horizon."""
    sky = "night sky" if rng.random() < _NIGHT else "sky"
    grounds = weighted_pick(rng, [(kinds, weight) for weight, kinds in GROUNDS[place]])
    horizon = round(0.40 + 0.20 * rng.random(), 4)
    if len(grounds) == 1:
        return Stuff(sky, 0.0, horizon), Stuff(grounds[0], horizon, 1.0)
    shore = round(horizon + (1 - horizon) * (0.40 + 0.22 * rng.random()), 4)
    return Stuff(sky, 0.0, horizon), Stuff(grounds[0], horizon, shore), Stuff(grounds[1], shore, 1.0)


def _thing(rng: random.Random, place: str, layout: Layout, unseen: bool) -> Thing | None:
    """A thing without a place yet. `unseen`: of a pair of class and colour that training never shows."""
    present = [placed.thing for placed in layout.placed]
    taken = {thing.cls for thing in present if thing.cls in _SINGLES}
    odds = [(cls, weight) for cls, weight in PLACE_CLASSES[place].items()
            if cls not in taken and fits(cls, layout.stuff)]  # fmt: skip
    twins = [thing for thing in present if thing.cls not in _SINGLES]
    cls, colour = weighted_pick(rng, odds), None
    if twins and not unseen and rng.random() < _TWIN:
        twin = twins[int(rng.random() * len(twins))]
        cls = twin.cls
        if rng.random() < _SAME_COLOUR and (cls, twin.colour) not in UNSEEN_PAIRS:
            colour = twin.colour
    allowed = [name for name in COLOURS if ((cls, name) in UNSEEN_PAIRS) == unseen]
    colour = colour or allowed[int(rng.random() * len(allowed))]
    size, pattern = weighted_pick(rng, _SIZE_ODDS), weighted_pick(rng, _PATTERN_ODDS)
    extent = round(SIZES[size] * (1 + SIZE_JITTER * (2 * rng.random() - 1)), 4)
    return Thing(cls, colour, pattern, size, 0.0, 0.0, extent, rng.random() < 0.5, round(rng.random(), 4))
