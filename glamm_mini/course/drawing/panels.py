"""One small picture for each phrase of an answer: its mask alone, the rest in the dark."""

import numpy as np
from PIL import Image

from glamm_mini.course.drawing.diagram import PAPER, Diagram
from glamm_mini.visuals.overlay import overlay_masks, shown_ratio
from glamm_mini.visuals.palette import color

DARK = 0.3
"""How much light is left outside the mask."""


def spotlight(image: np.ndarray, mask: np.ndarray, index: int) -> Image.Image:
    """The image (H, W, 3) uint8 dark but for the mask (H, W) bool, which is outlined in color number `index`."""
    dimmed = np.where(mask[..., None], image, image * DARK).astype(np.uint8)
    return Image.fromarray(overlay_masks(dimmed, [mask], [color(index)], alpha=0.0))


def phrase_panels(answer, columns: int = 3, width: int = 1200) -> Image.Image:
    """All phrases of an answer, each with its mask alone; an answer without masks gives its image."""
    if not answer.phrases:
        return Image.fromarray(answer.image)
    columns = min(columns, len(answer.phrases))
    gap, head = 30, 54
    side = (width - (columns + 1) * gap) / columns
    tall = side / shown_ratio(answer.image)
    rows = -(-len(answer.phrases) // columns)
    diagram = Diagram(width, round(rows * (tall + head) + (rows + 1) * gap))
    for index, phrase in enumerate(answer.phrases):
        row, column = divmod(index, columns)
        left, top = gap + column * (side + gap), gap + row * (tall + head + gap)
        lines = diagram.wrap(phrase.text or "mask", side - 20, 24)
        text = lines[0] + (" …" if len(lines) > 1 else "")
        diagram.pill((left, top + 20), text, color(index), 24)
        box = (left, top + head, left + side, top + head + tall)
        diagram.paste(spotlight(answer.image, phrase.mask, index), box)
        if not phrase.mask.any():
            diagram.words((left + side / 2, top + head + tall / 2), "no pixel", 24, ink=PAPER, anchor="mm")
    return diagram.finish()
