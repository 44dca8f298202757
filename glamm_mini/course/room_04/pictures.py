"""Pictures of notebook 04: features as colors, boxes and what is read of them, and a box to draw yourself."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from glamm_mini.course.drawing.compose import labeled
from glamm_mini.course.drawing.diagram import BLUE, GRAY, GREEN, INK, ORANGE, PURPLE, QUIET, Diagram
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_03.pictures import principal_colors
from glamm_mini.visuals.palette import RGB, hex_color

SIDE = 384
"""Pixels of a map drawn as a picture."""
SMALLEST = 0.03
"""A box drawn by hand has at least this share of the picture's sides; less is a click that slipped."""


def enlarged(colors: np.ndarray, side: int = SIDE) -> Image.Image:
    """Colors (h, w, 3) with every cell as a square patch; the longer side has about `side` pixels."""
    times = max(1, side // max(colors.shape[:2]))
    return Image.fromarray(colors.repeat(times, axis=0).repeat(times, axis=1))


def framed(picture: Image.Image, boxes: Sequence, colors: Sequence[RGB]) -> Image.Image:
    """A copy with a frame in its color for each box, x0 y0 x1 y1 in fractions of the picture's sides."""
    out = picture.convert("RGB")
    draw, width = ImageDraw.Draw(out), max(2, round(max(out.size) / 100))
    edge = np.array(out.size * 2) - 1 - width
    for box, color in zip(boxes, colors, strict=True):
        corners = np.clip(np.asarray(box, float) * (np.array(out.size * 2)), width, edge).tolist()
        draw.rectangle([v - w for v, w in zip(corners, (1, 1, -1, -1), strict=True)], outline="white", width=width + 2)
        draw.rectangle(corners, outline=color, width=width)
    return out


def cropped(picture: Image.Image, box) -> Image.Image:
    """What a box (fractions) holds, scaled to a square of SIDE pixels, as RoIAlign stretches it."""
    x0, y0, x1, y1 = np.asarray(box, float) * np.array(picture.size * 2)
    return picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(x0, y0, max(x1, x0 + 1), y1))


def levels_picture(picture: Image.Image, levels: Sequence[torch.Tensor], box, words: Sequence[str]) -> Image.Image:
    """A picture and its levels (C, h, w), each with the box (fractions), side by side; `words` for all of them."""
    maps = [picture.resize((SIDE, SIDE)), *(enlarged(principal_colors(level)) for level in levels)]
    return labeled([framed(one, [box], [PURPLE]) for one in maps], words, columns=len(maps), width=1600)


def rois_picture(picture: Image.Image, levels, rois, box, words: Sequence[str]) -> Image.Image:
    """What a box (fractions) holds and its RoIs (C, size, size), in the colors of their levels (C, h, w)."""
    cells = [enlarged(principal_colors(roi, level)) for roi, level in zip(rois, levels, strict=True)]
    return labeled([cropped(picture, box), *cells], words, columns=len(cells) + 1, width=1600)


def mixing_picture(channels: int) -> Image.Image:
    """Which channels one level takes from itself and from its neighbors before the convolution."""
    half, quarter = channels // 2, channels // 4
    diagram, left, unit = Diagram(1600, 430), 330, 1230 / channels
    cuts = (0, half, half + quarter, channels)
    rows = (("finer neighbor", 1, GREEN), ("the level itself", 0, BLUE), ("coarser neighbor", 2, ORANGE))
    for number, (name, taken, color) in enumerate(rows):
        y = 30 + 90 * number
        diagram.words((30, y + 32), name, 28, bold=True)
        for part in range(3):
            box = (left + cuts[part] * unit + 4, y, left + cuts[part + 1] * unit - 4, y + 64)
            used = part == taken
            diagram.card(box, color if used else GRAY, 0.35 if used else 0.06, 4 if used else 2)
            middle = ((box[0] + box[2]) / 2, y + 32)
            ink = INK if used else QUIET
            diagram.words(middle, f"{cuts[part]} to {cuts[part + 1] - 1}", 26, bold=used, ink=ink, anchor="mm")
    diagram.words((30, 342), "mixed", 28, bold=True)
    for part, (text, color) in enumerate((("own half", BLUE), ("coarser", ORANGE), ("finer", GREEN))):
        box = (left + cuts[part] * unit + 4, 310, left + cuts[part + 1] * unit - 4, 374)
        diagram.card(box, color, 0.35)
        diagram.words(((box[0] + box[2]) / 2, 342), text, 26, bold=True, anchor="mm")
    diagram.words((left, 406), "then one convolution, shared by all levels", 26, ink=QUIET)
    return diagram.finish()


