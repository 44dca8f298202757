"""Things that people made."""

from glamm_mini.storybook.world.art.brush import BARK, CREAM, GLASS, INK, LAMP, SLATE, TYRE, WOOD, Brush, Colour, mix
from glamm_mini.storybook.world.art.curves import arc, box, circle, smooth, soft_box
from glamm_mini.storybook.world.art.forms import form

_PLUM, _STONE = (104, 60, 84), (140, 138, 160)


def _roof(brush: Brush) -> Colour:
    """A deep tone of the thing's own colour, so that the whole of it reads as that colour."""
    return _STONE if brush.thing.colour == "white" else mix(brush.colour, _PLUM, 0.46)


def _window(brush: Brush, x0: float, y0: float, x1: float, y1: float) -> None:
    brush.part(box(x0, y0, x1, y1), LAMP, INK)
    brush.stroke((((x0 + x1) / 2, y0), ((x0 + x1) / 2, y1)), BARK, 0.8)
    brush.stroke(((x0, (y0 + y1) / 2), (x1, (y0 + y1) / 2)), BARK, 0.8)


@form("house", 1.0, 0.92)
def cottage(brush: Brush) -> None:
    """A wide cottage with a door between two windows."""
    roof = _roof(brush)
    brush.part(box(0.70, 0.0, 0.81, 0.30), roof)
    brush.body(box(0.08, 0.36, 0.92, 0.915), stripes="vertical", shade=0.06)
    brush.tone(box(0.08, 0.40, 0.92, 0.46), INK, 0.22)
    brush.part(((0.0, 0.40), (0.20, 0.06), (0.80, 0.06), (1.0, 0.40)), roof)
    brush.tone(((0.80, 0.06), (1.0, 0.40), (0.84, 0.40), (0.68, 0.06)), INK, 0.16)
    for y, x in ((0.17, 0.13), (0.285, 0.065)):
        brush.stroke(((x, y), (1 - x, y)), mix(roof, INK, 0.35), 0.8)
    brush.part(soft_box(0.43, 0.58, 0.57, 0.91, 0.05), WOOD, INK)
    brush.patch(circle(0.54, 0.76, 0.014), LAMP)
    _window(brush, 0.18, 0.53, 0.33, 0.70)
    _window(brush, 0.67, 0.53, 0.82, 0.70)


@form("house", 0.74, 1.0)
def gabled_house(brush: Brush) -> None:
    """A tall house that shows its gable."""
    roof = _roof(brush)
    brush.part(box(0.52, 0.06, 0.62, 0.34), roof)
    brush.body(((0.07, 0.42), (0.37, 0.07), (0.67, 0.42), (0.67, 0.995), (0.07, 0.995)), stripes="vertical", shade=0.06)
    brush.tone(((0.37, 0.17), (0.67, 0.50), (0.67, 0.42), (0.37, 0.08), (0.07, 0.42), (0.07, 0.50)), INK, 0.2)
    brush.part(((0.37, 0.0), (0.735, 0.41), (0.69, 0.47), (0.37, 0.11), (0.05, 0.47), (0.005, 0.41)), roof)
    brush.part(soft_box(0.29, 0.72, 0.45, 0.99, 0.06), WOOD, INK)
    _window(brush, 0.29, 0.28, 0.45, 0.42)
    _window(brush, 0.13, 0.52, 0.27, 0.65)
    _window(brush, 0.47, 0.52, 0.61, 0.65)


@form("boat", 0.94, 1.0)
def sailing_boat(brush: Brush) -> None:
    """A sloop: two sails over a wooden hull."""
    brush.stroke(((0.45, 0.01), (0.45, 0.80)), BARK, 1.8)
    brush.body(smooth((0.48, 0.02), (0.68, 0.20), (0.83, 0.44), (0.92, 0.74), (0.72, 0.76), (0.49, 0.76), (0.48, 0.40)),
               ((0.41, 0.08), (0.40, 0.76), (0.02, 0.76)), stripes="horizontal", shade=0.06)  # fmt: skip
    brush.part(smooth((0.01, 0.82), (0.30, 0.84), (0.64, 0.84), (0.93, 0.81), (0.87, 0.92), (0.74, 0.99), (0.48, 0.995),
                      (0.22, 0.99), (0.08, 0.92)), WOOD)  # fmt: skip
    brush.tone(smooth((0.09, 0.92), (0.48, 0.945), (0.86, 0.92), (0.74, 0.99), (0.48, 0.995), (0.22, 0.99)), INK, 0.18)
    brush.stroke(((0.07, 0.875), (0.48, 0.895), (0.87, 0.87)), CREAM, 1.0)


@form("boat", 1.0, 0.74)
def fishing_boat(brush: Brush) -> None:
    """A fishing boat with a cabin and a funnel."""
    brush.part(box(0.52, 0.02, 0.64, 0.28), _roof(brush))
    brush.part(soft_box(0.30, 0.18, 0.70, 0.46, 0.03), mix(CREAM, brush.colour, 0.72), brush.dark)
    for x in (0.37, 0.50, 0.63):
        brush.part(circle(x, 0.31, 0.032), GLASS, SLATE)
    brush.body(smooth((0.01, 0.38), (0.22, 0.43), (0.50, 0.45), (0.78, 0.43), (0.99, 0.34), (0.93, 0.54), (0.82, 0.70),
                      (0.50, 0.735), (0.18, 0.70), (0.07, 0.54)), stripes="vertical", shade=0.0)  # fmt: skip
    brush.tone(smooth((0.10, 0.62), (0.50, 0.66), (0.90, 0.60), (0.82, 0.70), (0.50, 0.735), (0.18, 0.70)), INK, 0.22)
    brush.stroke(((0.03, 0.41), (0.22, 0.465), (0.50, 0.485), (0.78, 0.465), (0.98, 0.38)), CREAM, 1.0)  # fmt: skip


