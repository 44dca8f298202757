"""Pictures as PNG files that stay small, so that notebooks with many answers stay small too."""

from io import BytesIO

from PIL import Image

BYTES = 60_000
"""PNGs larger than this are reduced to 256 colours, then in size."""


def png_bytes(picture: Image.Image, limit: int = BYTES) -> bytes:
    """An RGB picture as PNG of at most `limit` bytes: at first as it is, then with 256 colours, then smaller."""
    data = _encode(picture)
    if len(data) > limit:
        data = _encode(_few_colours(picture))
    while len(data) > limit and max(picture.size) > 1:
        # The file shrinks with the area, a little less than in proportion.
        scale = min(0.9, 0.95 * (limit / len(data)) ** 0.5)
        picture = picture.resize([max(1, int(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
        data = _encode(_few_colours(picture))
    return data


def _few_colours(picture: Image.Image) -> Image.Image:
    """256 colours that keep the hue of thin outlines (Pillow's default palette does not), with skies dithered."""
    palette = picture.quantize(256, method=Image.Quantize.FASTOCTREE)
    return picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)


def _encode(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
