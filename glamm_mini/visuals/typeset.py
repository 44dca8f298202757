"""Sets a sentence in lines, its phrases in colored rounded pills, with Pillow."""

import re
from collections.abc import Callable
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


@dataclass(frozen=True)
class Style:
    """Measures in pixels, all from the size of the type."""

    size: int

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """The type the sentence is set in."""
        return ImageFont.truetype(font_file(), self.size)

    @property
    def line(self) -> int:
        """Distance of two lines of text."""
        return round(self.size * 1.85)

    @property
    def pad(self) -> int:
        """Room left and right of the words inside a pill."""
        return round(self.size * 0.42)

    @property
    def gap(self) -> int:
        """A blank."""
        return round(self.size * 0.30)


def set_lines(runs: list[Run], style: Style, width: int) -> list[list[Piece]]:
    """Break runs into lines no wider than `width` pixels. A phrase that does not fit goes on in the next line."""
    font = style.font
    lines, x, before = [[]], 0.0, None
    for word in _words(runs, font.getlength, width - 2 * style.pad):
        needed = _width(word, style)
        if word[0].phrase is not None and word[0].phrase != before and x > LATE * width:
            # A phrase that would begin at the end of this line, but fits into the next one whole, begins there.
            whole = font.getlength(_phrase_text(runs, word[0].phrase)) + 2 * style.pad
            needed = whole if whole <= width else needed
        before = word[-1].phrase
        joined = bool(lines[-1]) and word[0].phrase is not None and lines[-1][-1].phrase == word[0].phrase
        blank = style.gap if lines[-1] else 0
        if lines[-1] and x + blank + needed - (2 * style.pad if joined else 0) > width:
            lines.append([])
            x, blank, joined = 0.0, 0, False
        x += 0 if joined else blank
        for run in word:
            x = _append(lines[-1], run, x, style, joined)
            joined = False
    _mark_ends(lines)
    return lines if lines[0] else []


def draw_lines(
    card: Image.Image,
    lines: list[list[Piece]],
    style: Style,
    corner: tuple[float, float],
    ink,
    hollow: Callable[[int], bool],
) -> float:
    """Draw lines into `card` from the top left `corner`; returns the y of their lower end.

    ink: color of plain words. hollow(phrase): whether its pill is only a frame, as for an empty mask.
    """
    left, top = corner
    font, draw = style.font, ImageDraw.Draw(card)
    ascent, descent = font.getmetrics()
    for number, line in enumerate(lines):
        middle = top + style.line * (number + 0.5)
        baseline = middle + (ascent - descent) / 2
        for piece in line:
            x = left + piece.x
            if piece.phrase is None:
                draw.text((x, baseline), piece.text, fill=ink, font=font, anchor="ls")
            else:
                _draw_pill(card, piece, style, x, middle, hollow(piece.phrase))
                own_ink = ink if hollow(piece.phrase) else ink_on(color(piece.phrase))
                draw.text((x + style.pad, baseline), piece.text, fill=own_ink, font=font, anchor="ls")
    return top + style.line * len(lines)


def _draw_pill(card: Image.Image, piece: Piece, style: Style, x: float, middle: float, hollow: bool) -> None:
    """Draw the pill four times as large and reduce it: Pillow's own round corners have staircases."""
    times = 4
    left, top = round(x), round(middle - style.size * 0.75)
    w, h = round(piece.width), round(style.size * 1.5)
    shape = Image.new("L", (w * times, h * times), 0)
    ImageDraw.Draw(shape).rounded_rectangle(
        (0, 0, w * times - 1, h * times - 1),
        radius=h * times * 0.31,
        fill=0 if hollow else 255,
        outline=255,
        width=times * max(2, round(style.size / 12)),
        corners=(piece.starts, piece.ends, piece.ends, piece.starts),
    )
    card.paste(color(piece.phrase), (left, top), shape.resize((w, h), Image.Resampling.LANCZOS))


def _words(runs: list[Run], length: Callable[[str], float], width: float) -> list[list[Run]]:
    """Words between blanks, each a list of runs: "kite," holds a phrase and a comma. None is wider than `width`."""
    words: list[list[Run]] = []
    glued = False
    for run in runs:
        for text in re.findall(r"\s+|\S+", run.text):
            if text.isspace():
                glued = False
                continue
            for number, part in enumerate(_break(text, length, width)):
                if glued and number == 0:
                    words[-1].append(Run(part, run.phrase))
                else:
                    words.append([Run(part, run.phrase)])
            glued = True
    return words


def _break(text: str, length: Callable[[str], float], width: float) -> list[str]:
    """Cut a word that is wider than a whole line."""
    parts = [""]
    for letter in text:
        if parts[-1] and length(parts[-1] + letter) > width:
            parts.append("")
        parts[-1] += letter
    return parts


def _phrase_text(runs: list[Run], phrase: int) -> str:
    return next(run.text for run in runs if run.phrase == phrase)


def _width(word: list[Run], style: Style) -> float:
    return sum(style.font.getlength(run.text) + (2 * style.pad if run.phrase is not None else 0) for run in word)


def _append(line: list[Piece], run: Run, x: float, style: Style, joined: bool) -> float:
    """Put a run at x, or into the pill before it; returns the x behind it."""
    if joined:
        piece = line[-1]
        piece.text += " " + run.text
    else:
        piece = Piece(run.text, run.phrase, x, 0.0)
        line.append(piece)
    piece.width = style.font.getlength(piece.text) + (2 * style.pad if piece.phrase is not None else 0)
    return piece.x + piece.width


def _mark_ends(lines: list[list[Piece]]) -> None:
    """A pill that goes on in the next line has square corners at the break."""
    for line, after in zip(lines, lines[1:], strict=False):
        if line and after and line[-1].phrase is not None and line[-1].phrase == after[0].phrase:
            line[-1].ends = after[0].starts = False
