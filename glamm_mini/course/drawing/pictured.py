"""A widget that carries a picture of itself: pages that run no Python show the picture instead.

In Colab, anywidget asks for the widget manager of third parties by itself (a test holds it to that).
"""

import base64

import anywidget

from glamm_mini.visuals.encode import png_bytes

PANEL_BYTES = 120_000
"""More than an answer may have: it may hold several panels."""


class PicturedWidget(anywidget.AnyWidget):
    """A widget whose stored form is a PNG. A subclass has `static_picture()`, the PIL image that a page without Python
    shows, and `static_words()`, the words that stand for it where it is not seen."""

    def _repr_mimebundle_(self, **kwargs):
        """The widget's view, its picture, and its name as text."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        data["text/plain"] = repr(self)
        data["image/png"] = base64.b64encode(png_bytes(self.static_picture(), PANEL_BYTES)).decode("ascii")
        return data, metadata | {"image/png": {"alt": self.static_words(), "width": 800}}
