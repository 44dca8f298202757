"""The one palette of the project: twelve colors that stay apart for color-blind readers.

The first colors and their neighbors are Okabe and Ito's (https://jfly.uni-koeln.de/color/), the others were chosen
for the largest distance to them in CIELAB, as seen by normal eyes and with protanopia, deuteranopia and tritanopia.
"""

RGB = tuple[int, int, int]

PALETTE: tuple[RGB, ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (170, 51, 119),  # purple
    (0, 158, 115),  # green
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermillion
    (51, 34, 136),  # indigo
    (86, 180, 233),  # sky blue
    (204, 121, 167),  # pink
    (102, 17, 0),  # brown
    (255, 170, 187),  # rose
    (68, 68, 68),  # gray
)


def color(index: int) -> RGB:
    """The color of phrase or mask number `index`, from 0; after twelve the colors begin again."""
    return PALETTE[index % len(PALETTE)]


def hex_color(rgb: RGB) -> str:
    """(0, 114, 178) to "#0072b2"."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def contrast(first: RGB, second: RGB) -> float:
    """WCAG contrast ratio of two colors, 1 (same) to 21 (black on white); text needs 4.5."""
    low, high = sorted((_luminance(first), _luminance(second)))
    return (high + 0.05) / (low + 0.05)


def _luminance(rgb: RGB) -> float:
    """Relative luminance 0..1 of an sRGB color, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def ink_on(background: RGB) -> RGB:
    """Black or white, whichever is easier to read on `background`."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda ink: contrast(ink, background))
