"""The names of the storybook world: synonyms, plurals, articles, and reading a phrase back into what it states."""

import random
import re
from dataclasses import dataclass, fields

from glamm_mini.storybook.language import vocabulary

SYNONYMS: dict[str, tuple[str, ...]] = {
    "house": ("house", "cottage"),
    "boat": ("boat", "sailboat", "ship"),
    "car": ("car", "automobile"),
    "flower": ("flower", "blossom"),
    "umbrella": ("umbrella", "parasol"),
    "lighthouse": ("lighthouse", "beacon"),
    "rock": ("rock", "stone", "boulder"),
    "mountain": ("mountain", "peak"),
    "mushroom": ("mushroom", "toadstool"),
}
"""Class to the names it goes by, the canonical name first. A class that is missing goes by its own name alone."""

STUFF_NAMES: dict[str, tuple[str, ...]] = {
    "night sky": ("night sky", "dark sky"),
    "meadow": ("meadow", "grass"),
    "sea": ("sea", "water", "ocean"),
    "sand": ("sand", "beach"),
    "road": ("road", "street"),
}
"""Kind of stuff to the names it goes by, the canonical name first."""

SIZE_NAMES = {"small": ("small", "little"), "medium": ("medium",), "large": ("large", "big")}
PATTERN_NAMES = {"plain": ("plain",), "striped": ("striped",), "dotted": ("dotted", "spotted")}

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

IRREGULAR = {"fish": "fish", "snowman": "snowmen", "cactus": "cacti"}
PLURAL_STUFF = frozenset({"dunes"})

# Words that models and people use for the same things; read, never written.
READ_ALSO = {
    "cls": {
        "home": "house",
        "hut": "house",
        "seagull": "bird",
        "bush": "tree",
        "hill": "mountain",
        "auto": "car",
        "yacht": "boat",
    },
    "size": {"tiny": "small", "huge": "large", "middle": "medium", "medium": "medium"},
    "pattern": {"stripy": "striped", "stripes": "striped", "dots": "dotted", "spots": "dotted", "dotty": "dotted"},
}


@dataclass(frozen=True)
class Description:
    """What a phrase states. A field is None where the phrase says nothing; a kind of stuff counts as `cls`."""

    cls: str | None = None
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None
    count: int | None = None

    def contradicts(self, truth: "Description") -> bool:
        """Whether some field that both state differs."""
        pairs = ((getattr(self, field.name), getattr(truth, field.name)) for field in fields(self))
        return any(mine is not None and theirs is not None and mine != theirs for mine, theirs in pairs)


def names_of(cls: str) -> tuple[str, ...]:
    """All names of a class or a kind of stuff, the canonical one first."""
    return SYNONYMS.get(cls) or STUFF_NAMES.get(cls) or (cls,)


def plural(name: str) -> str:
    """The plural of a name: "boat" gives "boats", "air balloon" gives "air balloons"."""
    head, blank, last = name.rpartition(" ")
    if last in IRREGULAR:
        return head + blank + IRREGULAR[last]
    if last.endswith("y") and last[-2] not in "aeiou":
        return head + blank + last[:-1] + "ies"
    ending = "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return head + blank + last + ending


def with_article(name: str) -> str:
    """ "a boat", "an orange kite": the indefinite article that fits the first sound."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def choose(rng: random.Random, options: tuple[str, ...]) -> str:
    """One of `options`; the first, canonical one about two times in three, so that a reader sees it most."""
    if len(options) == 1 or rng.random() < 0.6:
        return options[0]
    return options[int(rng.random() * len(options))]


def _singular_and_plural() -> dict[tuple[str, ...], tuple[str, int | None]]:
    """Every name, as lower-case words, to (canonical class, count it implies: 1, or None where it is open)."""
    table: dict[tuple[str, ...], tuple[str, int | None]] = {}
    for kind in vocabulary.STUFF:
        for name in names_of(kind):
            table[tuple(name.split())] = (kind, None)
    for cls in vocabulary.CLASSES:
        for name in names_of(cls):
            table[tuple(plural(name).split())] = (cls, None)
            if plural(name) != name:
                table[tuple(name.split())] = (cls, 1)
    for name, cls in READ_ALSO["cls"].items():
        if cls in vocabulary.CLASSES and (name,) not in table:
            table[(name,)] = (cls, 1)
            table.setdefault((plural(name),), (cls, None))
    return table


def _attribute_words() -> dict[str, tuple[str, str]]:
    """Every attribute word to (field, canonical value)."""
    table = {colour: ("colour", colour) for colour in vocabulary.COLOURS}
    table.update({"gray": ("colour", "grey")} if "grey" in vocabulary.COLOURS else {})
    for field, names in (("size", SIZE_NAMES), ("pattern", PATTERN_NAMES)):
        table.update({word: (field, value) for value, words in names.items() for word in words})
        table.update({word: (field, value) for word, value in READ_ALSO[field].items()})
    return table


_NAMES = _singular_and_plural()
_LONGEST = max(len(name) for name in _NAMES)
_ATTRIBUTES = _attribute_words()
_COUNTS = {word: number for number, word in enumerate(NUMBERS)} | {"a": 1, "an": 1, "both": 2}
_WORD = re.compile(r"[a-z]+|\d+")


def _find_name(words: list[str]) -> tuple[str | None, int | None, int, int]:
    """The first, longest name in `words`: (class, implied count, start, end), or (None, None, 0, 0)."""
    for start in range(len(words)):
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            found = _NAMES.get(tuple(words[start : start + length]))
            if found:
                return found[0], found[1], start, start + length
    return None, None, 0, 0


def parse_phrase(text: str) -> Description:
    """What a phrase states: "two small red boats" gives (cls boat, colour red, pattern None, size small, count 2).

    Synonyms are resolved; unknown words, a wrong order of words and capitals do not matter. Where a phrase names
    several things ("the bird left of the red house"), the first is meant, and what follows its name describes
    another. A singular name or "a" is a count of 1, a bare plural leaves the count open.
    """
    words = _WORD.findall(text.lower())
    cls, implied, start, end = _find_name(words)
    stated: dict[str, str] = {}
    count = None
    for word in words[:start] if cls else words:
        if word in _ATTRIBUTES:
            field, value = _ATTRIBUTES[word]
            stated.setdefault(field, value)
        elif word in _COUNTS or word.isdigit():
            number = _COUNTS[word] if word in _COUNTS else int(word)
            count = number if count is None or word not in ("a", "an") else count
    for word in words[end:] if cls else ():
        # "a balloon red and striped": attributes right after the name still belong to it.
        if word in ("and", "with", "that", "is", "are"):
            continue
        if word not in _ATTRIBUTES or _find_name(words[end:])[0]:
            break
        field, value = _ATTRIBUTES[word]
        stated.setdefault(field, value)
    if count is None:
        count = implied
    if cls in vocabulary.STUFF:
        count = None
    return Description(cls=cls, count=count, **stated)
