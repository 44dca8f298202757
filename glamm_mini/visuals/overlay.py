"""Masks over a picture: each a tint and a crisp outline in its own color; and masks as SVG paths."""

from collections.abc import Sequence

import numpy as np
from contourpy import FillType, contour_generator
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt, gaussian_filter

from glamm_mini.visuals.palette import RGB, color

TINT = 0.2
LONGEST_RATIO = 8.0
"""A picture that is longer than this many times its short side is shown stretched: else one would see a line."""
HALO = 0.75
"""Opacity of the white line around each outline, which keeps it visible on a background of its own color."""
TRACED = 256
"""Masks are traced for SVG at this size at most: an area for the pointer needs no more."""
SOFTEST = 16.0
"""Pixels of the widest blur: a picture of a few pixels is enlarged a thousandfold, and wide blurs take long."""


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
    masks = [np.asarray(mask, bool) for mask in masks]
    chosen = [color(k) for k in range(len(masks))] if colors_of_masks is None else list(colors_of_masks)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the picture is {image.dtype} of shape {image.shape}; expected uint8 of shape (H, W, 3)")
    for k, mask in enumerate(masks):
        if mask.shape != image.shape[:2]:
            raise ValueError(f"mask {k} has shape {mask.shape}, the picture {image.shape[:2]}; they must be equal")
    if len(chosen) != len(masks):
        raise ValueError(f"{len(chosen)} colors for {len(masks)} masks; give one color a mask")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected an opacity between 0 and 1")
    width = np.clip(max(image.shape[:2]) / 230, 1.2, 4.0) if outline is None else outline
    picture = image.astype(np.float32)
    painted, tints = picture.copy(), np.array(chosen, np.float32)
    order = sorted(range(len(masks)), key=lambda k: -int(masks[k].sum()))
    for k in order:
        painted[masks[k]] = picture[masks[k]] * (1 - alpha) + tints[k] * alpha
    for k in order if width > 0 else ():
        _draw_outline(painted, masks[k], tints[k], float(width))
    return np.clip(painted.round(), 0, 255).astype(np.uint8)


def _draw_outline(painted: np.ndarray, mask: np.ndarray, tint: np.ndarray, width: float) -> None:
    """Draw along the border of the mask, half inside and half outside, with soft edges of one pixel."""
    if not mask.any() or mask.all():
        return
    x0, y0, x1, y1 = Image.fromarray(mask).getbbox()
    margin = int(np.ceil(2 * width)) + 2
    window = np.s_[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin]
    crop = np.pad(mask[window], 1, mode="edge")
    inside, outside = distance_transform_edt(crop), distance_transform_edt(~crop)
    distance = np.abs(np.where(crop, inside - 0.5, outside - 0.5))[1:-1, 1:-1]
    view = painted[window]
    for ink, wide, opacity in ((255, width * 1.1, HALO), (tint, width / 2, 1)):
        line = opacity * np.clip(wide + 0.5 - distance, 0, 1)[..., None]
        view[:] = view * (1 - line) + ink * line


def overlay_at_size(
    image: np.ndarray, masks: Sequence[np.ndarray], size: tuple[int, int], boxes: np.ndarray | None = None
) -> Image.Image:
    """The overlay drawn at another size (width, height), with smooth outlines even where a small picture is enlarged.

    image: (H, W, 3) uint8. masks: M masks (H, W) bool. boxes: (N, 4) pixels of `image`, drawn as numbered frames.
    """
    picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    enlarged = [_resize_mask(np.asarray(mask, bool), size) for mask in masks]
    drawn = Image.fromarray(overlay_masks(np.asarray(picture), enlarged))
    if boxes is not None and len(boxes):
        _draw_boxes(drawn, np.asarray(boxes) * np.tile(np.array(size) / (image.shape[1], image.shape[0]), 2))
    return drawn


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at another size; enlarged masks lose their staircases."""
    scales = size[1] / mask.shape[0], size[0] / mask.shape[1]
    if scales == (1, 1):
        return mask
    soft = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return gaussian_filter(np.asarray(soft), [min(0.5 * s, SOFTEST) * (s > 1) for s in scales], mode="nearest") > 0.5


def _draw_boxes(picture: Image.Image, boxes: np.ndarray) -> None:
    """Draw numbered frames for boxes (N, 4), x0 y0 x1 y1 in pixels of the picture, into the picture."""
    draw = ImageDraw.Draw(picture)
    width = max(2, round(max(picture.size) / 240))
    font = ImageFont.truetype(font_file(bold=True), max(11, round(max(picture.size) / 40)))
    # A frame along the picture's edge would lie half outside, and rounded corners would cut its number.
    edge, half = np.array(picture.size) - 1 - 2 * width, width / 2
    for number, corners in enumerate(np.asarray(boxes, float).reshape(-1, 2, 2), start=1):
        (x0, y0), (x1, y1) = np.clip(corners, np.minimum(2 * width, edge), np.maximum(edge, 0)).tolist()
        draw.rectangle((x0 - half, y0 - half, x1 + half, y1 + half), outline="black", width=2 * width)
        draw.rectangle((x0, y0, x1, y1), outline="white", width=width)
        # Its number stands in the frame's corner, moved so far that the picture's edge does not cut it.
        left, top, right, bottom = draw.textbbox((0, 0), f"{number}", font=font)
        w, h = right - left + 4 * width, bottom - top + 4 * width
        x, y = max(0, min(x0, picture.width - 1 - w)), max(0, min(y0, picture.height - 1 - h))
        draw.rectangle((x, y, x + w, y + h), fill="white", outline="black")
        draw.text((x + 2 * width - left, y + 2 * width - top), f"{number}", fill="black", font=font)


def font_file(bold: bool = False) -> str:
    """Path of DejaVu Sans, which Matplotlib brings along on every system."""
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"


def mask_path(mask: np.ndarray) -> str:
    """The border of a mask (H, W) bool as the `d` of an SVG path, even-odd filled, in units of 1/1000 of its sides.

    An empty mask gives "".
    """
    h, w = mask.shape
    scale = TRACED / max(h, w)
    if scale < 1:
        h, w = max(1, round(h * scale)), max(1, round(w * scale))
        mask = np.asarray(Image.fromarray(mask).resize((w, h), Image.Resampling.NEAREST))
    if not mask.any():
        return ""
    # A frame of zeros closes the outlines at the picture's border.
    framed = np.pad(mask.astype(np.float64), 1)
    xs, ys = np.arange(-0.5, w + 1), np.arange(-0.5, h + 1)
    polygons, offsets = contour_generator(xs, ys, framed, fill_type=FillType.OuterOffset).filled(0.5, np.inf)
    path = ""
    for points, starts in zip(polygons, offsets, strict=True):
        for start, end in zip(starts, starts[1:], strict=False):
            loop = _corners(points[start : end - 1]) * (1000 / w, 1000 / h)
            path += "M" + "L".join(f"{x:.0f} {y:.0f}" for x, y in loop) + "Z"
    return path


def _corners(loop: np.ndarray) -> np.ndarray:
    """Leave out the points (N, 2) that lie on a straight line between their neighbors."""
    before, after = loop - np.roll(loop, 1, axis=0), np.roll(loop, -1, axis=0) - loop
    turns = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    return loop[turns] if turns.sum() >= 3 else loop
