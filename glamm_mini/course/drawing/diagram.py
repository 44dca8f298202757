"""Draws the project's diagrams: cards, arrows and words in one style, the same in every picture of the course."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from glamm_mini.visuals.overlay import LONGEST_RATIO, font_file
from glamm_mini.visuals.palette import PALETTE, RGB, ink_on

PAPER: RGB = (255, 255, 255)
INK: RGB = (26, 29, 33)
QUIET: RGB = (88, 95, 104)
LINE: RGB = (120, 127, 136)
GRAY: RGB = (150, 156, 164)

BLUE, ORANGE, PURPLE, GREEN = PALETTE[:4]
"""What is seen, what is said, what is asked about, what is drawn."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def tint(rgb: RGB, strength: float) -> RGB:
    """The color thinned with paper: strength 0 is paper, 1 the color itself."""
    return tuple(round(p + (c - p) * strength) for c, p in zip(rgb, PAPER, strict=True))


def fitted(picture: Image.Image, room: Box) -> Box:
    """Where a picture stands that keeps its shape: the largest box of that shape, in the middle of the room.

    An extremely long picture is shown stretched, as by all other views.
    """
    x0, y0, x1, y1 = room
    ratio = min(max(picture.width / picture.height, 1 / LONGEST_RATIO), LONGEST_RATIO)
    width, height = min(x1 - x0, (y1 - y0) * ratio), min(y1 - y0, (x1 - x0) / ratio)
    left, top = (x0 + x1 - width) / 2, (y0 + y1 - height) / 2
    return left, top, left + width, top + height


class Diagram:
    """A sheet of paper to draw on. All measures are pixels of the finished picture.

    Everything is drawn twice as large and reduced at the end: Pillow's own slanted lines and round corners are rough.
    Words should have at least 24 pixels, for pictures of 1600 pixels are shown at half their size.
    """

    TIMES = 2

    def __init__(self, width: int, height: int):
        self.size = width, height
        self._sheet = Image.new("RGB", (width * self.TIMES, height * self.TIMES), PAPER)
        self._draw = ImageDraw.Draw(self._sheet)

    def card(self, box: Box, color: RGB, strength: float = 0.13, width: float = 4, radius: float = 16) -> None:
        """A rounded rectangle, x0 y0 x1 y1: its frame in the color, its inside a tint of it."""
        self._draw.rounded_rectangle(
            self._big(box), radius * self.TIMES, fill=tint(color, strength), outline=color, width=self._big(width)
        )

    def words(self, at: Point, text: str, size: float = 26, bold: bool = False, ink: RGB = INK, anchor="lm") -> None:
        """One line of words at a point; `anchor` as in Pillow: l, m or r, then t, m or b."""
        self._draw.text(self._big(at), text, fill=ink, font=self._font(size, bold), anchor=anchor)

    def lines(
        self, at: Point, texts: Sequence[str], size: float = 26, bold: bool = False, ink: RGB = INK, anchor="lm"
    ) -> None:
        """Lines below each other, the first at the point."""
        for number, text in enumerate(texts):
            self.words((at[0], at[1] + 1.32 * size * number), text, size, bold, ink, anchor)

    def pill(self, at: Point, text: str, color: RGB, size: float = 24, bold: bool = False) -> float:
        """Words on a colored ground whose left middle is `at`; returns the x behind it."""
        end = at[0] + self.length(text, size, bold) + 0.8 * size
        box = (at[0], at[1] - 0.72 * size, end, at[1] + 0.72 * size)
        self._draw.rounded_rectangle(self._big(box), 0.4 * size * self.TIMES, fill=color)
        self.words((at[0] + 0.4 * size, at[1]), text, size, bold, ink_on(color))
        return end

    def arrow(self, points: Sequence[Point], ink: RGB = LINE, width: float = 5, head: float = 17) -> None:
        """A line through the points, which run along the axes, with a head at its end."""
        (x0, y0), (x1, y1) = points[-2], points[-1]
        step = ((x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0))
        neck = (x1 - step[0] * head, y1 - step[1] * head)
        # The line goes a little into its head, so that no gap shows between them.
        stop = (neck[0] + step[0] * 2, neck[1] + step[1] * 2)
        path = [self._big(point) for point in (*points[:-1], stop)]
        self._draw.line(path, fill=ink, width=self._big(width), joint="curve")
        side = (step[1] * head * 0.62, step[0] * head * 0.62)
        corners = [(x1, y1), (neck[0] + side[0], neck[1] + side[1]), (neck[0] - side[0], neck[1] - side[1])]
        self._draw.polygon([self._big(corner) for corner in corners], fill=ink)

    def paste(self, picture: Image.Image, box: Box, radius: float = 12) -> None:
        """A picture with rounded corners, scaled to fill the box."""
        x0, y0, x1, y1 = self._big(box)
        shape = Image.new("L", (x1 - x0, y1 - y0), 0)
        ImageDraw.Draw(shape).rounded_rectangle((0, 0, x1 - x0 - 1, y1 - y0 - 1), radius * self.TIMES, fill=255)
        self._sheet.paste(picture.convert("RGB").resize(shape.size, Image.Resampling.LANCZOS), (x0, y0), shape)

    def length(self, text: str, size: float, bold: bool = False) -> float:
        """Width in pixels of a line of words."""
        return self._font(size, bold).getlength(text) / self.TIMES

    def wrap(self, text: str, width: float, size: float, bold: bool = False) -> list[str]:
        """Break a text into lines no wider than `width`; a longer word stands alone."""
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if lines[-1] and self.length(longer, size, bold) > width:
                lines.append(word)
            else:
                lines[-1] = longer
        return lines

    def finish(self) -> Image.Image:
        """The picture, reduced to its size."""
        return self._sheet.reduce(self.TIMES)

    def _font(self, size: float, bold: bool) -> ImageFont.FreeTypeFont:
        return ImageFont.truetype(font_file(bold), round(size * self.TIMES))

    def _big(self, measure):
        """A number or several in pixels of the sheet."""
        if isinstance(measure, (int, float)):
            return round(measure * self.TIMES)
        return tuple(round(value * self.TIMES) for value in measure)
