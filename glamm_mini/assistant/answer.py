"""What GLaMM answers: words, the masks that belong to them, and how both are shown and written."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from glamm_mini.processing.images import encode_mask


@dataclass
class GroundedPhrase:
    """text and span index the caption ("" and None for a [SEG] without phrase). mask: (H, W) bool. box: (x0, y0, x1,
    y1) pixels around the mask, None if it is empty. score: mean probability inside the mask, 0 if it is empty."""

    text: str
    span: tuple[int, int] | None
    mask: np.ndarray = field(repr=False)
    box: tuple[int, int, int, int] | None
    score: float


@dataclass
class GroundedAnswer:
    """What GLaMM answered. text: as written, tags included. caption: tags removed. phrases: one per mask.
    notes: what the reader should know. image: (H, W, 3) uint8 that was asked about. question: as asked.
    boxes: (N, 4) pixels that the question referred to, cut at the picture's edges; None without boxes."""

    text: str
    caption: str
    phrases: list[GroundedPhrase]
    notes: list[str] = field(default_factory=list)
    image: np.ndarray | None = field(default=None, repr=False)
    question: str = ""
    boxes: np.ndarray | None = None

    def to_dict(self, image_id=None) -> dict:
        """The official prediction record: image_id, caption, phrases, and one compressed RLE a phrase."""
        return {
            "image_id": image_id,
            "caption": self.caption,
            "phrases": [p.text for p in self.phrases],
            "pred_masks": [encode_mask(p.mask) for p in self.phrases],
            "scores": [round(p.score, 4) for p in self.phrases],
        }

    def picture(self):
        """Picture and sentence in one PIL image."""
        from glamm_mini.visuals.answer_png import answer_png

        return answer_png(self)

    def save(self, path: str | Path) -> Path:
        """Write picture and sentence as one image file; the ending of `path` decides the format.

        Missing folders are made. Raises ValueError for an ending that names no image format.
        """
        return write_picture(self.picture(), path)

    def show(self) -> None:
        """Display the answer in a notebook."""
        from IPython.display import display

        display(self)

    def _repr_html_(self) -> str:
        from glamm_mini.visuals.answer_html import answer_html

        return answer_html(self)

    def _repr_png_(self) -> bytes:
        from glamm_mini.visuals.encode import png_bytes

        return png_bytes(self.picture())


def write_picture(picture, path: str | Path) -> Path:
    """Write a PIL image; the ending of `path` decides the format, missing folders are made. Returns the path."""
    from PIL import Image

    path = Path(path)
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path} ends in {path.suffix!r}, which names no image format; write to .png, .jpg or .webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def grounded_phrase(text: str, span: tuple[int, int] | None, mask: torch.Tensor, logits: torch.Tensor):
    """A phrase with its mask (H, W) bool, and the box and the score that follow from mask and logits (H, W)."""
    score = float(logits[mask].sigmoid().mean()) if bool(mask.any()) else 0.0
    return GroundedPhrase(text, span, mask.numpy(), box_around(mask.numpy()), score)


def box_around(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x0, y0, x1, y1) of the smallest box that holds all pixels of a mask (H, W); None for an empty one."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
