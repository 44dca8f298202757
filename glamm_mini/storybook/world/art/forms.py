"""The registry of drawings: every class has one or more forms, each with the box it fills."""

from collections.abc import Callable
from dataclasses import dataclass

FORMS: dict[str, list["Form"]] = {}


@dataclass(frozen=True)
class Form:
    """One way to draw a class: the box (longer side 1) and the function that draws into it."""

    width: float
    height: float
    draw: Callable


def form(cls: str, width: float, height: float) -> Callable:
    """Register the decorated function `draw(brush)` as a form of the class."""

    def register(draw: Callable) -> Callable:
        FORMS.setdefault(cls, []).append(Form(width, height, draw))
        return draw

    return register


def form_index(cls: str, variant: float, count: int) -> int:
    """Which of the `count` forms of a class a variant in [0, 1] stands for."""
    return min(count - 1, int(variant * count))
