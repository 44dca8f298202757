"""Fields of JSON records that somebody hands in, checked one by one: an error names file, record and field.

`where` is the place of a record in words, such as "pred/a.json: expressions[2]".
"""

import math
from collections.abc import Callable
from typing import Any

LARGEST = 2**28
"""Pixels of the largest picture that is taken: a number in a file must not fill the memory."""
REQUIRED = object()


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    # A lone half of a surrogate pair can stand in JSON, but in no file that a scorer writes.
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: Any) -> bool:
    sides = isinstance(value, list | tuple) and len(value) == 2 and all(is_whole(side) for side in value)
    return sides and min(value) > 0 and value[0] * value[1] <= LARGEST


def _is_id(value: Any) -> bool:
    return is_whole(value) or (_is_text(value) and bool(value))


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text": (_is_text, "text"),
    "texts": (_all(_is_text), "a list of texts"),
    "whole": (lambda value: is_whole(value) and value > 0, "a whole number above 0"),
    "number": (_is_number, "a finite number"),
    "numbers": (_all(_is_number), "a list of finite numbers"),
    "id": (_is_id, "a whole number or a text that is not empty"),
    "ids": (_all(_is_id), "a list of whole numbers or texts"),
    "size": (_is_size, f"[height, width], whole numbers above 0 and at most {LARGEST:,} pixels"),
    "list": (lambda value: isinstance(value, list), "a list"),
    "object": (lambda value: isinstance(value, dict), "an object"),
}


def field(record: Any, name: str, kind: str, where: str, default: Any = REQUIRED) -> Any:
    """The value of a record's field, of one of KINDS.

    default: what a field that is missing or null stands for; without one the field is required.
    Raises ValueError that names the place, the field and what was expected.
    """
    if not isinstance(record, dict):
        raise ValueError(f"{where} is {shown(record)}; expected an object with the field {name!r}")
    value = record.get(name)
    if value is None and default is not REQUIRED:
        return default
    check, expected = KINDS[kind]
    if name not in record:
        raise ValueError(f"{where} has no field {name!r}; expected {expected}")
    if not check(value):
        raise ValueError(f"{where}: {name!r} is {shown(value)}; expected {expected}")
    return value


def by_id(records: list, name: str, where: str) -> dict[str, Any]:
    """Records by their field `name`, as text: 7 and "7" are one id.

    Raises ValueError for an id that is missing, of another type or there twice.
    """
    found: dict[str, Any] = {}
    for k, record in enumerate(records):
        key = str(field(record, name, "id", f"{where}[{k}]"))
        if key in found:
            raise ValueError(f"{where}[{k}]: {name!r} {key!r} is there twice; ids must differ, also as text")
        found[key] = record
    return found


def shown(value: Any) -> str:
    """A value in an error text: short, and a list or an object by its kind alone."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
