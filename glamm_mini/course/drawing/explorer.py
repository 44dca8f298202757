"""A picture that is drawn anew whenever you move a slider, press a button, click, drag a box or type."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets
from PIL import Image

from glamm_mini.course.drawing.compose import labeled
from glamm_mini.course.drawing.pictured import PicturedWidget
from glamm_mini.visuals.encode import data_url

POINTERS = (None, "click", "box")


class PictureExplorer(PicturedWidget):
    """One picture and a line of words, both drawn by a function of yours from what the reader has chosen.

    Args:
        draw: takes the choice, a dict, and returns (PIL image, words). The choice holds one value for each axis, and
            "point" (x, y), "box" (x0, y0, x1, y1), both fractions 0..1 of the picture or None, and "text".
        axes: name to options, or to (options, the first one). Numbers become a slider, texts become buttons.
        pointer: None, "click" (a click sets the point) or "box" (dragging sets the box).
        text: what a text field holds at first; None for no field.
        title: a line above the picture. width: pixels on the page.
        panels: choices (each a dict, the rest as at first) that the picture for pages without Python shows beside
            each other; the first choice alone if left out.
        alt: words for that picture; by default the words of its panels.

    Raises:
        ValueError: an axis without options, a name that is taken, an unknown pointer, or a choice that is no option.
    """

    _esm = (Path(__file__).parent / "explorer.js").read_text(encoding="utf-8")

    picture = traitlets.Unicode().tag(sync=True)
    words = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    width = traitlets.Int(720).tag(sync=True)
    axes = traitlets.List().tag(sync=True)
    pointer = traitlets.Unicode("").tag(sync=True)
    has_text = traitlets.Bool(False).tag(sync=True)
    wanted = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        draw: Callable[[dict], tuple[Image.Image, str]],
        axes: Mapping[str, Sequence | tuple[Sequence, Any]] | None = None,
        pointer: str | None = None,
        text: str | None = None,
        title: str = "",
        width: int = 720,
        panels: Sequence[Mapping] = (),
        alt: str = "",
    ):
        if pointer not in POINTERS:
            raise ValueError(f"pointer is {pointer!r}; expected one of {', '.join(map(repr, POINTERS))}")
        self._draw, self._options, first = draw, {}, {}
        for name, given in (axes or {}).items():
            self._options[name], first[name] = _axis(name, given)
        self.choice = first | {"point": None, "box": None, "text": text or ""}
        self._first, self._panels, self._alt = dict(self.choice), list(panels), alt
        for panel in panels:
            self._checked(panel)
        image, words = draw(dict(self.choice))
        super().__init__(
            picture=data_url(image),
            words=words,
            title=title,
            width=width,
            axes=[{"name": name, "options": options} for name, options in self._options.items()],
            pointer=pointer or "",
            has_text=text is not None,
            wanted=dict(self.choice),
        )

    def __repr__(self) -> str:
        return f"PictureExplorer({', '.join(f'{name}={value!r}' for name, value in self.choice.items() if value)})"

    def choose(self, **values) -> None:
        """Choose from Python, as the reader does on the page: the picture is drawn anew."""
        self.wanted = self.choice | self._checked(values)

    @traitlets.observe("wanted")
    def _redraw(self, change) -> None:
        try:
            choice = self.choice | self._checked(change["new"])
            if choice == self.choice:
                return
            image, words = self._draw(dict(choice))
        except Exception as problem:
            # An error in a callback would vanish in a log: it is said where the reader looks.
            self.words = f"{type(problem).__name__}: {problem}"
            return
        self.choice = choice
        with self.hold_sync():
            self.picture, self.words = data_url(image), words

    def _checked(self, values: Mapping) -> dict:
        """The values with lists as tuples. Raises ValueError for a name or an option that there is not."""
        known = {}
        for name, value in values.items():
            if name not in self.choice:
                raise ValueError(f"nothing is called {name!r} here; choose {', '.join(self.choice)}")
            value = tuple(value) if isinstance(value, list) else value
            if name in self._options and value not in self._options[name]:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(str, self._options[name]))}")
            known[name] = value
        return known

    # ---- for pages that run no Python ----

    def static_picture(self) -> Image.Image:
        """The panels side by side, at most three in a row, each with its words below."""
        drawn = [self._draw(self._first | self._checked(panel)) for panel in self._panels or [{}]]
        return labeled(*zip(*drawn, strict=True), columns=2 if len(drawn) in (2, 4) else 3)

    def static_words(self) -> str:
        """`alt`, or the words of all panels."""
        panels = self._panels or [{}]
        return self._alt or "; ".join(self._draw(self._first | self._checked(panel))[1] for panel in panels)


def _axis(name: str, given) -> tuple[list, Any]:
    """The options of an axis and the first choice."""
    # Two options in a tuple are two options; only options in a sequence of their own have a first one beside them.
    paired = isinstance(given, tuple) and len(given) == 2 and _is_sequence(given[0]) and not _is_sequence(given[1])
    options, first = given if paired else (given, None)
    options = list(options)
    if name in ("point", "box", "text") or not options:
        raise ValueError(f"axis {name!r} needs a name other than point, box and text, and at least one option")
    first = options[0] if first is None else first
    if first not in options:
        raise ValueError(f"{name} begins with {first!r}; expected one of {', '.join(map(str, options))}")
    return options, first


def _is_sequence(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
