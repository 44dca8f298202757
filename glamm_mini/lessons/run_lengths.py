"""Masks as run lengths, the form in which every public dataset stores them (COCO's RLE)."""

import numpy as np


def run_lengths(mask):
    """A mask (H, W) bool to the lengths of its runs, read column by column; the first run is of zeros, maybe empty."""
    pixels = np.asarray(mask, bool).flatten(order="F")  # (H, W) -> (H * W,), down the columns
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = [0, *edges.tolist(), len(pixels)]
    counts = [end - start for start, end in zip(bounds, bounds[1:], strict=False)]
    return [0, *counts] if pixels[0] else counts


def from_run_lengths(counts, size):
    """Run lengths back to a mask (H, W) bool; size is (H, W).

    Raises ValueError where the runs do not fill the mask.
    """
    height, width = size
    if sum(counts) != height * width:
        raise ValueError(f"the runs hold {sum(counts)} pixels; a mask of {height} x {width} has {height * width}")
    values = np.arange(len(counts)) % 2 == 1  # zeros, ones, zeros, ...
    return np.repeat(values, counts).reshape((height, width), order="F")  # (H * W,) -> (H, W)
