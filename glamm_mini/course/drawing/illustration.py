"""Pictures in a notebook, with the words that stand for them where they cannot be seen."""

from io import BytesIO

from IPython.display import Image as Shown
from PIL import Image

from glamm_mini.visuals.encode import png_bytes

BYTES = 120_000
"""Twice what an answer may have: diagrams and charts suffer when their colors are reduced."""

DPI = 200
"""Pixels an inch of a matplotlib figure: shown at half their size, they are sharp on every screen."""


def illustration(picture, alt: str, width: int | None = None) -> Shown:
    """What a cell ends with to show a picture.

    Args:
        picture: a PIL image, or a matplotlib figure, which is closed so that it does not show itself again.
        alt: what is to be seen, for readers who do not see it.
        width: pixels on the page; the picture's own if left out.

    Raises:
        ValueError: alt is empty.
    """
    if not alt.strip():
        raise ValueError("the picture has no words: say in `alt` what is to be seen")
    if hasattr(picture, "savefig"):
        picture = _drawn(picture)
    # As metadata, since the IPython of hosted notebooks takes no `alt`.
    return Shown(data=png_bytes(picture, BYTES), format="png", metadata={"alt": alt}, width=width)


def _drawn(figure) -> Image.Image:
    from matplotlib import pyplot

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    pyplot.close(figure)
    return Image.open(buffer).convert("RGB")
