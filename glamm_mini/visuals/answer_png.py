"""The answer as one picture: the image with its masks, and the sentence whose phrases wear the masks' colors."""

from collections.abc import Sequence

from PIL import Image

from glamm_mini.visuals.overlay import overlay_at_size, shown_ratio
from glamm_mini.visuals.sentence import Run, loose_phrases, question_words, sentence_runs
from glamm_mini.visuals.typeset import Style, draw_lines, rounded, set_lines

PAPER = (255, 255, 255)
SHEET = (238, 240, 243)
INK = (26, 29, 33)
QUIET = (104, 111, 120)
EDGE = (226, 229, 233)
WIDE = 1.45
"""Pictures with a larger width/height than this carry their sentence below, not beside them."""
NARROW = 900
"""So do all pictures of cards narrower than this."""


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
    inner, gutter, w, h, beside = width - 2 * margin, round(1.4 * margin), 0, 0, False
    if answer.image is not None:
        ratio = shown_ratio(answer.image)
        beside = ratio <= WIDE and width >= NARROW
        # Large, and never taller than it is good to look at.
        widest, tallest = (inner * 0.56, inner * 0.62) if beside else (inner, inner * 0.86)
        w = max(1, min(round(widest), round(round(tallest) * ratio)))
        h = max(1, round(w / ratio))
    blocks = _blocks(answer, inner - w - gutter if beside else inner, max(16, round(width**0.5 * 0.76)))
    text_height = sum(above + style.line * len(lines) for lines, style, _, above in blocks)
    if beside:
        height = max(h, text_height)
        x, y = margin, margin + (height - h) // 2
        left, top = margin + w + gutter, margin + (height - text_height) // 2
    else:
        x, y, left = (width - w) // 2, margin, margin
        top = margin + h + (round(0.8 * margin) if h else 0)
        height = top - margin + text_height
    card = Image.new("RGB", (width, height + 2 * margin), PAPER)
    if answer.image is not None:
        _paste_rounded(card, overlay_of(answer, (w, h)), (x, y), max(6, width // 90))
    for lines, style, ink, above in blocks:
        top = draw_lines(card, lines, style, (left, top + above), ink, answer.phrases)
    return card


def overlay_of(answer, size: tuple[int, int]) -> Image.Image:
    """The answer's image with its masks and the boxes that were asked about, `size` = (width, height) in pixels."""
    return overlay_at_size(answer.image, [p.mask for p in answer.phrases], size, getattr(answer, "boxes", None))


def _blocks(answer, width: int, size: int) -> list[tuple[list, Style, tuple[int, int, int], int]]:
    """The question, the sentence, the masks without words and the notes, each as lines, their type and color, and the
    pixels above them. size: of the sentence's type."""
    small, large = Style(round(size * 0.72)), Style(size)
    runs, loose = sentence_runs(answer), loose_phrases(answer)
    blocks = [
        ([Run(question_words(answer))], small, QUIET, 0),
        (runs or [Run("" if loose else "(no words)")], large, INK if runs else QUIET, 0.45),
        ([part for run in loose for part in (run, Run(" "))], large, INK, 0.3),
        *(([Run(f"Note: {note}")], small, QUIET, 0.4) for note in answer.notes or []),
    ]
    filled = [block for block in blocks if any(run.text for run in block[0])]
    return [(set_lines(runs, style, width), style, ink, round(size * above)) for runs, style, ink, above in filled]


def _paste_rounded(card: Image.Image, picture: Image.Image, corner: tuple[int, int], radius: int) -> None:
    soft = rounded(picture.size, min(radius, picture.width // 2, picture.height // 2))
    card.paste(Image.composite(picture, Image.new("RGB", picture.size, EDGE), soft), corner, soft)


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
