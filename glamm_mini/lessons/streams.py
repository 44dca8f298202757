"""Random numbers for many scenes: from one stream, and from a stream for each scene."""

import random

from glamm_mini.datasets.storybook.scene import keyed_rng


def from_one_stream(extra):
    """Three numbers for each of five scenes, all from one stream; `extra`: scene 0 draws a fourth."""
    stream = random.Random(0)
    return [[round(stream.random(), 2) for _ in range(3 + (extra and index == 0))] for index in range(5)]


def from_own_streams(extra):
    """The same, each scene from a stream of its own."""
    streams = [keyed_rng("train", 0, index, "demo") for index in range(5)]
    return [[round(streams[i].random(), 2) for _ in range(3 + (extra and i == 0))] for i in range(5)]
