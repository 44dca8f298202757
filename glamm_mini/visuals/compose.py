"""Several pictures on one sheet."""

from collections.abc import Sequence

from PIL import Image

from glamm_mini.visuals.diagram import Diagram

PAPER = (238, 240, 243)
_GAP, _LINE, _LETTERS = 30, 34, 24


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
    sheet = Image.new("RGB", (gap + columns * (width + gap), max(ends)), PAPER)
    for card, place in zip(cards, places, strict=True):
        sheet.paste(card, place)
    return sheet


def labelled(pictures: Sequence[Image.Image], words: Sequence[str], columns: int = 3, width: int = 1200) -> Image.Image:
    """Pictures in rows of equal columns, each with its words below, on white; for a page they are shown half as wide.

    Raises ValueError where the numbers of pictures and words differ, or are 0.
    """
    if not pictures or len(pictures) != len(words):
        raise ValueError(f"{len(pictures)} pictures and {len(words)} texts; give one text a picture, and at least one")
    columns = min(columns, len(pictures))
    side = (width - (columns - 1) * _GAP) / columns
    ruler = Diagram(10, 10)
    texts = [[line for part in said.splitlines() for line in ruler.wrap(part, side, _LETTERS)] for said in words]
    tall = [side * picture.height / picture.width for picture in pictures]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    heights = [max(tall[k] + _LINE * len(texts[k]) for k in row) + _GAP for row in rows]
    diagram, top = Diagram(width, round(sum(heights))), 0.0
    for row, height in zip(rows, heights, strict=True):
        for column, k in enumerate(row):
            left = column * (side + _GAP)
            diagram.paste(pictures[k], (left, top, left + side, top + tall[k]))
            for number, line in enumerate(texts[k]):
                diagram.words((left, top + tall[k] + _LINE * (number + 0.7)), line, _LETTERS)
        top += height
    return diagram.finish()
