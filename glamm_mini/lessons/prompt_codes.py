"""Where is it? Positions as vectors, and the prompts that segment-anything makes of clicks and boxes."""

import math

import torch


def position_code(points, matrix):
    """Random Fourier features of points.

    points: (..., 2), x and y as fractions 0..1 of the square. matrix: (2, F), random frequencies, never trained.
    Returns (..., 2 F): F sines, then F cosines.
    """
    angle = 2 * math.pi * ((2 * points - 1) @ matrix)  # (..., 2) x (2, F)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def grid_code(side, matrix):
    """The codes of the middles of side x side patches, (1, 2 F, side, side)."""
    middle = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return position_code(torch.stack([x, y], dim=-1), matrix).permute(2, 0, 1)[None]


def click_prompt(points, encoder):
    """Points (N, 2) inside of things, in pixels of the square, to prompts (N, 2, C): the click, and "no more points".

    encoder: a PromptEncoder of segment-anything, whose learnt vectors are used.
    """
    matrix = encoder.pe_layer.positional_encoding_gaussian_matrix
    code = position_code((points + 0.5) / encoder.input_image_size[0], matrix)  # (N, C)
    click = code + encoder.point_embeddings[1].weight
    return torch.stack([click, encoder.not_a_point_embed.weight.expand_as(click)], dim=1)


def box_prompt(boxes, encoder):
    """Boxes (N, 4), x0 y0 x1 y1 in pixels of the square, to prompts (N, 2, C), one for each of two corners."""
    corners = (boxes.reshape(-1, 2, 2) + 0.5) / encoder.input_image_size[0]  # (N, 4) -> (N, 2, 2)
    code = position_code(corners, encoder.pe_layer.positional_encoding_gaussian_matrix)
    return code + torch.cat([table.weight for table in encoder.point_embeddings[2:]])  # (N, 2, C) + (2, C)
