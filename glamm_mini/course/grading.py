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


def grade(
    function: Callable,
    cases: Iterable[tuple],
    same: Callable = lambda a, b: a == b,
    fault: Callable | None = None,
) -> Grade:
    """Compare a function with the expected values.

    Args:
        function: what the reader wrote.
        cases: pairs of arguments (a tuple) and the value expected for them.
        same: tells whether a value is as good as the expected one.
        fault: instead of `same`: takes the two and says what is wrong with the first, "" if nothing is (`array_fault`).
    """
    count = 0
    for count, (arguments, expected) in enumerate(cases, start=1):
        try:
            value = function(*copy.deepcopy(arguments))
            wrong = fault(value, expected) if fault else "" if same(value, expected) else _two(value, expected)
        except NotImplementedError:
            return Grade(False, "the function is not written yet")
        except Exception as problem:
            return Grade(False, f"case {count} stops with {type(problem).__name__}: {problem}")
        if wrong:
            given = ", ".join(_short(argument) for argument in arguments)
            return Grade(False, f"case {count}, for {given}: {wrong}")
    return Grade(True, f"all {count} cases are right")


def close(value, expected: float) -> bool:
    """Whether a number is right to six places."""
    return abs(float(value) - expected) < 1e-6


def array_fault(value, expected, tolerance: float = 1e-5) -> str:
    """What is wrong with an array or a tensor, "" if nothing is: its type, shape, dtype, or the first element that
    differs by more than `tolerance` (absolute, and relative for values above 1)."""
    if type(value).__module__.partition(".")[0] != type(expected).__module__.partition(".")[0]:
        return f"expected a {_kind(expected)}, got a {_kind(value)}"
    if tuple(value.shape) != tuple(expected.shape):
        return f"expected shape {tuple(expected.shape)}, got {tuple(value.shape)}"
    mine, right = (_numbers(part) for part in (value, expected))
    if mine.dtype.kind.replace("u", "i") != right.dtype.kind.replace("u", "i"):
        return f"expected dtype {expected.dtype}, got {value.dtype}"
    exact = right.dtype.kind != "f"
    equal = mine == right if exact else np.isclose(mine, right, rtol=tolerance, atol=tolerance, equal_nan=True)
    if equal.all():
        return ""
    place = tuple(int(i) for i in np.argwhere(~equal)[0])
    where = f"element {list(place)}" if place else "the value"
    return f"{where} is {mine[place]:.6g}, expected {right[place]:.6g} ({np.mean(~equal):.0%} of the elements differ)"


def _numbers(array) -> np.ndarray:
    """An array, or a tensor of any floating dtype, as a NumPy array."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        array = array.double() if array.is_floating_point() else array
    return np.asarray(array)


def _kind(value) -> str:
    name = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    return name.removeprefix("builtins.")


def _two(value, expected) -> str:
    return f"expected {_short(expected)}, got {_short(value)}"


def _short(value) -> str:
    """A value in at most 200 letters; arrays and tensors by their shape."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"a {value.dtype} array of shape {value.shape} with {int(np.count_nonzero(value))} set"
    if hasattr(value, "detach") and value.ndim:
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
