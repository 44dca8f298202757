"""The one typed record that all tasks and all datasets share."""

from dataclasses import dataclass, field

import numpy as np


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4), np.float32)


def _no_masks() -> np.ndarray:
    return np.zeros((0, 1, 1), bool)


@dataclass
class Turn:
    """One question and its answer.

    question: plain words; may hold `<bbox>`, never `<image>`.
    answer: tagged text, such as "<p> a red kite </p> [SEG] over the sea."
    boxes: (N, 4) float32, x0 y0 x1 y1 in pixels of the image, one per `<bbox>` of the question, in order.
    masks: (M, H, W) bool, one per `[SEG]` of the answer, in order.
    """

    question: str
    answer: str
    boxes: np.ndarray = field(default_factory=_no_boxes)
    masks: np.ndarray = field(default_factory=_no_masks)


@dataclass
class Sample:
    """An image and what was said about it.

    image: (H, W, 3) uint8 RGB, or None for text alone.
    conversations: independent conversations about the image, each a list of turns that see the earlier ones.
    extras: what a task keeps beside the conversation (dense labels, the truth that scoring needs).
    """

    image: np.ndarray | None
    conversations: list[list[Turn]]
    image_id: str
    task: str = ""
    extras: dict = field(default_factory=dict)
