"""A world of our own: masks as run lengths, captions as GranD-f stores them, random streams, and how much of a thing
hides behind others."""

import random
from dataclasses import replace

import numpy as np
from pycocotools import mask as coco

from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.scene import keyed_rng

# ---- run lengths ----
# COCO's RLE, the form in which every public dataset stores masks.


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


# ---- GranD-f records ----
# A grounded caption as it lies in GranD-f's training files, written and read.


def to_grandf(image_id, caption, phrases):
    """A record of GranD-f's training files.

    Args:
        image_id: a string. caption: without tags.
        phrases: (start, end, masks) of each: its place in the caption, and masks (H, W) bool, one for each thing.

    Raises ValueError where the same words are meant to name two things: the record has one entry a phrase text.
    """
    groundings = {}
    for start, end, masks in phrases:
        if caption[start:end] in groundings:
            raise ValueError(f"{caption[start:end]!r} is a phrase already; GranD-f keys its phrases by their words")
        rles = [coco.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
        rles = [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in rles]
        groundings[caption[start:end]] = {"token_positives": [start, end], "rle_masks": rles}
    height, width = phrases[0][2][0].shape
    about = {"file_name": f"{image_id}.jpg", "height": height, "width": width, "image_id": image_id}
    return about | {"caption": caption, "groundings": groundings}


def from_grandf(record):
    """(caption, phrases) of a record: phrases as (start, end, mask) in the order of the sentence, mask (H, W) bool.

    The masks of a phrase become one: a pixel belongs to it if any of them holds it. Raises ValueError for phrases
    that overlap, as no tags can be put around them, and for a phrase that lies outside the caption.
    """
    caption, phrases = record["caption"], []
    for entry in record["groundings"].values():
        start, end = entry["token_positives"]
        masks = [coco.decode(rle).astype(bool) for rle in entry["rle_masks"]]
        phrases.append((start, end, np.any(masks, axis=0)))
    phrases.sort(key=lambda phrase: phrase[0])
    reached = 0
    for start, end, _ in phrases:
        if not reached <= start < end <= len(caption):
            raise ValueError(f"the phrase at {start} to {end} overlaps another, is empty or leaves the caption")
        reached = end
    return caption, phrases


# ---- random streams ----
# Numbers for many scenes: from one stream, and from a stream for each scene.


def from_one_stream(extra):
    """Three numbers for each of five scenes, all from one stream; `extra`: scene 0 draws a fourth."""
    stream = random.Random(0)
    return [[round(stream.random(), 2) for _ in range(3 + (extra and index == 0))] for index in range(5)]


def from_own_streams(extra):
    """The same, each scene from a stream of its own."""
    streams = [keyed_rng("train", 0, index, "demo") for index in range(5)]
    return [[round(streams[i].random(), 2) for _ in range(3 + (extra and i == 0))] for i in range(5)]


# ---- visibility ----


def hidden_share(scene, index):
    """The share of a thing's pixels that other things cover, 0..1; scene is a Scene, index counts its things."""
    visible = render(scene, 128).thing_masks[index]
    whole = render(replace(scene, things=(scene.things[index],)), 128).thing_masks[0]
    return 1 - visible.sum() / whole.sum()
