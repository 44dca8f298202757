"""Several pictures on one sheet."""

from collections.abc import Sequence

from PIL import Image

PAPER = (238, 240, 243)


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
