"""Sets a sentence in lines, its phrases in colored rounded pills, with Pillow."""

import re
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from glamm_mini.visuals.overlay import font_file
from glamm_mini.visuals.palette import color, ink_on
from glamm_mini.visuals.sentence import Run

LATE = 0.6
"""Behind this part of a line, a phrase that does not fit any more moves to the next line rather than break."""


@dataclass
class Piece:
    """Words on one line that belong together. phrase: None for plain words. starts, ends: the phrase's own ends."""

    text: str
    phrase: int | None
    x: float
    width: float
    starts: bool = True
    ends: bool = True


class Style:
    """Type of a size, and the pixels that follow from it. line: distance of two lines. pad: room left and right of the
    words inside a pill. gap: a blank."""

    def __init__(self, size: int):
        self.size, self.line, self.pad, self.gap = size, round(size * 1.85), round(size * 0.42), round(size * 0.30)
        self.font = ImageFont.truetype(font_file(), size)

    def width(self, text: str, phrase: int | None) -> float:
        """Pixels that words take, with the pill of a phrase."""
        return self.font.getlength(text) + (0 if phrase is None else 2 * self.pad)


def set_lines(runs: list[Run], style: Style, width: int) -> list[list[Piece]]:
    """Break runs into lines no wider than `width` pixels. A phrase that does not fit goes on in the next line."""
    lines, x = [[]], 0.0
    for word in _words(runs, style, width - 2 * style.pad):
        line, phrase = lines[-1], word[0].phrase
        joined = bool(line) and phrase is not None and line[-1].phrase == phrase
        blank, needed = style.gap if line else 0, sum(style.width(*run) for run in word)
        if phrase is not None and not joined and x > LATE * width:
            # A phrase that would begin at the end of this line, but fits into the next one whole, begins there.
            whole = style.width(next(run.text for run in runs if run.phrase == phrase), phrase)
            needed = whole if whole <= width else needed
        is_next = bool(line) and x + blank + needed - (2 * style.pad if joined else 0) > width
        if joined and not is_next:
            line[-1].text += f" {word[0].text}"
            line[-1].width = style.width(line[-1].text, phrase)
            x, word = line[-1].x + line[-1].width, word[1:]
        elif is_next:
            # A pill that goes on in the next line has square corners at the break.
            line[-1].ends = not joined
            lines.append([])
            x = 0.0
        else:
            x += blank
        for k, run in enumerate(word):
            piece = Piece(*run, x, style.width(*run), starts=not (joined and is_next and k == 0))
            lines[-1].append(piece)
            x += piece.width
    return lines if lines[0] else []


def draw_lines(card: Image.Image, lines: list, style: Style, corner: tuple[float, float], ink, phrases) -> float:
    """Draw lines into `card` from the top left `corner`; returns the y of their lower end.

    ink: color of plain words. phrases: those of the answer; the pill of an empty mask is only a frame.
    """
    left, top = corner
    draw = ImageDraw.Draw(card)
    ascent, descent = style.font.getmetrics()
    for number, line in enumerate(lines):
        middle = top + style.line * (number + 0.5)
        baseline = middle + (ascent - descent) / 2
        for piece in line:
            x, own_ink = left + piece.x, ink
            if piece.phrase is not None:
                hollow = not phrases[piece.phrase].mask.any()
                _draw_pill(card, piece, style, (round(x), round(middle - style.size * 0.75)), hollow)
                x, own_ink = x + style.pad, ink if hollow else ink_on(color(piece.phrase))
            draw.text((x, baseline), piece.text, fill=own_ink, font=style.font, anchor="ls")
    return top + style.line * len(lines)


def _draw_pill(card: Image.Image, piece: Piece, style: Style, corner: tuple[int, int], hollow: bool) -> None:
    w, h = round(piece.width), round(style.size * 1.5)
    look = {"width": 4 * max(2, round(style.size / 12)), "fill": 0 if hollow else 255, "outline": 255}
    corners = (piece.starts, piece.ends, piece.ends, piece.starts)
    card.paste(color(piece.phrase), corner, rounded((w, h), h * 0.31, corners=corners, **look))


def rounded(size: tuple[int, int], radius: float, **look) -> Image.Image:
    """A rounded rectangle as a mask of `size` (width, height), drawn four times as large and reduced: Pillow's own
    round corners have staircases. look: as ImageDraw takes it, in quarters of a pixel."""
    w, h = 4 * size[0], 4 * size[1]
    shape = Image.new("L", (w, h), 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, w - 1, h - 1), 4 * radius, **{"fill": 255} | look)
    return shape.resize(size, Image.Resampling.LANCZOS)


def _words(runs: list[Run], style: Style, width: float) -> list[list[Run]]:
    """Words between blanks, each a list of runs: "kite," holds a phrase and a comma. None is wider than `width`."""
    words: list[list[Run]] = []
    glued = False
    for run in runs:
        for text in re.findall(r"\s+|\S+", run.text):
            if not text.isspace():
                first, *others = (Run(part, run.phrase) for part in _break(text, style, width))
                if glued:
                    words[-1].append(first)
                else:
                    words.append([first])
                words += [[part] for part in others]
            glued = not text.isspace()
    return words


def _break(text: str, style: Style, width: float) -> list[str]:
    """Cut a word that is wider than a whole line."""
    parts = [""]
    for letter in text:
        if parts[-1] and style.font.getlength(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts
