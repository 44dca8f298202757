"""What a storybook scene is made of, before it is drawn or described."""

import hashlib
import random
from dataclasses import dataclass

import numpy as np

from glamm_mini.storybook.language.vocabulary import WORLD_VERSION


@dataclass(frozen=True)
class Thing:
    """One countable object. `x`, `y` are fractions of width and height, `extent` of sqrt(width * height)."""

    cls: str
    colour: str
    pattern: str
    size: str
    x: float
    y: float
    extent: float
    flip: bool = False
    variant: float = 0.0


@dataclass(frozen=True)
class Stuff:
    """One region of ground, water or sky between two heights, as fractions of the picture's height."""

    kind: str
    top: float
    bottom: float


@dataclass(frozen=True)
class Scene:
    """A whole scene. `stuff` and `things` run from back to front: a later one hides an earlier one."""

    split: str
    seed: int
    index: int
    place: str
    aspect: tuple[int, int]
    stuff: tuple[Stuff, ...]
    things: tuple[Thing, ...]


@dataclass
class Picture:
    """A drawn scene: image (H, W, 3) uint8, visible masks (N or S, H, W) bool, boxes (N, 4) float32 pixels."""

    image: np.ndarray
    thing_masks: np.ndarray
    stuff_masks: np.ndarray
    boxes: np.ndarray


def keyed_rng(*parts: str | int) -> random.Random:
    """A random stream of its own for these parts, such as (split, seed, index, purpose).

    The key is hashed with SHA-256, so the stream is the same on every machine and in every process, and two keys
    share nothing. Draw with `random()` where the result must also outlive Python versions.
    """
    key = "/".join(map(str, (WORLD_VERSION, *parts)))
    return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest(), "big"))
