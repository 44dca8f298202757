"""Things that grow, lie or swim."""

from glamm_mini.storybook.world.art.brush import BARK, CREAM, INK, LEAF, SLATE, STEM, Brush, mix
from glamm_mini.storybook.world.art.curves import arc, box, circle, ellipse, smooth, soft_box
from glamm_mini.storybook.world.art.forms import form

SNOW = (247, 249, 252)
CARROT = (240, 132, 52)


@form("tree", 0.80, 1.0)
def tree(brush: Brush) -> None:
    """A broad crown on a trunk with two branches."""
    brush.part(((0.34, 0.58), (0.46, 0.58), (0.48, 0.90), (0.53, 0.995), (0.27, 0.995), (0.32, 0.90)), BARK)
    brush.body(circle(0.40, 0.26, 0.26), circle(0.20, 0.40, 0.195), circle(0.60, 0.40, 0.195),
               circle(0.30, 0.53, 0.19), circle(0.50, 0.53, 0.19), shade=0.08)  # fmt: skip
    brush.tone(ellipse(0.30, 0.17, 0.11, 0.08, 24), CREAM, 0.26)
    for x, y, r in ((0.33, 0.22, 0.11), (0.20, 0.42, 0.09), (0.54, 0.46, 0.09)):
        brush.stroke(arc(x, y, r, r, 170, 280, 10), brush.dark, 0.8)


@form("tree", 0.70, 1.0)
def fir(brush: Brush) -> None:
    """A fir of three tiers."""
    brush.part(box(0.29, 0.82, 0.41, 0.995), BARK)
    for top, bottom, half in ((0.46, 0.86, 0.35), (0.23, 0.63, 0.285), (0.0, 0.38, 0.21)):
        brush.body(smooth((0.35, top), (0.35 + 0.5 * half, (top + bottom) / 2), (0.35 + half, bottom - 0.02),
                          (0.35, bottom), (0.35 - half, bottom - 0.02), (0.35 - 0.5 * half, (top + bottom) / 2)),
                   stripes="horizontal", shade=0.06)  # fmt: skip


@form("flower", 0.60, 1.0)
def daisy(brush: Brush) -> None:
    """Six petals around an eye, on a stem with leaves."""
    brush.stroke(((0.30, 0.50), (0.31, 0.99)), LEAF, 3.0)
    for side in (-1, 1):
        x = 0.30
        brush.part(smooth((x, 0.90), (x + 0.10 * side, 0.74), (x + 0.26 * side, 0.70), (x + 0.18 * side, 0.84)), LEAF)
    petals = ((0.0, -0.175), (0.155, -0.088), (0.155, 0.088), (0.0, 0.175), (-0.155, 0.088), (-0.155, -0.088))
    brush.body(*(circle(0.30 + x, 0.30 + y, 0.125) for x, y in petals), shade=0.05)
    for x, y in petals:
        brush.stroke(((0.30 + 0.4 * x, 0.30 + 0.4 * y), (0.30 + 1.05 * x, 0.30 + 1.05 * y)), brush.dark, 0.6)
    heart = (150, 96, 60) if brush.thing.colour in ("yellow", "orange") else (252, 204, 84)
    brush.part(circle(0.30, 0.30, 0.085), heart)


@form("flower", 0.58, 1.0)
def tulip(brush: Brush) -> None:
    """A tulip with long leaves."""
    brush.stroke(((0.29, 0.54), (0.29, 0.99)), LEAF, 3.0)
    for side in (-1, 1):
        x = 0.29
        brush.part(smooth((x, 0.98), (x + 0.01 * side, 0.84), (x + 0.19 * side, 0.68), (x + 0.14 * side, 0.88)), LEAF)
    brush.body(smooth((0.29, 0.61), (0.07, 0.52), (0.015, 0.28), (0.05, 0.02), (0.17, 0.16), (0.29, 0.0),
                      (0.41, 0.16), (0.53, 0.02), (0.565, 0.28), (0.51, 0.52)), shade=0.06)  # fmt: skip
    brush.tone(smooth((0.07, 0.12), (0.15, 0.24), (0.16, 0.45), (0.08, 0.40), (0.05, 0.26)), CREAM, 0.35)
    brush.stroke(((0.17, 0.16), (0.22, 0.33), (0.29, 0.48)), brush.dark, 0.7)
    brush.stroke(((0.41, 0.16), (0.36, 0.33), (0.29, 0.48)), brush.dark, 0.7)