def sampling_figure(box, x: np.ndarray, y: np.ndarray, size: int, cells: tuple[int, int]):
    """A box in cells, cut into size x size parts, with its sampling points (columns x, rows y) on a grid of cells
    (h, w); beside it the first of the points with the weights of its four neighbors."""
    from matplotlib import pyplot as plt

    h, w = cells
    x0, y0, x1, y1 = (float(value) for value in box)
    purple, orange, blue = (hex_color(color) for color in (PURPLE, ORANGE, BLUE))
    figure, (whole, near) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for axes in (whole, near):
        columns, rows = np.meshgrid(np.arange(w), np.arange(h))
        axes.plot(columns.ravel(), rows.ravel(), "s", color="#585f68", markersize=4)
        axes.vlines(np.arange(w + 1) - 0.5, -0.5, h - 0.5, color="#d5d9de", linewidth=0.8)
        axes.hlines(np.arange(h + 1) - 0.5, -0.5, w - 0.5, color="#d5d9de", linewidth=0.8)
        axes.vlines(np.linspace(x0, x1, size + 1), y0, y1, color=purple, linewidth=1.2)
        axes.hlines(np.linspace(y0, y1, size + 1), x0, x1, color=purple, linewidth=1.2)
        axes.plot(*(part.ravel() for part in np.meshgrid(x, y)), "o", color=orange, markersize=4.5)
        axes.set(aspect="equal", xlim=(-0.6, w - 0.4), ylim=(h - 0.4, -0.6))
    whole.set_title(f"{size} x {size} parts, {len(x) // size} x {len(x) // size} samples in each", fontsize=10)
    left, top = int(np.floor(x[0])), int(np.floor(y[0]))
    across, down = x[0] - left, y[0] - top
    for column, row in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = (across if column else 1 - across) * (down if row else 1 - down)
        near.plot([x[0], left + column], [y[0], top + row], color=blue, linewidth=1 + 4 * weight, zorder=0)
        near.text(left + column, top + row + (0.28 if row else -0.22), f"{weight:.2f}", ha="center", fontsize=11)
    near.set(xlim=(left - 0.6, left + 1.6), ylim=(top + 1.6, top - 0.6), xticks=[left, left + 1], yticks=[top, top + 1])
    near.set_title("one sample and its four neighbors", fontsize=10)
    return figure


def slip_picture(picture: Image.Image, box, share: float) -> Image.Image:
    """A box (fractions) in blue, where it is read if its pixels are counted on a side of only `share`, in orange; in
    the dark, what no box can reach; then what the two hold."""
    read = np.asarray(box, float) * share
    dark = np.asarray(picture.convert("RGB")).copy()
    h, w = dark.shape[:2]
    beyond = np.ones((h, w, 1), bool)
    beyond[: round(h * share), : round(w * share)] = False
    shown = Image.fromarray(np.where(beyond, dark * 0.45, dark).astype(np.uint8))
    pictures = [framed(shown, [box, read], [BLUE, ORANGE]), cropped(picture, box), cropped(picture, read)]
    words = ["blue: your box; orange: what is read; dark: out of reach", "in your box", "in what is read"]
    return labeled(pictures, words, width=1000)


def region_explorer(glamm, picture: Image.Image, panels: Sequence[dict] = (), width: int = 480) -> PictureExplorer:
    """Draw a box, see where it is read and what the levels hold there, and what the model calls it.

    Args:
        glamm: an Assistant. picture: what boxes are drawn on.
        panels: choices for the static picture; a box is fractions of the picture's sides.
    """
    features, region = glamm.encode(picture), glamm.model.region_encoder
    names = ["samples", *(f"level {k + 1}" for k in range(len(features.levels)))]

    def draw(choice: dict) -> tuple[Image.Image, str]:
        box = choice["box"]
        if box is None or min(box[2] - box[0], box[3] - box[1]) < SMALLEST:
            return picture.convert("RGB"), "Draw a box around something."
        given = np.array(box) * np.array(picture.size * 2)
        said = glamm.describe_region(picture, given).caption
        if choice["show"] == "samples":
            return _with_samples(picture, box, region.config), said
        level = features.levels[names.index(choice["show"]) - 1]
        square = glamm.processor.normalize_boxes([given], picture.size[::-1])
        roi = region.cut_out([level], [square])[0][0]
        return _with_cells(picture, given, principal_colors(roi, level[0])), said

    title = "Draw a box: what is read of it, and what is said"
    return PictureExplorer(draw, {"show": names}, pointer="box", title=title, width=width, panels=panels)


def _with_samples(picture: Image.Image, box, config) -> Image.Image:
    """The picture with a box, its parts, and the sampling points in them."""
    out = framed(picture, [box], [PURPLE])
    draw = ImageDraw.Draw(out)
    x0, y0, x1, y1 = np.array(box) * np.array(out.size * 2)
    for share in np.arange(1, config.roi_size) / config.roi_size:
        draw.line((x0 + share * (x1 - x0), y0, x0 + share * (x1 - x0), y1), fill="white")
        draw.line((x0, y0 + share * (y1 - y0), x1, y0 + share * (y1 - y0)), fill="white")
    count = config.roi_size * config.sampling_ratio
    middles, dot = (np.arange(count) + 0.5) / count, max(1.0, max(out.size) / 300)
    for share_x in middles:
        for share_y in middles:
            x, y = x0 + share_x * (x1 - x0), y0 + share_y * (y1 - y0)
            draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=ORANGE, outline=INK)
    return out


def _with_cells(picture: Image.Image, box, colors: np.ndarray) -> Image.Image:
    """The picture with colored cells (size, size, 3) in the place of a box in pixels."""
    out = picture.convert("RGB")
    x0, y0, x1, y1 = (round(float(value)) for value in box)
    size = (max(1, x1 - x0), max(1, y1 - y0))
    out.paste(Image.fromarray(colors).resize(size, Image.Resampling.NEAREST), (x0, y0))
    return framed(out, [np.asarray(box) / np.array(out.size * 2)], [PURPLE])
