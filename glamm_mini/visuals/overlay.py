"""Masks over a picture: each a tint and a crisp outline in its own color."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, gaussian_filter

from glamm_mini.visuals.palette import RGB, colors

TINT = 0.2
LONGEST_RATIO = 8.0
"""A picture that is longer than this many times its short side is shown stretched: else one would see a line."""
HALO = 0.75
"""Opacity of the white line around each outline, which keeps it visible on a background of its own color."""


def shown_ratio(image: np.ndarray) -> float:
    """Width over height at which a picture (H, W, 3) is shown: its own, unless it is extremely long."""
    return float(np.clip(image.shape[1] / image.shape[0], 1 / LONGEST_RATIO, LONGEST_RATIO))


def overlay_masks(
    image: np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    colors_of_masks: Sequence[RGB] | None = None,
    alpha: float = TINT,
    outline: float | None = None,
) -> np.ndarray:
    """Lay masks over a picture. Where masks overlap, the smallest lies on top, so that none disappears.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: M masks (H, W) bool; an empty mask draws nothing.
        colors_of_masks: M colors; the palette's order if left out.
        alpha: opacity of the tint, 0..1.
        outline: width of the outline in pixels; grows with the picture if left out; 0 draws none.

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        ValueError: a shape, the number of colors or alpha does not fit.
    """
    masks = [np.asarray(mask).astype(bool) for mask in masks]
    chosen = colors(len(masks)) if colors_of_masks is None else list(colors_of_masks)
    _check(image, masks, chosen, alpha)
    width = outline_width(*image.shape[:2]) if outline is None else outline
    picture = image.astype(np.float32)
    order = sorted(range(len(masks)), key=lambda index: -int(masks[index].sum()))
    painted = picture.copy()
    for index in order:
        tint = np.array(chosen[index], np.float32)
        painted[masks[index]] = picture[masks[index]] * (1 - alpha) + tint * alpha
    if width > 0:
        for index in order:
            _draw_outline(painted, masks[index], np.array(chosen[index], np.float32), width)
    return np.clip(painted.round(), 0, 255).astype(np.uint8)


def overlay_at_size(
    image: np.ndarray, masks: Sequence[np.ndarray], size: tuple[int, int], boxes: np.ndarray | None = None
) -> Image.Image:
    """The overlay drawn at another size, with smooth outlines even where a small picture is enlarged.

    Args:
        image: (H, W, 3) uint8.
        masks: M masks (H, W) bool.
        size: width and height in pixels of the result.
        boxes: (N, 4) pixels of `image`, drawn as numbered frames.
    """
    picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    enlarged = [_resize_mask(np.asarray(mask).astype(bool), size) for mask in masks]
    drawn = Image.fromarray(overlay_masks(np.asarray(picture), enlarged))
    if boxes is not None and len(boxes):
        scale = np.tile(np.array(size) / (image.shape[1], image.shape[0]), 2)
        draw_boxes(drawn, np.asarray(boxes) * scale)
    return drawn


def draw_boxes(picture: Image.Image, boxes: np.ndarray) -> None:
    """Draw numbered frames for boxes (N, 4), x0 y0 x1 y1 in pixels of the picture, into the picture."""
    draw = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 240))
    font = ImageFont.truetype(font_file(bold=True), max(11, round(max(picture.size) / 40)))
    # A frame along the picture's edge would lie half outside, and rounded corners would cut its number.
    edge = np.array(picture.size) - 1 - 2 * width
    for number, corners in enumerate(np.asarray(boxes, float).reshape(-1, 2, 2), start=1):
        (x0, y0), (x1, y1) = np.clip(corners, np.minimum(2 * width, edge), np.maximum(edge, 0)).tolist()
        half = width / 2
        draw.rectangle((x0 - half, y0 - half, x1 + half, y1 + half), outline="black", width=2 * width)
        draw.rectangle((x0, y0, x1, y1), outline="white", width=width)
        _draw_number(draw, f"{number}", (x0, y0), picture.size, font, width)


def _draw_number(draw: ImageDraw.ImageDraw, label: str, corner, size: tuple[int, int], font, width: int) -> None:
    """Black on white in the corner of a frame, moved so far that the picture's edge does not cut it."""
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    w, h = right - left + 4 * width, bottom - top + 4 * width
    x, y = (max(0, min(at, side - 1 - room)) for at, side, room in zip(corner, size, (w, h), strict=True))
    draw.rectangle((x, y, x + w, y + h), fill="white", outline="black")
    draw.text((x + 2 * width - left, y + 2 * width - top), label, fill="black", font=font)


def font_file(bold: bool = False) -> str:
    """Path of DejaVu Sans, which Matplotlib brings along on every system."""
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"


def outline_width(height: int, width: int) -> float:
    """A good width in pixels for the outlines in a picture of that size."""
    return float(np.clip(max(height, width) / 230, 1.2, 4.0))


def _check(image: np.ndarray, masks: list[np.ndarray], chosen: list[RGB], alpha: float) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the picture is {image.dtype} of shape {image.shape}; expected uint8 of shape (H, W, 3)")
    for index, mask in enumerate(masks):
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {index} has shape {mask.shape}, the picture {image.shape[:2]}; they must be equal")
    if len(chosen) != len(masks):
        raise ValueError(f"{len(chosen)} colors for {len(masks)} masks; give one color a mask")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected an opacity between 0 and 1")


def _draw_outline(painted: np.ndarray, mask: np.ndarray, color: np.ndarray, width: float) -> None:
    """Draw along the border of the mask, half inside and half outside, with soft edges of one pixel."""
    if not mask.any():
        return
    margin = int(np.ceil(2 * width)) + 2
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    window = np.s_[
        max(0, rows[0] - margin) : rows[-1] + margin + 1,
        max(0, columns[0] - margin) : columns[-1] + margin + 1,
    ]
    crop = np.pad(mask[window], 1, mode="edge")
    if crop.all():
        return
    inside, outside = distance_transform_edt(crop), distance_transform_edt(~crop)
    distance = np.abs(np.where(crop, inside - 0.5, outside - 0.5))[1:-1, 1:-1]
    line = np.clip(width / 2 + 0.5 - distance, 0, 1)[..., None]
    halo = HALO * np.clip(width * 1.1 + 0.5 - distance, 0, 1)[..., None]
    view = painted[window]
    view[:] = view * (1 - halo) + 255 * halo
    view[:] = view * (1 - line) + color * line


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size; enlarged masks lose their staircases."""
    if (mask.shape[1], mask.shape[0]) == tuple(size) or not mask.any():
        return mask if (mask.shape[1], mask.shape[0]) == tuple(size) else np.zeros(size[::-1], bool)
    soft = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    scales = size[1] / mask.shape[0], size[0] / mask.shape[1]
    blur = [0.5 * scale if scale > 1 else 0.0 for scale in scales]
    return gaussian_filter(np.asarray(soft), blur, mode="nearest") > 0.5
