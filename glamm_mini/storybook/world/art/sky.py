"""Things that fly."""

from glamm_mini.storybook.world.art.brush import BARK, CREAM, INK, WOOD, Brush, mix
from glamm_mini.storybook.world.art.curves import arc, box, circle, ellipse, smooth, soft_box, soft_star
from glamm_mini.storybook.world.art.forms import form

BEAK = (244, 158, 60)


@form("balloon", 0.76, 1.0)
def balloon(brush: Brush) -> None:
    """A hot-air balloon with a basket."""
    for x0, x1 in ((0.22, 0.31), (0.54, 0.45), (0.38, 0.38)):
        brush.stroke(((x0, 0.66), (x1, 0.86)), BARK, 0.8)
    brush.body(
        smooth((0.38, 0.0), (0.62, 0.08), (0.75, 0.29), (0.72, 0.46), (0.56, 0.66), (0.46, 0.76),
               (0.30, 0.76), (0.20, 0.66), (0.04, 0.46), (0.01, 0.29), (0.14, 0.08)),
        stripes="vertical", shade=0.09)  # fmt: skip
    brush.tone(smooth((0.17, 0.16), (0.27, 0.08), (0.25, 0.20), (0.14, 0.38), (0.11, 0.30)), CREAM, 0.42)
    for bulge in (0.16, -0.16):
        brush.stroke(arc(0.38, 0.38, bulge, 0.37, -88, 88, 14), brush.dark, 0.5)
    brush.patch(box(0.31, 0.73, 0.45, 0.77), brush.dark)
    brush.part(soft_box(0.29, 0.85, 0.47, 0.995, 0.03), WOOD)
    brush.stroke(((0.30, 0.89), (0.46, 0.89)), BARK, 0.8)


@form("cloud", 1.0, 0.58)
def cloud(brush: Brush) -> None:
    """A heap of puffs on a flat base."""
    brush.body(circle(0.2, 0.38, 0.195), circle(0.42, 0.25, 0.25), circle(0.66, 0.29, 0.21), circle(0.84, 0.41, 0.16),
               soft_box(0.08, 0.34, 0.92, 0.575, 0.1), shade=0.06)  # fmt: skip
    _puffs(brush, ((0.40, 0.27, 0.16), (0.66, 0.31, 0.12)))


@form("cloud", 1.0, 0.48)
def long_cloud(brush: Brush) -> None:
    """A flat cloud with two heaps."""
    brush.body(circle(0.17, 0.31, 0.165), circle(0.36, 0.20, 0.20), circle(0.61, 0.24, 0.19), circle(0.80, 0.28, 0.15),
               soft_box(0.02, 0.28, 0.98, 0.475, 0.095), shade=0.05)  # fmt: skip
    _puffs(brush, ((0.35, 0.22, 0.12), (0.62, 0.26, 0.11)))


def _puffs(brush: Brush, rims: tuple) -> None:
    for x, y, r in rims:
        brush.stroke(arc(x, y, r, r, 190, 290, 12), mix(brush.colour, brush.dark, 0.45), 0.8)


@form("sun", 1.0, 1.0)
def sun(brush: Brush) -> None:
    """A disc with a friendly face and pointed rays."""
    brush.body(soft_star(0.5, 0.5, 0.5, 0.345, 14), circle(0.5, 0.5, 0.36), shade=0.0)
    brush.tone(circle(0.5, 0.5, 0.335), CREAM, 0.12)
    brush.stroke(circle(0.5, 0.5, 0.335), brush.dark, 0.8)
    _face(brush, 0.5, 0.5, 0.3)


def _face(brush: Brush, x: float, y: float, r: float) -> None:
    ink = mix(brush.dark, INK, 0.5)
    for side in (-1, 1):
        brush.patch(ellipse(x + 0.38 * r * side, y - 0.12 * r, 0.10 * r, 0.14 * r, 14), ink)
        brush.tone(ellipse(x + 0.62 * r * side, y + 0.18 * r, 0.17 * r, 0.12 * r, 14), (228, 70, 90), 0.34)
    brush.stroke(arc(x, y + 0.08 * r, 0.38 * r, 0.34 * r, 25, 155, 12), ink, 0.9)


