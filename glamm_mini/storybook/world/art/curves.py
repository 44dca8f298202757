"""Outlines as closed polygons in box coordinates: x to the right, y down, the longer side of the box is 1."""

import math
from functools import cache

Point = tuple[float, float]
Polygon = tuple[Point, ...]


@cache
def ellipse(cx: float, cy: float, rx: float, ry: float, corners: int = 40) -> Polygon:
    """The ellipse around (cx, cy) with radii rx and ry."""
    turns = [2 * math.pi * k / corners for k in range(corners)]
    return tuple((cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in turns)


def circle(cx: float, cy: float, r: float) -> Polygon:
    """The circle around (cx, cy)."""
    return ellipse(cx, cy, r, r)


@cache
def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float, corners: int = 20) -> Polygon:
    """Points of an ellipse from `start` to `end`, in degrees clockwise from three o'clock; not closed."""
    turns = [math.radians(start + (end - start) * k / corners) for k in range(corners + 1)]
    return tuple((cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in turns)


@cache
def smooth(*corners: Point, steps: int = 7) -> Polygon:
    """A closed curve through the corners (Catmull-Rom)."""
    count, points = len(corners), []
    for k in range(count):
        a, b, c, d = (corners[(k + j - 1) % count] for j in range(4))
        for step in range(steps):
            t = step / steps
            points.append(tuple(
                0.5 * (2 * b[i] + (c[i] - a[i]) * t + (2 * a[i] - 5 * b[i] + 4 * c[i] - d[i]) * t * t
                       + (3 * b[i] - a[i] - 3 * c[i] + d[i]) * t**3)
                for i in (0, 1)))  # fmt: skip
    return tuple(points)


def box(x0: float, y0: float, x1: float, y1: float) -> Polygon:
    """A rectangle."""
    return ((x0, y0), (x1, y0), (x1, y1), (x0, y1))


@cache
def soft_box(x0: float, y0: float, x1: float, y1: float, r: float) -> Polygon:
    """A rectangle with corners rounded by r."""
    turns = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
    return tuple(p for cx, cy, start in turns for p in arc(cx, cy, r, r, start, start + 90, 6))


@cache
def soft_star(cx: float, cy: float, outer: float, inner: float, points: int, tilt: float = -90.0) -> Polygon:
    """A star with straight sides; `tilt` is the direction of its first point in degrees."""
    turns = [(math.radians(tilt + 180 * k / points), inner if k % 2 else outer) for k in range(2 * points)]
    return tuple((cx + r * math.cos(t), cy + r * math.sin(t)) for t, r in turns)