@form("rock", 1.0, 0.66)
def rock(brush: Brush) -> None:
    """A boulder with facets."""
    brush.body(((0.02, 0.50), (0.10, 0.24), (0.30, 0.05), (0.56, 0.01), (0.78, 0.13), (0.93, 0.36), (0.995, 0.58),
                (0.90, 0.655), (0.12, 0.655)), shade=0.12)  # fmt: skip
    brush.tone(((0.30, 0.05), (0.56, 0.01), (0.78, 0.13), (0.62, 0.22), (0.40, 0.26)), CREAM, 0.34)
    brush.tone(((0.78, 0.13), (0.93, 0.36), (0.995, 0.58), (0.90, 0.655), (0.76, 0.655), (0.70, 0.44), (0.62, 0.22)),
               INK, 0.12)  # fmt: skip
    for line in (((0.30, 0.05), (0.40, 0.26), (0.30, 0.42)), ((0.40, 0.26), (0.62, 0.22), (0.78, 0.13)),
                 ((0.62, 0.22), (0.70, 0.44))):  # fmt: skip
        brush.stroke(line, brush.dark, 0.8)


@form("mountain", 1.0, 0.72)
def mountain(brush: Brush) -> None:
    """One tall peak with a shoulder and a cap of snow."""
    brush.body(((0.01, 0.715), (0.28, 0.28), (0.36, 0.34), (0.56, 0.01), (0.80, 0.38), (0.99, 0.715)), shade=0.0)
    brush.tone(((0.56, 0.01), (0.80, 0.38), (0.99, 0.715), (0.66, 0.715), (0.58, 0.50), (0.64, 0.34)), INK, 0.20)
    brush.tone(((0.28, 0.28), (0.36, 0.34), (0.42, 0.245), (0.40, 0.46), (0.45, 0.715), (0.36, 0.715), (0.30, 0.48)),
               INK, 0.12)  # fmt: skip
    _cap(brush, ((0.56, 0.01), (0.67, 0.18), (0.62, 0.16), (0.58, 0.22), (0.53, 0.16), (0.47, 0.20), (0.455, 0.18)))
    _cap(brush, ((0.28, 0.28), (0.335, 0.322), (0.31, 0.37), (0.27, 0.36), (0.235, 0.375), (0.235, 0.352)))


@form("mountain", 1.0, 0.62)
def twin_peaks(brush: Brush) -> None:
    """Two peaks, the nearer one lower."""
    brush.body(((0.01, 0.615), (0.33, 0.01), (0.53, 0.36), (0.68, 0.15), (0.99, 0.615)), shade=0.0)
    brush.tone(((0.33, 0.01), (0.53, 0.36), (0.60, 0.615), (0.44, 0.615), (0.36, 0.44), (0.41, 0.28)), INK, 0.20)
    brush.tone(((0.68, 0.15), (0.99, 0.615), (0.78, 0.615), (0.72, 0.46), (0.75, 0.34)), INK, 0.20)
    _cap(brush, ((0.33, 0.01), (0.43, 0.185), (0.38, 0.17), (0.34, 0.22), (0.30, 0.17), (0.25, 0.20), (0.243, 0.175)))
    _cap(brush, ((0.68, 0.15), (0.745, 0.247), (0.70, 0.24), (0.66, 0.28), (0.63, 0.24), (0.612, 0.247)))


def _cap(brush: Brush, shape: tuple) -> None:
    light = SNOW if brush.thing.colour != "white" else (206, 220, 236)
    brush.patch(shape, light)
    brush.stroke((*shape[1:], shape[0], shape[1]), brush.dark, 0.7)


@form("snowman", 0.66, 1.0)
def snowman(brush: Brush) -> None:
    """Two balls, a hat, a scarf and a carrot."""
    for side in (-1, 1):
        brush.stroke(((0.33 + 0.2 * side, 0.62), (0.33 + 0.32 * side, 0.50)), BARK, 1.6)
    brush.body(circle(0.33, 0.75, 0.245), shade=0.08)
    brush.body(circle(0.33, 0.37, 0.185), shade=0.07)
    brush.part(soft_box(0.20, 0.50, 0.46, 0.55, 0.025), SLATE)
    brush.part(((0.40, 0.53), (0.46, 0.53), (0.47, 0.65), (0.41, 0.64)), SLATE)
    brush.part(soft_box(0.23, 0.01, 0.43, 0.17, 0.02), SLATE)
    brush.part(soft_box(0.16, 0.165, 0.50, 0.215, 0.02), SLATE)
    brush.eye(0.27, 0.33, 0.024)
    brush.eye(0.39, 0.33, 0.024)
    brush.part(((0.33, 0.37), (0.33, 0.42), (0.49, 0.41)), CARROT)
    for y in (0.66, 0.76, 0.86):
        brush.eye(0.31, y, 0.018)


