"""A grounded caption as GranD-f stores it for training, written and read."""

import numpy as np
from pycocotools import mask as coco


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
