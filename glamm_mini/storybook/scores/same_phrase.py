"""Do two phrases of the storybook mean the same? Exact, because the world knows its own words."""

import functools
import re

from glamm_mini.storybook.language.words import parse_phrase


def storybook_similarity(truth: str, phrase: str, attributes: dict | None = None) -> float:
    """1.0 if the phrase names the truth's class and states no wrong colour, pattern, size or count; else 0.0.

    What the picture's record knows (`attributes`) counts; what it leaves open is read from the truth's own words.
    """
    said, meant = stated_in(phrase), meaning(truth, attributes)
    if meant["cls"] is None:  # words outside the world: only the same words are right
        return float(_words(truth) == _words(phrase) != [])
    if said["cls"] != meant["cls"]:
        return 0.0
    stated = [key for key in ("colour", "pattern", "size", "count") if said[key] is not None]
    return float(all(meant[key] is None or said[key] == meant[key] for key in stated))


@functools.lru_cache(maxsize=65536)
def _described(text: str) -> tuple:
    description = parse_phrase(text)
    return tuple(getattr(description, key, None) for key in ("cls", "colour", "pattern", "size", "count"))


def stated_in(text: str) -> dict:
    """What a storybook phrase states: cls, colour, pattern, size, count; None where it is silent."""
    return dict(zip(("cls", "colour", "pattern", "size", "count"), _described(text), strict=True))


def meaning(truth: str, attributes: dict | None) -> dict:
    """As `stated_in`, of a true phrase: what the record knows goes before what the words state."""
    meant = stated_in(truth)
    return meant | {key: value for key, value in (attributes or {}).items() if key in meant and value is not None}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