@form("cactus", 0.72, 1.0)
def cactus(brush: Brush) -> None:
    """A column with two arms and a blossom."""
    brush.body((*arc(0.36, 0.18, 0.12, 0.12, 180, 360, 16), (0.48, 0.995), (0.24, 0.995)),
               soft_box(0.01, 0.30, 0.16, 0.60, 0.075), soft_box(0.01, 0.48, 0.34, 0.63, 0.07),
               soft_box(0.56, 0.20, 0.71, 0.52, 0.075), soft_box(0.40, 0.39, 0.71, 0.54, 0.07),
               shade=0.06)  # fmt: skip
    brush.tone(soft_box(0.275, 0.14, 0.325, 0.46, 0.025), CREAM, 0.3)
    for x, y0, y1 in ((0.32, 0.52, 0.66), (0.40, 0.62, 0.86), (0.31, 0.70, 0.90)):
        brush.stroke(((x, y0), (x, y1)), brush.dark, 0.8)
    blossom = (252, 206, 92) if brush.thing.colour in ("pink", "red") else (240, 120, 150)
    brush.part(smooth((0.36, 0.10), (0.28, 0.05), (0.31, 0.0), (0.36, 0.03), (0.41, 0.0), (0.44, 0.05)), blossom)


@form("mushroom", 0.96, 1.0)
def mushroom(brush: Brush) -> None:
    """A domed cap over a pale stem."""
    brush.part(smooth((0.38, 0.56), (0.58, 0.56), (0.59, 0.78), (0.64, 0.96), (0.48, 0.995), (0.32, 0.96),
                      (0.37, 0.78)), STEM, (150, 120, 110))  # fmt: skip
    brush.body(smooth((0.01, 0.54), (0.07, 0.26), (0.28, 0.05), (0.48, 0.0), (0.68, 0.05), (0.89, 0.26),
                      (0.95, 0.54), (0.80, 0.65), (0.48, 0.69), (0.16, 0.65)), shade=0.09)  # fmt: skip
    brush.tone(smooth((0.16, 0.26), (0.28, 0.12), (0.36, 0.11), (0.28, 0.22), (0.20, 0.36), (0.14, 0.36)), CREAM, 0.42)
    brush.stroke(arc(0.48, 0.57, 0.42, 0.10, 15, 165, 14), brush.dark, 0.8)


@form("fish", 1.0, 0.62)
def fish(brush: Brush) -> None:
    """A round fish with fins."""
    brush.part(smooth((0.40, 0.12), (0.52, 0.01), (0.70, 0.06), (0.68, 0.16)), brush.colour, brush.dark)
    brush.part(smooth((0.46, 0.50), (0.44, 0.61), (0.58, 0.60), (0.66, 0.50)), brush.colour, brush.dark)
    brush.body(smooth((0.99, 0.33), (0.86, 0.16), (0.62, 0.08), (0.40, 0.16), (0.25, 0.27), (0.12, 0.12), (0.01, 0.10),
                      (0.06, 0.32), (0.01, 0.54), (0.12, 0.52), (0.25, 0.38), (0.40, 0.48), (0.62, 0.56),
                      (0.86, 0.50)), stripes="vertical", shade=0.06)  # fmt: skip
    brush.tone(smooth((0.95, 0.42), (0.70, 0.46), (0.44, 0.42), (0.36, 0.43), (0.62, 0.55), (0.86, 0.49)), CREAM, 0.36)
    brush.stroke(arc(0.66, 0.32, 0.12, 0.20, -70, 70, 12), brush.dark, 0.9)
    brush.patch(ellipse(0.85, 0.28, 0.045, 0.045, 16), CREAM)
    brush.patch(ellipse(0.86, 0.28, 0.026, 0.026, 14), INK)
    brush.stroke(((0.95, 0.40), (0.88, 0.41)), mix(brush.dark, INK, 0.4), 0.8)
