"""Box to token: RoIAlign from scratch, and what a frozen language model says when all it knows of a picture is one
vector a box."""

import torch

from glamm_mini.model.splice import put_regions

# ---- RoIAlign ----
# For one image: values between the cells of a grid, averaged in the parts of a box.


def bilinear(features, x, y):
    """Values between the cells of a feature grid.

    Args:
        features: (C, h, w). x, y: of one shape S, counted in cells; 0 is the middle of the first cell.

    Returns (C, *S). Up to one cell beyond the outermost middles the nearest value holds; further out it is 0.
    """
    h, w = features.shape[1:]
    outside = (x < -1) | (x > w) | (y < -1) | (y > h)
    x, y = x.clamp(0, w - 1), y.clamp(0, h - 1)
    left, top = x.floor().long(), y.floor().long()
    right, bottom = (left + 1).clamp(max=w - 1), (top + 1).clamp(max=h - 1)
    across, down = x - left, y - top  # how far on the way to the next cell, 0..1
    upper = features[:, top, left] * (1 - across) + features[:, top, right] * across
    lower = features[:, bottom, left] * (1 - across) + features[:, bottom, right] * across
    return (upper * (1 - down) + lower * down).masked_fill(outside, 0)


def sampling_points(boxes, count):
    """Where boxes are read: `count` x in each box and `count` y, the middles of equal parts.

    boxes: (N, 4) x0 y0 x1 y1. Returns x (N, count) and y (N, count), in the same units.
    """
    middles = (torch.arange(count) + 0.5) / count
    start, end = boxes[:, None, :2], boxes[:, None, 2:]  # (N, 1, 2)
    points = start + middles[:, None] * (end - start)  # (N, count, 2)
    return points[..., 0], points[..., 1]


def roi_align(features, boxes, size, scale, ratio, aligned=True):
    """A fixed number of features from each box, whatever its size.

    Args:
        features: (C, h, w) of one image. boxes: (N, 4) x0 y0 x1 y1 in pixels.
        size: parts a side that each box is cut into. scale: cells a pixel. ratio: samples a side in each part.
        aligned: True counts cells from their middles, as `bilinear` does; False is the old way, half a cell off, with
            boxes of at least one cell.

    Returns (N, C, size, size), equal to torchvision.ops.roi_align for a fixed sampling ratio.
    """
    boxes = boxes * scale
    if aligned:
        boxes = boxes - 0.5
    else:
        boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], dim=1)
    x, y = sampling_points(boxes, size * ratio)
    x, y = torch.broadcast_tensors(x[:, None, :], y[:, :, None])  # (N, S, S), S = size * ratio
    values = bilinear(features, x, y)  # (C, N, S, S)
    parts = values.unflatten(3, (size, ratio)).unflatten(2, (size, ratio))  # (C, N, size, ratio, size, ratio)
    return parts.mean((3, 5)).transpose(0, 1)  # (C, N, size, size) -> (N, C, size, size)


# ---- naming regions ----
# What a frozen language model says when all it is given of a picture is one vector a box.


def word_after(model, prompt, vectors):
    """Logits (N, V) of the word that follows a prompt, once for each vector.

    Args:
        model: a GLaMM. prompt: ids (T,) with one `<bbox>` and no image. vectors: (N, D), put where `<bbox>` stands.

    Gradients reach the vectors. Raises ValueError for a prompt with another number of `<bbox>`.
    """
    rows = prompt.expand(len(vectors), -1)  # (N, T)
    words = model.get_input_embeddings()(rows)
    words = put_regions(words, rows, model.config.tokens.bbox, vectors, [1] * len(vectors))
    states = model.language_model.model(inputs_embeds=words, use_cache=False).last_hidden_state
    return model.language_model.lm_head(states[:, -1])  # (N, T, D) -> (N, V)
