"""What all graders share: run a function on many cases, stop at the first that is wrong, say what was expected."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Grade:
    """The verdict on an exercise; true if it is passed."""

    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"{'✓ passed' if self.passed else '✗ not yet'}: {self.message}"


def grade(function: Callable, cases: Iterable[tuple], same: Callable = lambda a, b: a == b) -> Grade:
    """Compare a function with the expected values.

    Args:
        function: what the reader wrote.
        cases: pairs of arguments (a tuple) and the value expected for them.
        same: tells whether a value is as good as the expected one.
    """
    count = 0
    for count, (arguments, expected) in enumerate(cases, start=1):
        try:
            value = function(*copy.deepcopy(arguments))
            right = bool(same(value, expected))
        except NotImplementedError:
            return Grade(False, "the function is not written yet")
        except Exception as problem:
            return Grade(False, f"case {count} stops with {type(problem).__name__}: {problem}")
        if not right:
            given = ", ".join(_short(argument) for argument in arguments)
            return Grade(False, f"case {count}, for {given}: expected {_short(expected)}, got {_short(value)}")
    return Grade(True, f"all {count} cases are right")


def close(value, expected: float) -> bool:
    """Whether a number is right to six places."""
    return abs(float(value) - expected) < 1e-6


def _short(value) -> str:
    """A value in at most 200 letters; arrays by their shape."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"a {value.dtype} array of shape {value.shape} with {int(np.count_nonzero(value))} set"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
