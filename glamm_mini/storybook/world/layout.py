"""Geometry of a scene under construction: where a thing may go, and how much of the others it would hide.

Only integers, + - * / and square roots, so that the record is equal on every machine.
"""

import math
import random
from dataclasses import dataclass, field

from glamm_mini.storybook.language.vocabulary import FLYING, HOMES, SKIES
from glamm_mini.storybook.world.art.forms import form_index
from glamm_mini.storybook.world.scene import Stuff, Thing
from glamm_mini.storybook.world.silhouettes import SILHOUETTES

GRID = 16
LEAST_SHARE = 0.56  # of a silhouette that stays visible; the coarse grid errs by up to a tenth
LEAST_PIXELS = 68  # of a picture whose longer side is 128
_MARGIN = 0.015


@dataclass(eq=False)
class Placed:
    """A thing that has found its place. Corners are fractions of width and height; a higher depth is nearer."""

    thing: Thing
    depth: float
    box: tuple[float, float, float, float]
    cells: tuple[tuple[bool, ...], ...]
    pixels: float  # area of the box at long side 128
    hidden: set[int] = field(default_factory=set)

    @property
    def solid(self) -> int:
        """How many cells the silhouette fills."""
        return sum(map(sum, self.cells))

    def covered_by(self, other: "Placed") -> set[int]:
        """The cells of this silhouette whose centers lie under another one."""
        x0, y0, x1, y1 = self.box
        left, top, right, bottom = other.box
        if left >= x1 or right <= x0 or top >= y1 or bottom <= y0:
            return set()
        across, down = (x1 - x0) / GRID, (y1 - y0) / GRID
        wide, high = GRID / (right - left), GRID / (bottom - top)
        covered = set()
        for i in range(GRID):
            row = int((y0 + (i + 0.5) * down - top) * high // 1)
            if not 0 <= row < GRID:
                continue
            for j in range(GRID):
                column = int((x0 + (j + 0.5) * across - left) * wide // 1)
                if 0 <= column < GRID and self.cells[i][j] and other.cells[row][column]:
                    covered.add(i * GRID + j)
        return covered

    def enough_left(self, hidden: set[int]) -> bool:
        """Whether what stays visible is a fair share of the thing and large enough to be seen."""
        left = self.solid - len(hidden)
        return left >= LEAST_SHARE * self.solid and left / GRID**2 * self.pixels >= LEAST_PIXELS


def silhouette(cls: str, variant: float, flip: bool) -> tuple[float, float, tuple[tuple[bool, ...], ...]]:
    """Width and height of a form's box (longer side 1) and its GRID x GRID cells."""
    forms = SILHOUETTES[cls]
    width, height, digits = forms[form_index(cls, variant, len(forms))]
    rows = [[c == "1" for c in f"{int(digits[4 * i : 4 * i + 4], 16):016b}"] for i in range(GRID)]
    return width, height, tuple(tuple(row[::-1] if flip else row) for row in rows)


class Layout:
    """The scene so far: its stuff and the things that have found a place."""

    def __init__(self, aspect: tuple[int, int], stuff: tuple[Stuff, ...]) -> None:
        self.stuff, self.placed = stuff, []
        width, height = aspect
        self._sx, self._sy = math.sqrt(height / width), math.sqrt(width / height)
        # sqrt(width * height) in pixels when the longer side has 128
        self._unit = 128 * math.sqrt(width * height) / max(width, height)

    def add(self, rng: random.Random, thing: Thing, crowd: float) -> bool:
        """Find a place for a thing (its x and y are replaced) and keep it there; False where none was found.

        crowd: how likely it is put beside or in front of a thing that is already there.
        """
        width, height, cells = silhouette(thing.cls, thing.variant, thing.flip)
        sx, sy = width * thing.extent * self._sx, height * thing.extent * self._sy
        for _ in range(14):
            spot = self._spot(rng, thing.cls, sx, sy, crowd)
            if spot is None:
                continue
            x, y, depth = round(spot[0], 4), round(spot[1], 4), spot[2]
            box = (x - sx / 2, y - sy / 2, x + sx / 2, y + sy / 2)
            pixels = width * height * (thing.extent * self._unit) ** 2
            new = Placed(Thing(thing.cls, thing.colour, thing.pattern, thing.size, x, y, thing.extent, thing.flip,
                               thing.variant), depth, box, cells, pixels)  # fmt: skip
            if self._settle(new):
                return True
        return False

    def _settle(self, new: Placed) -> bool:
        changes = []
        for old in self.placed:
            front, back = (new, old) if new.depth > old.depth else (old, new)
            covered = back.covered_by(front)
            if covered:
                changes.append((back, covered))
        after = {id(new): (new, set())}
        for back, covered in changes:
            thing, hidden = after.setdefault(id(back), (back, set(back.hidden)))
            hidden |= covered
        if not all(thing.enough_left(hidden) for thing, hidden in after.values()):
            return False
        for thing, hidden in after.values():
            thing.hidden = hidden
        self.placed.append(new)
        return True

    def _spot(self, rng, cls: str, sx: float, sy: float, crowd: float) -> tuple[float, float, float] | None:
        """Center and depth of a proposal, None where the thing does not fit in."""
        if sx > 1 - 2 * _MARGIN or sy > 1 - 2 * _MARGIN:
            return None
        flying = cls in FLYING
        homes = [stuff for stuff in self.stuff if stuff.kind in HOMES[cls]]
        stuff = homes[int(rng.random() * len(homes))]
        band = self._sky_band(cls, stuff, sy) if flying else self._ground_band(cls, stuff, sy)
        if band[0] > band[1]:
            return None
        low, high = _MARGIN + sx / 2, 1 - _MARGIN - sx / 2
        near = [other for other in self.placed if (other.thing.cls in FLYING) == flying]
        y = band[0] + (band[1] - band[0]) * rng.random()
        if near and rng.random() < crowd:
            other = near[int(rng.random() * len(near))]
            reach = 0.42 * (sx + other.box[2] - other.box[0])
            x = other.thing.x + (2 * rng.random() - 1) * reach
            if flying:
                reach = 0.42 * (sy + other.box[3] - other.box[1])
                y = min(band[1], max(band[0], other.thing.y + (2 * rng.random() - 1) * reach))
        else:
            x = max((low + (high - low) * rng.random() for _ in range(2)), key=self._room)
        return min(high, max(low, x)), y, self._depth(rng, cls, y + sy / 2)

    def _room(self, x: float) -> float:
        """How far the nearest thing is from there, across."""
        return min((abs(x - other.thing.x) for other in self.placed), default=0.0)

    @staticmethod
    def _sky_band(cls: str, sky: Stuff, sy: float) -> tuple[float, float]:
        """Range of the center: what flies low may dip below the horizon, what hangs in the sky may not."""
        low = sky.bottom - 0.01 if cls in ("sun", "star", "cloud") else sky.bottom + 0.25 * sy
        return _MARGIN + sy / 2, min(low, 1 - _MARGIN) - sy / 2

    def _ground_band(self, cls: str, stuff: Stuff, sy: float) -> tuple[float, float]:
        """Range of the center: the foot of the thing stands inside the stuff, a swimming thing lies inside."""
        depth = stuff.bottom - stuff.top
        first, last = stuff.top + 0.04 + 0.12 * depth, stuff.bottom - 0.025
        if cls == "mountain":  # far away, its foot on the horizon
            first, last = stuff.top + 0.035, stuff.top + 0.07
        elif cls == "car":
            first = stuff.top + 0.4 * depth
        elif cls == "fish":
            first = stuff.top + 0.05 + sy
        return max(_MARGIN + sy / 2, first - sy / 2), min(last, 1 - _MARGIN) - sy / 2

    @staticmethod
    def _depth(rng: random.Random, cls: str, foot: float) -> float:
        """Sun and star behind clouds, mountains behind what stands on the ground, the nearer ground in front."""
        if cls not in FLYING:
            return foot if cls == "mountain" else 1 + foot
        return {"sun": -2.0, "star": -2.0, "cloud": -1.0}.get(cls, 3.0 if rng.random() < 0.4 else -0.5) + rng.random()


def fits(cls: str, stuff: tuple[Stuff, ...]) -> bool:
    """Whether a class has a home on this stuff; a mountain needs one that reaches the horizon."""
    kinds = [s.kind for s in (stuff[1:2] if cls == "mountain" else stuff)]
    return any(kind in HOMES[cls] for kind in kinds) and (cls in FLYING or any(k not in SKIES for k in kinds))
