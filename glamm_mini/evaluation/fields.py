"""JSON that somebody hands in, checked against the form that it should have: an error names file, record and field."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

LARGEST = 2**28
"""Pixels of the largest picture that is taken: a number in a file must not fill the memory."""


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    # A lone half of a surrogate pair can stand in JSON, but in no file that a scorer writes.
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


def _is_size(value: Any) -> bool:
    sides = isinstance(value, list | tuple) and len(value) == 2 and all(is_whole(side) and side > 0 for side in value)
    return sides and value[0] * value[1] <= LARGEST


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "text": (_is_text, "text"),
    "number": (lambda v: (is_whole(v) or isinstance(v, float)) and abs(v) <= sys.float_info.max, "a finite number"),
    "whole": (lambda value: is_whole(value) and value > 0, "a whole number above 0"),
    "mark": (lambda value: isinstance(value, int | float) and value in (0, 1), "0 or 1"),
    "id": (lambda value: is_whole(value) or (_is_text(value) and value != ""), "a whole number or a text, not empty"),
    "size": (_is_size, f"[height, width], whole numbers above 0 and at most {LARGEST:,} pixels"),
    "list": (lambda value: isinstance(value, list), "a list"),
    "object": (lambda value: isinstance(value, dict), "an object"),
}
KINDS["area"] = (lambda value: KINDS["number"][0](value) and value >= 0, "a number of 0 or more")
KINDS |= {f"{kind}s": (_all(KINDS[kind][0]), f"a list, each {KINDS[kind][1]}") for kind in ("text", "number", "id")}


def checked(value: Any, form: Any, where: str, name: str = "") -> Any:
    """The value, if it has the form: one of KINDS, `[form of each]` or `{field: its form}`; other fields are free.

    A "field?" may be missing or null. where: the place in words, such as "pred/a.json: expressions[2]"; name: the
    field of it that holds the value. Raises ValueError that names place, field and what was expected.
    """
    right, expected = KINDS[{list: "list", dict: "object"}.get(type(form), form)]
    if not right(value):
        raise ValueError(f"{where}{f': {name!r}' if name else ''} is {shown(value)}; expected {expected}")
    where += f": {name}" if name else ""
    for k, item in enumerate(value if isinstance(form, list) else ()):
        checked(item, form[0], f"{where}[{k}]")
    for key, part in form.items() if isinstance(form, dict) else ():
        field = key.removesuffix("?")
        if key == field and field not in value:
            raise ValueError(f"{where} has no field {field!r}; expected one: {', '.join(form)}")
        if key == field or value.get(field) is not None:
            checked(value[field], part, where, field)
    return value


def by_id(records: list[dict], name: str, where: str) -> dict[str, dict]:
    """Records by their field `name`, as text: 7 and "7" are one id. Raises ValueError for one that is there twice."""
    found: dict[str, dict] = {}
    for k, record in enumerate(records):
        if found.setdefault(str(record[name]), record) is not record:
            raise ValueError(f"{where}[{k}]: {name!r} '{record[name]}' is there twice; ids must differ, also as text")
    return found


def shown(value: Any) -> str:
    """A value in an error text: short, and a list or an object by its kind alone."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError that lists the choices unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"Unknown {what} {value!r}; choose one of: {', '.join(choices)}.")
