"""Several pictures with words on one sheet."""

from collections.abc import Sequence

from PIL import Image

from glamm_mini.course.drawing.diagram import Diagram
from glamm_mini.visuals.overlay import LONGEST_RATIO

_GAP, _LINE, _LETTERS = 30, 34, 24


def labeled(pictures: Sequence[Image.Image], words: Sequence[str], columns: int = 3, width: int = 1200) -> Image.Image:
    """Pictures in rows of equal columns, each with its words below, on white; for a page they are shown half as wide.

    Raises ValueError where the numbers of pictures and words differ, or are 0.
    """
    if not pictures or len(pictures) != len(words):
        raise ValueError(f"{len(pictures)} pictures and {len(words)} texts; give one text a picture, and at least one")
    columns = min(columns, len(pictures))
    side = (width - (columns - 1) * _GAP) / columns
    ruler = Diagram(10, 10)
    texts = [[line for part in said.splitlines() for line in ruler.wrap(part, side, _LETTERS)] for said in words]
    # A picture of 1500 x 3 pixels, 1200 wide, would take gigabytes; it is shown stretched, as by all other views.
    ratios = [min(max(picture.width / picture.height, 1 / LONGEST_RATIO), LONGEST_RATIO) for picture in pictures]
    tall = [side / ratio for ratio in ratios]
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