@form("car", 1.0, 0.56)
def car(brush: Brush) -> None:
    """A small round car."""
    brush.body(smooth((0.01, 0.40), (0.04, 0.26), (0.20, 0.20), (0.32, 0.03), (0.50, 0.0), (0.66, 0.05), (0.78, 0.22),
                      (0.95, 0.28), (0.99, 0.42), (0.92, 0.475), (0.50, 0.475), (0.06, 0.475)),
               shade=0.05)  # fmt: skip
    brush.tone(box(0.03, 0.385, 0.97, 0.47), INK, 0.16)
    brush.part(((0.28, 0.20), (0.35, 0.08), (0.47, 0.06), (0.47, 0.21)), GLASS, INK)
    brush.part(((0.53, 0.06), (0.62, 0.08), (0.70, 0.21), (0.53, 0.21)), GLASS, INK)
    brush.stroke(((0.56, 0.28), (0.62, 0.28)), brush.dark, 1.2)
    brush.patch(circle(0.945, 0.345, 0.035), LAMP)
    _wheels(brush, 0.24, 0.76, 0.44, 0.115)


@form("car", 1.0, 0.66)
def van(brush: Brush) -> None:
    """A van with a tall back."""
    brush.body(smooth((0.01, 0.50), (0.02, 0.10), (0.10, 0.01), (0.60, 0.01), (0.74, 0.06), (0.86, 0.27), (0.97, 0.33),
                      (0.99, 0.52), (0.90, 0.575), (0.50, 0.575), (0.06, 0.575)), shade=0.05)  # fmt: skip
    brush.tone(box(0.02, 0.48, 0.98, 0.57), INK, 0.16)
    brush.part(((0.62, 0.10), (0.71, 0.11), (0.80, 0.28), (0.62, 0.28)), GLASS, INK)
    brush.part(soft_box(0.38, 0.10, 0.54, 0.28, 0.03), GLASS, INK)
    brush.patch(circle(0.945, 0.43, 0.032), LAMP)
    _wheels(brush, 0.24, 0.76, 0.54, 0.115)


def _wheels(brush: Brush, x0: float, x1: float, y: float, r: float) -> None:
    for x in (x0, x1):
        brush.part(circle(x, y, r), TYRE, INK)
        brush.patch(circle(x, y, 0.45 * r), CREAM)


@form("umbrella", 1.0, 0.98)
def umbrella(brush: Brush) -> None:
    """A parasol planted in the ground."""
    brush.stroke(((0.5, 0.02), (0.5, 0.965)), BARK, 2.4)
    dome = (*arc(0.5, 0.50, 0.495, 0.46, 180, 360, 24), *arc(0.87, 0.50, 0.125, 0.06, 0, -180, 6),
            *arc(0.62, 0.50, 0.125, 0.06, 0, -180, 6), *arc(0.38, 0.50, 0.125, 0.06, 0, -180, 6),
            *arc(0.13, 0.50, 0.125, 0.06, 0, -180, 6))  # fmt: skip
    brush.body(dome, stripes="vertical", shade=0.08)
    brush.tone(smooth((0.12, 0.30), (0.26, 0.13), (0.34, 0.10), (0.24, 0.24), (0.17, 0.40), (0.09, 0.42)), CREAM, 0.4)
    for rx in (0.20, -0.20):
        brush.stroke(arc(0.5, 0.50, rx, 0.455, -86, -6, 14), brush.dark, 0.7)
    brush.part(circle(0.5, 0.03, 0.022), BARK)


@form("lighthouse", 0.46, 1.0)
def lighthouse(brush: Brush) -> None:
    """A tapering tower with a lit lantern."""
    brush.part(box(0.15, 0.12, 0.31, 0.26), LAMP, INK)
    brush.stroke(((0.23, 0.12), (0.23, 0.26)), INK, 0.8)
    brush.part(((0.10, 0.125), (0.23, 0.0), (0.36, 0.125)), _roof(brush))
    brush.body(((0.13, 0.28), (0.33, 0.28), (0.445, 0.995), (0.015, 0.995)), stripes="horizontal", shade=0.06)
    brush.tone(((0.25, 0.28), (0.33, 0.28), (0.445, 0.995), (0.28, 0.995)), INK, 0.14)
    brush.part(soft_box(0.08, 0.245, 0.38, 0.295, 0.02), SLATE)
    brush.part(soft_box(0.18, 0.84, 0.28, 0.99, 0.045), WOOD, INK)
    brush.part(soft_box(0.20, 0.42, 0.26, 0.51, 0.025), GLASS, INK)
    brush.part(soft_box(0.20, 0.62, 0.26, 0.71, 0.025), GLASS, INK)


@form("fence", 1.0, 0.54)
def fence(brush: Brush) -> None:
    """Five pickets on two rails."""
    pickets = [((x, 0.12), (x + 0.07, 0.0), (x + 0.14, 0.12), (x + 0.14, 0.535), (x, 0.535))
               for x in (0.015, 0.2225, 0.43, 0.6375, 0.845)]  # fmt: skip
    brush.body(box(0.0, 0.20, 1.0, 0.275), box(0.0, 0.40, 1.0, 0.475), shade=0.0)
    brush.tone(box(0.0, 0.24, 1.0, 0.275), INK, 0.2)
    brush.tone(box(0.0, 0.44, 1.0, 0.475), INK, 0.2)
    brush.body(*pickets, shade=0.035)
