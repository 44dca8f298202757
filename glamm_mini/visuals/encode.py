"""Pictures as files that stay small, so that notebooks with many answers stay small too."""

import base64
from io import BytesIO

from PIL import Image

BYTES = 50_000
"""PNGs larger than this are reduced to 256 colors, then in size."""


def png_bytes(picture: Image.Image, limit: int = BYTES) -> bytes:
    """An RGB picture as PNG of at most `limit` bytes: at first as it is, then with 256 colors, then smaller."""
    data = _encode(picture)
    if len(data) > limit:
        data = _encode(_few_colors(picture))
    while len(data) > limit and max(picture.size) > 1:
        # The file shrinks with the area, a little less than in proportion.
        scale = min(0.9, 0.95 * (limit / len(data)) ** 0.5)
        picture = picture.resize([max(1, int(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
        data = _encode(_few_colors(picture))
    return data


def data_url(picture: Image.Image, limit: int = 2 * BYTES) -> str:
    """An RGB picture as an address for HTML that holds it: WebP, a third of a PNG's size, as all browsers read it.

    Above `limit` bytes the quality falls, step by step to the lowest."""
    for quality in (88, 60, 30, 0):
        buffer = BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= limit:
            break
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _few_colors(picture: Image.Image) -> Image.Image:
    """256 colors that keep the hue of thin outlines (Pillow's default palette does not), with skies dithered."""
    palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _encode(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
