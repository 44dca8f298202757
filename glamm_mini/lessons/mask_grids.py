"""What is left of a mask on a coarser grid."""

from torch.nn import functional as F


def through_grid(mask, side):
    """A mask (H, W) bool reduced to a grid of side x side values over its padded square, and enlarged again.

    The values are the shares of each cell that the mask covers: about the best that a decoder with so many outputs can
    draw. Returns (H, W) bool.
    """
    h, w = mask.shape
    square = F.pad(mask[None, None].float(), (0, max(h - w, 0), 0, max(w - h, 0)))  # (1, 1, S, S)
    small = F.interpolate(square, (side, side), mode="area")
    back = F.interpolate(small, square.shape[2:], mode="bilinear", align_corners=False)
    return back[0, 0, :h, :w] > 0.5
