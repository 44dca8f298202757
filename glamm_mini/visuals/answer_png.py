"""The answer as one picture: the image with its masks, and the sentence whose phrases wear the masks' colors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from glamm_mini.visuals.overlay import overlay_at_size, shown_ratio
from glamm_mini.visuals.sentence import Run, is_empty, loose_phrases, question_words, sentence_runs
from glamm_mini.visuals.typeset import Style, draw_lines, set_lines

PAPER = (255, 255, 255)
SHEET = (238, 240, 243)
INK = (26, 29, 33)
QUIET = (104, 111, 120)
EDGE = (226, 229, 233)
WIDE = 1.45
"""Pictures with a larger width/height than this carry their sentence below, not beside them."""
NARROW = 900
"""So do all pictures of cards narrower than this."""


@dataclass
class _Block:
    """Set text: its lines, its type, its color, and the space in pixels above it."""

    lines: list
    style: Style
    ink: tuple[int, int, int]
    above: int

    @property
    def height(self) -> int:
        return self.above + self.style.line * len(self.lines)


def answer_png(answer, width: int = 1200) -> Image.Image:
    """Draw the answer.

    Args:
        answer: a GroundedAnswer, or anything with its fields; `image` may be None.
        width: pixels of the result; its height follows from the picture and the length of the sentence.

    Raises:
        ValueError: width is under 320 pixels.
    """
    if width < 320:
        raise ValueError(f"the width is {width} pixels; a readable answer needs at least 320")
    margin = max(24, width // 30)
    inner = width - 2 * margin
    if answer.image is None:
        return _paint(answer, None, (0, 0), width, margin, _blocks(answer, inner, _type_size(width)), beside=False)
    ratio = shown_ratio(answer.image)
    beside = ratio <= WIDE and width >= NARROW
    size = _picture_size(ratio, inner, beside)
    text_width = inner - size[0] - round(1.4 * margin) if beside else inner
    blocks = _blocks(answer, text_width, _type_size(width))
    return _paint(answer, overlay_of(answer, size), size, width, margin, blocks, beside)


def overlay_of(answer, size: tuple[int, int]) -> Image.Image:
    """The answer's image with its masks and the boxes that were asked about, `size` = (width, height) in pixels."""
    return overlay_at_size(answer.image, [p.mask for p in answer.phrases], size, getattr(answer, "boxes", None))


def _type_size(width: int) -> int:
    return max(16, round(width**0.5 * 0.76))


def _picture_size(ratio: float, inner: int, beside: bool) -> tuple[int, int]:
    """Width and height of the picture within a card: large, never taller than it is good to look at."""
    widest = round(inner * 0.56) if beside else inner
    tallest = round(inner * (0.62 if beside else 0.86))
    w = min(widest, round(tallest * ratio))
    return max(1, w), max(1, round(w / ratio))


def _blocks(answer, width: int, size: int) -> list[_Block]:
    """The question, the sentence, the masks without words and the notes, as set text."""
    small, large = Style(round(size * 0.72)), Style(size)
    runs = sentence_runs(answer)
    loose = loose_phrases(answer)
    blocks = []
    if question_words(answer):
        blocks.append(_Block(_set([Run(question_words(answer), None)], small, width), small, QUIET, 0))
    sentence = runs or ([] if loose else [Run("(no words)", None)])
    if sentence:
        ink = INK if runs else QUIET
        blocks.append(_Block(_set(sentence, large, width), large, ink, round(size * 0.45)))
    if loose:
        blocks.append(_Block(_set(_spaced(loose), large, width), large, INK, round(size * 0.3)))
    for note in answer.notes or []:
        blocks.append(_Block(_set([Run(f"Note: {note}", None)], small, width), small, QUIET, round(size * 0.4)))
    return blocks


def _set(runs: list[Run], style: Style, width: int) -> list:
    return set_lines(runs, style, width)


def _spaced(runs: list[Run]) -> list[Run]:
    return [part for run in runs for part in (run, Run(" ", None))]


def _paint(answer, picture, size, width: int, margin: int, blocks: list[_Block], beside: bool) -> Image.Image:
    text_height = sum(block.height for block in blocks)
    gap = round(0.8 * margin) if picture is not None and not beside else 0
    inner_height = max(size[1], text_height) if beside else size[1] + gap + text_height
    card = Image.new("RGB", (width, inner_height + 2 * margin), PAPER)
    left, top = margin, margin
    if picture is not None:
        x = margin if beside else (width - size[0]) // 2
        y = margin + (inner_height - size[1]) // 2 if beside else margin
        _paste_rounded(card, picture, (x, y), max(6, width // 90))
        left, top = (x + size[0] + round(1.4 * margin), top) if beside else (margin, y + size[1] + gap)
    if beside:
        top = margin + (inner_height - text_height) // 2
    for block in blocks:
        top = draw_lines(
            card, block.lines, block.style, (left, top + block.above), block.ink, lambda i: is_empty(answer.phrases[i])
        )
    return card


def _paste_rounded(card: Image.Image, picture: Image.Image, corner: tuple[int, int], radius: int) -> None:
    """Paste with rounded corners, drawn at four times the size so that they are smooth."""
    w, h = picture.size
    shape = Image.new("L", (4 * w, 4 * h), 0)
    radius = 4 * min(radius, w // 2, h // 2)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, 4 * w - 1, 4 * h - 1), radius=radius, fill=255)
    soft = shape.resize((w, h), Image.Resampling.LANCZOS)
    framed = Image.composite(picture, Image.fromarray(np.full((h, w, 3), EDGE, np.uint8)), soft)
    card.paste(framed, corner, soft)


def compose(cards: Sequence[Image.Image], columns: int = 2, gap: int = 24) -> Image.Image:
    """Lay cards of one width in columns, each below the shortest column so far.

    Raises:
        ValueError: no cards, cards of different widths, or less than one column.
    """
    widths = {card.width for card in cards}
    if not cards or len(widths) != 1 or columns < 1:
        raise ValueError(
            f"got {len(cards)} cards of the widths {sorted(widths)} for {columns} columns; "
            "expected at least one card, equal widths and at least one column"
        )
    width, columns = widths.pop(), min(columns, len(cards))
    ends, places = [gap] * columns, []
    for card in cards:
        column = ends.index(min(ends))
        places.append((gap + column * (width + gap), ends[column]))
        ends[column] += card.height + gap
    sheet = Image.new("RGB", (gap + columns * (width + gap), max(ends)), SHEET)
    for card, place in zip(cards, places, strict=True):
        sheet.paste(card, place)
    return sheet