@form("star", 1.0, 0.96)
def star(brush: Brush) -> None:
    """A plump five-pointed star."""
    brush.body(soft_star(0.5, 0.53, 0.525, 0.27, 5), shade=0.07)
    _face(brush, 0.5, 0.53, 0.24)


@form("bird", 1.0, 0.74)
def bird(brush: Brush) -> None:
    """A bird in flight, its wing raised."""
    brush.part(((0.88, 0.37), (1.0, 0.42), (0.88, 0.47)), BEAK)
    brush.body(
        smooth((0.93, 0.42), (0.84, 0.31), (0.70, 0.33), (0.55, 0.42), (0.30, 0.48), (0.02, 0.42),
               (0.10, 0.56), (0.02, 0.62), (0.28, 0.66), (0.52, 0.735), (0.76, 0.66), (0.90, 0.52)),
        smooth((0.62, 0.48), (0.60, 0.24), (0.44, 0.0), (0.34, 0.08), (0.27, 0.20), (0.28, 0.42), (0.40, 0.54)),
        shade=0.06)  # fmt: skip
    brush.tone(smooth((0.90, 0.50), (0.76, 0.56), (0.52, 0.62), (0.34, 0.62), (0.52, 0.725), (0.76, 0.65)), CREAM, 0.4)
    brush.stroke(arc(0.47, 0.36, 0.14, 0.18, 60, 170, 12), brush.dark, 0.9)
    brush.stroke(((0.44, 0.12), (0.47, 0.30)), brush.dark, 0.7)
    brush.eye(0.81, 0.42, 0.032)


@form("bird", 1.0, 0.78)
def perched_bird(brush: Brush) -> None:
    """A round bird with its wing lowered."""
    brush.part(((0.87, 0.20), (1.0, 0.27), (0.86, 0.31)), BEAK)
    brush.body(
        smooth((0.90, 0.25), (0.80, 0.025), (0.60, 0.05), (0.46, 0.26), (0.22, 0.30), (0.0, 0.14),
               (0.04, 0.38), (0.20, 0.56), (0.44, 0.68), (0.70, 0.62), (0.86, 0.44)),
        smooth((0.56, 0.32), (0.34, 0.36), (0.20, 0.62), (0.22, 0.775), (0.42, 0.70), (0.58, 0.52)),
        shade=0.06)  # fmt: skip
    brush.tone(smooth((0.88, 0.34), (0.76, 0.42), (0.62, 0.52), (0.50, 0.64), (0.70, 0.60), (0.84, 0.46)), CREAM, 0.4)
    brush.stroke(smooth((0.56, 0.32), (0.34, 0.36), (0.20, 0.62), (0.22, 0.775), (0.42, 0.70), (0.58, 0.52)),
                 brush.dark, 0.8)  # fmt: skip
    brush.eye(0.75, 0.22, 0.034)


@form("kite", 0.72, 1.0)
def kite(brush: Brush) -> None:
    """A diamond with a ribbon tail."""
    brush.stroke((*arc(0.36, 0.73, 0.07, 0.08, -90, 90, 8), *arc(0.36, 0.90, 0.09, 0.09, 270, 110, 9)), brush.dark, 1.4)
    for x, y in ((0.43, 0.74), (0.27, 0.915)):
        brush.part(((x - 0.09, y - 0.045), (x, y), (x - 0.09, y + 0.045)), brush.colour, brush.dark)
        brush.part(((x + 0.09, y - 0.045), (x, y), (x + 0.09, y + 0.045)), brush.colour, brush.dark)
    diamond = ((0.36, 0.0), (0.715, 0.27), (0.36, 0.66), (0.005, 0.27))
    brush.body(diamond, stripes="horizontal", shade=0.0)
    brush.tone(((0.36, 0.0), (0.715, 0.27), (0.36, 0.27)))
    brush.tone(((0.36, 0.27), (0.36, 0.66), (0.005, 0.27)))
    brush.stroke(((0.36, 0.0), (0.36, 0.66)), brush.dark, 0.9)
    brush.stroke(((0.005, 0.27), (0.715, 0.27)), brush.dark, 0.9)
    brush.patch(circle(0.36, 0.27, 0.03), CREAM)
