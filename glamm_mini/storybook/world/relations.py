"""From geometry to what can truly be said: who is left of whom, above, beside, behind, and what each stands on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from glamm_mini.storybook.language import vocabulary
from glamm_mini.storybook.world.scene import Picture, Scene, Thing

SEEN_THING = 0.0008
SEEN_STUFF = 0.01
"""Below this share of the picture a thing or a region of stuff counts as unseen: no question asks for it."""

MARGIN = 0.08
"""Two centers must be this far apart, as a share of the picture's side, before one is left of or above the other."""

ORDER = {size: rank for rank, size in enumerate(vocabulary.SIZES)}


@dataclass(frozen=True)
class Group:
    """Things that look alike: one phrase with a count. `members` index the scene's things, left to right."""

    cls: str
    colour: str
    pattern: str
    size: str
    members: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.members)


class View:
    """A scene with its picture, and what language needs to know about them; each fact is computed when first asked.

    Args:
        scene: the record; `scene.things` and `scene.stuff` are indexed by every number below.
        picture: the same scene drawn at any size.
    """

    def __init__(self, scene: Scene, picture: Picture):
        self.scene = scene
        self.picture = picture
        self.height, self.width = picture.image.shape[:2]
        self.boxes: list[list[float]] = picture.boxes.tolist()
        self._contact: dict[tuple[int, int], bool] = {}
        self._homes: dict[int, str | None] = {}

    @cached_property
    def things(self) -> tuple[int, ...]:
        """The visible things, left to right by the center of the visible box."""
        masks = self.picture.thing_masks
        least = SEEN_THING * self.height * self.width
        seen = [k for k in range(len(masks)) if np.count_nonzero(masks[k]) >= least]
        return tuple(sorted(seen, key=lambda k: (self.center(k)[0], k)))

    @cached_property
    def stuff(self) -> dict[str, tuple[int, ...]]:
        """Visible kinds of stuff, from back to front, to the indices of their regions."""
        regions: dict[str, list[int]] = {}
        for k, stuff in enumerate(self.scene.stuff):
            regions.setdefault(stuff.kind, []).append(k)
        least = SEEN_STUFF * self.height * self.width
        masks = self.picture.stuff_masks
        return {
            kind: tuple(where)
            for kind, where in regions.items()
            if sum(np.count_nonzero(masks[k]) for k in where) >= least
        }

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The visible things with like ones joined, ordered by the leftmost member."""
        alike: dict[tuple[str, str, str, str], list[int]] = {}
        for k in self.things:
            thing = self.thing(k)
            alike.setdefault((thing.cls, thing.colour, thing.pattern, thing.size), []).append(k)
        return tuple(Group(*key, tuple(members)) for key, members in alike.items())

    @cached_property
    def sky(self) -> str | None:
        """The visible sky's kind, or None."""
        return next((kind for kind in self.stuff if kind in vocabulary.SKIES), None)

    @cached_property
    def ground(self) -> tuple[str, ...]:
        """The visible kinds of stuff that are not a sky, from back to front."""
        return tuple(kind for kind in self.stuff if kind not in vocabulary.SKIES)

    def thing(self, k: int) -> Thing:
        """The record of thing `k`."""
        return self.scene.things[k]

    def center(self, k: int) -> tuple[float, float]:
        """Center of the visible box, as fractions of width and height."""
        x0, y0, x1, y1 = self.boxes[k]
        return (x0 + x1) / (2 * self.width), (y0 + y1) / (2 * self.height)

    def thing_mask(self, members: tuple[int, ...]) -> np.ndarray:
        """(H, W) bool: the visible pixels of all `members` together."""
        masks = self.picture.thing_masks
        return masks[members[0]] if len(members) == 1 else masks[list(members)].any(axis=0)

    def stuff_mask(self, kind: str) -> np.ndarray:
        """(H, W) bool: the visible pixels of all regions of a kind together."""
        masks, where = self.picture.stuff_masks, self.stuff[kind]
        return masks[where[0]] if len(where) == 1 else masks[list(where)].any(axis=0)

    # ---- relations of two things: true only where they are beyond dispute ----

    def left_of(self, a: int, b: int, margin: float = MARGIN) -> bool:
        """Whether the center of `a` lies left of that of `b` by more than `margin` of the width."""
        return self.center(b)[0] - self.center(a)[0] > margin

    def above(self, a: int, b: int, margin: float = MARGIN) -> bool:
        """Whether `a` is higher in the picture by more than `margin` of the height."""
        return self.center(b)[1] - self.center(a)[1] > margin

    def over(self, a: int, b: int) -> bool:
        """Whether `a` flies above `b`: it ends where `b` starts, roughly, and their columns overlap.

        On the ground, what is higher in the picture is farther away and not "above".
        """
        if self.thing(a).cls not in vocabulary.FLYING:
            return False
        (ax0, _, ax1, ay1), (bx0, by0, bx1, by1) = self.boxes[a], self.boxes[b]
        shared = min(ax1, bx1) - max(ax0, bx0)
        return shared > 0.4 * min(ax1 - ax0, bx1 - bx0) and ay1 <= by0 + 0.15 * (by1 - by0)

    def beside(self, a: int, b: int) -> bool:
        """Whether `a` and `b` stand side by side: a narrow gap between them, most of their rows shared."""
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = self.boxes[a], self.boxes[b]
        gap = max(ax0, bx0) - min(ax1, bx1)
        shared = min(ay1, by1) - max(ay0, by0)
        narrow = min(ax1 - ax0, bx1 - bx0)
        close = -0.3 * narrow < gap < 0.1 * (self.width + self.height) / 2
        return close and shared > 0.5 * min(ay1 - ay0, by1 - by0)

    def behind(self, a: int, b: int) -> bool:
        """Whether `b` hides a part of `a`: it is drawn later, their boxes overlap and their masks touch."""
        return a < b and self._touch(a, b)

    def _touch(self, a: int, b: int) -> bool:
        """Whether the boxes overlap by a tenth of the smaller and the masks border on each other."""
        if (a, b) not in self._contact:
            self._contact[(a, b)] = self._measure_touch(a, b)
        return self._contact[(a, b)]

    def _measure_touch(self, a: int, b: int) -> bool:
        (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = self.boxes[a], self.boxes[b]
        x0, y0, x1, y1 = (int(v) for v in (max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1)))
        if x1 - x0 < 2 or y1 - y0 < 2:
            return False
        smaller = min((ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0))
        if (x1 - x0) * (y1 - y0) < 0.1 * smaller:
            return False
        # One pixel more on each side: what the front one covers of the back one borders just outside.
        rows, columns = slice(max(0, y0 - 1), y1 + 1), slice(max(0, x0 - 1), x1 + 1)
        back = self.picture.thing_masks[a, rows, columns]
        front = self.picture.thing_masks[b, rows, columns]
        border = np.count_nonzero(back[:, :-1] & front[:, 1:]) + np.count_nonzero(back[:, 1:] & front[:, :-1])
        border += np.count_nonzero(back[:-1] & front[1:]) + np.count_nonzero(back[1:] & front[:-1])
        return border >= 0.03 * (self.width + self.height) / 2

    def home(self, k: int) -> str | None:
        """The visible kind of stuff that thing `k` stands on, swims or flies in, by the pixels around it.

        None where the surroundings leave it open, such as for a bird before a hill.
        """
        if k not in self._homes:
            self._homes[k] = self._find_home(k)
        return self._homes[k]

    def _find_home(self, k: int) -> str | None:
        x0, y0, x1, y1 = (int(v) for v in self.boxes[k])
        rim = max(2, self.height // 40)
        flies = self.thing(k).cls in vocabulary.FLYING
        # What flies has its home all around it, what stands has it at its foot.
        rows = slice(max(0, (y0 if flies else y1) - rim), y1 + rim)
        columns = slice(max(0, x0 - rim), x1 + rim)
        areas = {
            kind: sum(np.count_nonzero(self.picture.stuff_masks[part, rows, columns]) for part in parts)
            for kind, parts in self.stuff.items()
        }
        best = max(areas, key=areas.__getitem__, default=None)
        if best is None or areas[best] < 0.55 * sum(areas.values()) or areas[best] == 0:
            return None
        return best if best in vocabulary.HOMES[self.thing(k).cls] else None

    def relation(self, a: int, b: int) -> list[str]:
        """Every relation of `a` to `b` that surely holds, of RELATIONS."""
        return [name for name, holds in RELATIONS.items() if holds(self, a, b)]


RELATIONS = {
    "left": lambda view, a, b: view.left_of(a, b),
    "right": lambda view, a, b: view.left_of(b, a),
    "above": lambda view, a, b: view.over(a, b),
    "below": lambda view, a, b: view.over(b, a),
    "beside": lambda view, a, b: view.beside(a, b),
    "behind": lambda view, a, b: view.behind(a, b),
    "front": lambda view, a, b: view.behind(b, a),
}
"""Name to the test of "a <name> b" on a View."""

LOOSE = {
    "left": lambda view, a, b: view.left_of(a, b, -MARGIN / 2),
    "right": lambda view, a, b: view.left_of(b, a, -MARGIN / 2),
    "above": lambda view, a, b: view.above(a, b, 0.0),
    "below": lambda view, a, b: view.above(b, a, 0.0),
    "beside": lambda view, a, b: _gap(view, a, b) < 0.3,
    "behind": lambda view, a, b: _gap(view, a, b) < 0.02,
    "front": lambda view, a, b: _gap(view, a, b) < 0.02,
}
"""Name to a test that is True already where somebody might say "a <name> b": other candidates must fail it."""


def _gap(view: View, a: int, b: int) -> float:
    """The gap between two boxes along the wider-apart axis, as a share of the mean side; negative if they overlap."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = view.boxes[a], view.boxes[b]
    gap = max(max(ax0, bx0) - min(ax1, bx1), max(ay0, by0) - min(ay1, by1))
    return gap / ((view.width + view.height) / 2)
