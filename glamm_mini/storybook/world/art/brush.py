"""A brush: draws one thing onto a small transparent canvas, in fractions of the thing's box."""

import math
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from glamm_mini.storybook.language.vocabulary import COLOURS
from glamm_mini.storybook.world.art.curves import Polygon, ellipse

Colour = tuple[int, int, int]

INK = (56, 42, 74)
WOOD = (156, 106, 72)
BARK = (116, 78, 66)
CREAM = (253, 244, 224)
GLASS = (196, 228, 236)
LAMP = (255, 226, 138)
TYRE = (64, 56, 78)
STEM = (240, 214, 174)
LEAF = (104, 164, 84)
SLATE = (92, 82, 112)

_WHITE_ACCENT = (168, 178, 198)

_LINE = 0.0058  # the outline's width, fraction of sqrt(width * height); small pictures get a little more
_SHADE = 4.5  # full masks are divided by this: how see-through the shade is


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour a with a share (0..1) of b."""
    return tuple(round(p + (q - p) * share) for p, q in zip(a, b, strict=True))


@lru_cache(maxsize=192)
def pattern_tile(pattern: str, pitch: int, side: int, start: int) -> Image.Image:
    """A square `L` mask that is 255 where the pattern's second colour goes.

    pattern: "dotted", or the direction of the stripes: "vertical", "horizontal" or "diagonal"; pitch in pixels;
    start: the row and column, in pixels, from which the pattern is counted.
    """
    tile = Image.new("L", (side, side))
    draw = ImageDraw.Draw(tile)
    if pattern == "dotted":
        radius = 0.29 * pitch
        for row in range(-1, int(side / (0.87 * pitch)) + 2):
            for column in range(-1, side // pitch + 2):
                x, y = start + (column + row % 2 / 2) * pitch, start + row * 0.87 * pitch
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        return tile
    band = (0.40 if pattern == "diagonal" else 0.36) * pitch
    lean = 0.7 * side
    for k in range(-side // pitch - 2, side // pitch + 2):
        first = start + (k + 0.3) * pitch
        if pattern == "vertical":
            draw.rectangle((first, 0, first + band - 1, side), fill=255)
        elif pattern == "horizontal":
            draw.rectangle((0, first, side, first + band - 1), fill=255)
        else:
            first += 0.7 * start  # so that the corner at `start` sees the same stripes whatever the side
            draw.polygon(((first, 0), (first + band, 0), (first + band - lean, side), (first - lean, side)), fill=255)
    return tile


class Brush:
    """Draws shapes of one thing; the canvas's alpha is the thing's silhouette.

    Args:
        thing: the record (colour, pattern, extent, flip, variant).
        width, height: the box of the drawing, longer side 1.
        left, top: where the box begins in the picture, in supersampled pixels.
        unit: supersampled pixels per sqrt(width * height) of the picture.
    """

    def __init__(self, thing, width: float, height: float, left: float, top: float, unit: float) -> None:
        self.thing, self.variant = thing, thing.variant
        self.line = max(1, round(_LINE * unit * min(1.1, 0.55 + 1.9 * thing.extent) + 0.4))
        scale, pad = thing.extent * unit, self.line + 2
        self.origin = (math.floor(left) - pad, math.floor(top) - pad)
        self.size = (math.ceil(width * scale) + 2 * pad + 1, math.ceil(height * scale) + 2 * pad + 1)
        # The outline lies outside of the shapes, so these shrink by its width to keep the extent true.
        self.scale = scale - 2 * self.line
        self._x, self._y = left - self.origin[0] + self.line, top - self.origin[1] + self.line
        self._sx, self._inset = self.scale, (int(self._x), int(self._y))  # the inset: where patterns begin
        if thing.flip:
            self._x, self._sx = self._x + width * self.scale, -self.scale
        # Below five pixels of a picture 128 pixels long, a pattern cannot be told from noise.
        self._pitch = max(3, round(max(0.21 * scale, 0.042 * unit)))
        self.colour = COLOURS[thing.colour]
        self.dark = mix(self.colour, INK, 0.48)
        # Stripes and dots: cream with a breath of the colour, so that small patterned things keep their hue.
        self.accent = _WHITE_ACCENT if thing.colour == "white" else mix((255, 249, 236), self.colour, 0.10)
        self.canvas = Image.new("RGBA", self.size)
        self._draw = ImageDraw.Draw(self.canvas)

    def _points(self, shape: Polygon) -> list[tuple[float, float]]:
        x, y, sx, sy = self._x, self._y, self._sx, self.scale
        return [(x + p * sx, y + q * sy) for p, q in shape]

    def _outline(self, points: list, colour: Colour, width: int) -> None:
        self._draw.line([*points, points[0]], fill=colour, width=width)
        if len(points) < 13 or width > 6:  # sharp corners and wide lines leave notches: round them
            self._corners(points, colour, width)

    def _corners(self, points: list, colour: Colour, width: int) -> None:
        if width > 2:
            r = (width - 1) / 2
            for x, y in points:
                self._draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def body(self, *shapes: Polygon, stripes: str = "diagonal", shade: float = 0.07) -> None:
        """The shapes, as one, in the thing's colour and pattern, outlined and shaded away from the light."""
        mask = Image.new("L", self.size)
        into = ImageDraw.Draw(mask)
        placed = [self._points(shape) for shape in shapes]
        for points in placed:
            self._outline(points, self.dark, 2 * self.line)
        for points in placed:
            into.polygon(points, fill=255)
        self.canvas.paste(self.colour, (0, 0), mask)
        if self.thing.pattern != "plain":
            kind = "dotted" if self.thing.pattern == "dotted" else stripes
            side, start = (max(self.size) // 32 + 2) * 32, 2 * self.line + 4  # few sizes, so that tiles are reused
            left, top = start - self._inset[0], start - self._inset[1]
            tile = pattern_tile(kind, self._pitch, side, start).crop((left, top, left + mask.width, top + mask.height))
            self.canvas.paste(self.accent, (0, 0), ImageChops.multiply(mask, tile))
        if shade:
            step = max(1, round(shade * self.scale))
            lit = mask.crop((step, step // 2, step + self.size[0], step // 2 + self.size[1]))
            self.canvas.paste(INK, (0, 0), ImageChops.subtract(mask, lit, scale=_SHADE))

    def tone(self, shape: Polygon, colour: Colour = INK, strength: float = 0.14) -> None:
        """A see-through patch inside what is already drawn: a shaded side, or a glint with a light colour."""
        points = self._points(shape)
        columns, rows = [x for x, _ in points], [y for _, y in points]
        left, top = max(0, math.floor(min(columns))), max(0, math.floor(min(rows)))
        mask = Image.new("L", (math.ceil(max(columns)) - left + 1, math.ceil(max(rows)) - top + 1))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=round(255 * strength))
        over = self.canvas.getchannel("A").crop((left, top, left + mask.width, top + mask.height))
        self.canvas.paste(colour, (left, top), ImageChops.multiply(mask, over))

    def part(self, shape: Polygon, colour: Colour, outline: Colour | None = None) -> None:
        """One detail of a fixed colour; `outline` defaults to a darker tone of it."""
        points = self._points(shape)
        self._outline(points, outline or mix(colour, INK, 0.5), 2 * self.line)
        self._draw.polygon(points, fill=colour)

    def patch(self, shape: Polygon, colour: Colour) -> None:
        """One detail without an outline."""
        self._draw.polygon(self._points(shape), fill=colour)

    def stroke(self, points: Polygon, colour: Colour, width: float = 1.0) -> None:
        """An open line, `width` in outline widths."""
        placed, pixels = self._points(points), max(1, round(width * self.line))
        self._draw.line(placed, fill=colour, width=pixels)
        if pixels > 3:
            self._corners(placed, colour, pixels)

    def eye(self, x: float, y: float, r: float) -> None:
        """A round dark eye."""
        self.patch(ellipse(x, y, r, r, 16), INK)
