"""From noun phrases to finished text: drafts whose phrases are tagged, or not, when the sentence is done."""

import random
import re

import numpy as np

from glamm_mini.data.sample import Turn
from glamm_mini.model.tokens import PHRASE_END, PHRASE_START, SEG
from glamm_mini.storybook.language.words import (
    NUMBERS,
    PATTERN_NAMES,
    SIZE_NAMES,
    choose,
    names_of,
    plural,
    with_article,
)
from glamm_mini.storybook.world.relations import Group, View

_FIRST_MARK = 0xE000
_MARKS = re.compile("([\ue000-\ue0ff])")
_NEW_SENTENCE = re.compile(r"(?<=[.!?:] )[a-z]")


def pick(rng: random.Random, options):
    """One of a non-empty sequence (quicker than `rng.choice`, and the same on every Python)."""
    return options[int(rng.random() * len(options))]


def noun_phrase(
    rng: random.Random,
    cls: str,
    *,
    colour: str | None = None,
    pattern: str | None = None,
    size: str | None = None,
    count: int = 1,
    article: str = "a",
) -> str:
    """ "a small striped red balloon", "two red boats", "the boats".

    Args:
        rng: chooses among synonyms.
        cls: class or kind of stuff, canonical, or a general word such as "thing".
        colour, pattern, size: what to say of it; None says nothing.
        count: above 1 gives a plural, with the number in words where `article` is "a" or "the".
        article: "a", "the", or "" for none (and no number).
    """
    name = choose(rng, names_of(cls))
    words = [choose(rng, SIZE_NAMES[size])] if size else []
    if pattern:
        words.append(choose(rng, PATTERN_NAMES[pattern]))
    if colour:
        words.append(colour)
    words.append(name if count == 1 else plural(name))
    text = " ".join(words)
    if not article:
        return text
    if count > 1:
        number = NUMBERS[count] if count < len(NUMBERS) else "many"
        return f"{number} {text}" if article == "a" else f"the {number} {text}"
    return with_article(text) if article == "a" else f"the {text}"


def group_phrase(rng: random.Random, group: Group, article: str = "a") -> str:
    """The phrase of a group by the attribute policy: colour and class always, pattern and size unless default."""
    return noun_phrase(
        rng,
        group.cls,
        colour=group.colour,
        pattern=None if group.pattern == "plain" else group.pattern,
        size=None if group.size == "medium" else group.size,
        count=group.count,
        article=article,
    )


class Draft:
    """A text under construction: each phrase is one private character until the text is finished.

    Templates may then put phrases in any order; masks come out in the order in which phrases stand in the text.
    """

    def __init__(self, view: View):
        self.view = view
        self._phrases: list[tuple[str, str | tuple[int, ...], dict]] = []

    def phrase(self, text: str, where: str | tuple[int, ...], facts: dict) -> str:
        """Adds a phrase and returns its mark.

        Args:
            text: its words. where: a kind of stuff, or indices of things. facts: the truth that scoring needs.
        """
        self._phrases.append((text, where, facts))
        return chr(_FIRST_MARK + len(self._phrases) - 1)

    def group(self, rng: random.Random, group: Group, article: str = "a") -> str:
        """Adds the phrase of a group."""
        facts = {"cls": group.cls, "colour": group.colour, "pattern": group.pattern, "size": group.size}
        return self.phrase(group_phrase(rng, group, article), group.members, facts | {"count": group.count})

    def stuff(self, rng: random.Random, kind: str) -> str:
        """Adds the phrase of a kind of stuff: "the sea"."""
        facts = {"cls": kind, "colour": None, "pattern": None, "size": None, "count": None}
        return self.phrase(noun_phrase(rng, kind, article="the"), kind, facts)

    def _pieces(self, text: str) -> list[tuple[str, int | None]]:
        """The text cut at its marks, sentences capitalized: (words, index of the phrase or None)."""
        pieces: list[tuple[str, int | None]] = []
        starts = True
        for piece in _MARKS.split(text):
            if not piece:
                continue
            index = ord(piece) - _FIRST_MARK if _MARKS.fullmatch(piece) else None
            words = piece if index is None else self._phrases[index][0]
            words = _NEW_SENTENCE.sub(lambda match: match[0].upper(), words)
            if starts:
                words = words[0].upper() + words[1:]
            pieces.append((words, index))
            starts = words.endswith((". ", "! ", "? ", ": "))
        return pieces

    def plain(self, text: str) -> str:
        """The finished text without tags."""
        return "".join(words for words, _ in self._pieces(text))

    def tagged(self, text: str) -> tuple[str, np.ndarray, list[dict]]:
        """The finished text with tags, its masks (M, H, W) bool and the facts of its M phrases, in order."""
        parts, masks, facts = [], [], []
        for words, index in self._pieces(text):
            if index is None:
                parts.append(words)
                continue
            _, where, what = self._phrases[index]
            parts.append(f"{PHRASE_START} {words} {PHRASE_END} {SEG}")
            masks.append(self.view.stuff_mask(where) if isinstance(where, str) else self.view.thing_mask(where))
            facts.append({**what, "members": () if isinstance(where, str) else where})
        return "".join(parts), self.stack(masks), facts

    def stack(self, masks: list[np.ndarray]) -> np.ndarray:
        """(M, H, W) bool of a list of masks, also of an empty one."""
        return np.stack(masks) if masks else np.zeros((0, self.view.height, self.view.width), bool)

    def turn(self, question: str, text: str, boxes: list[list[float]] | None = None) -> Turn:
        """A question and this draft as its tagged answer."""
        answer, masks, _ = self.tagged(text)
        return Turn(question, answer, np.array(boxes or [], np.float32).reshape(-1, 4), masks)


def listing(parts: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
