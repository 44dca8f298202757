"""What all graders share: run a function on many cases, stop at the first that is wrong, say what was expected."""

import copy
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Grade:
    """The verdict on an exercise; true if it is passed. Of a failed one it keeps the first case that is wrong.

    case: the arguments. expected: what should come back. yours: what came back; None where nothing did.
    """

    passed: bool
    message: str
    case: tuple = field(default=(), compare=False)
    expected: Any = field(default=None, compare=False)
    yours: Any = field(default=None, compare=False)

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
    """Compare a function with the expected values. What it is given it must leave as it is.

    Args:
        function: what the reader wrote.
        cases: pairs of arguments (a tuple) and the value expected for them.
        same: tells whether a value is as good as the expected one.
        fault: instead of `same`: takes the two and says what is wrong with the first, "" if nothing is (`array_fault`).
    """
    count, silent = 0, True
    for count, (arguments, expected) in enumerate(cases, start=1):
        mine = copy.deepcopy(arguments)
        given = ", ".join(_short(argument) for argument in arguments)
        start = f"case {count}, for {given}:"
        try:
            value = function(*mine)
        except NotImplementedError:
            return Grade(False, "the function is not written yet")
        except Exception as problem:
            what = f"stops with {type(problem).__name__}: {problem}{_line(problem, function)}"
            return Grade(False, f"{start} {what}", arguments, expected)
        silent = silent and value is None
        wrong = _wrong(value, expected, same, fault, silent) or _changed(arguments, mine)
        if wrong:
            return Grade(False, f"{start} {wrong}", arguments, expected, value)
    return Grade(True, f"all {count} cases are right")


def _wrong(value, expected, same: Callable, fault: Callable | None, silent: bool) -> str:
    """What is wrong with a value, "" if nothing is. One that cannot even be compared is wrong, too.

    silent: the function has never returned anything.
    """
    if value is None and expected is not None:
        return _two(value, expected) + "; is a `return` missing?" * silent
    try:
        return fault(value, expected) if fault else "" if same(value, expected) else _two(value, expected)
    except Exception as problem:
        return f"{_two(value, expected)}; the two cannot be compared ({type(problem).__name__}: {problem})"


def _line(problem: Exception, function: Callable) -> str:
    """ " (line 3 of the cell)": the last line of the reader's code that an exception came through; "" if unknown."""
    code = getattr(function, "__code__", None)
    frames = traceback.extract_tb(problem.__traceback__)
    lines = [frame.lineno for frame in frames if code and frame.filename == code.co_filename]
    return f" (line {lines[-1]} of the cell)" if lines else ""


def _changed(before: tuple, after: tuple) -> str:
    for number, (kept, used) in enumerate(zip(before, after, strict=True), start=1):
        if not _equal(kept, used):
            return f"the result is right, but argument {number} was changed on the way; work on a copy"
    return ""


def _equal(a, b) -> bool:
    """Whether two values, also nested ones with arrays and tensors in them, are the same, not-a-number included."""
    if type(a) is not type(b):
        return False
    if hasattr(a, "shape"):
        return array_fault(a, b, tolerance=0.0) == ""
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return a is b or bool(a == b)


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
    """A value in at most 200 characters; arrays and tensors by their shape, also those in a list or a dict."""
    text = _described(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _described(value) -> str:
    if isinstance(value, np.ndarray) and value.ndim:
        return f"a {value.dtype} array of shape {value.shape} with {int(np.count_nonzero(value))} set"
    if hasattr(value, "detach") and value.ndim:
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    holds = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if not any(hasattr(part, "shape") or isinstance(part, list | tuple | dict) for part in holds):
        return repr(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_described(part)}" for key, part in value.items()) + "}"
    parts = ", ".join(_described(part) for part in value)
    return f"[{parts}]" if isinstance(value, list) else f"({parts}{',' * (len(value) == 1)})"
