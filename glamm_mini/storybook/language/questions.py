"""Questions with short answers: counts, colours, patterns, sizes, positions, place and time, and about a box.

What is asked is balanced, so that guessing without the picture does not help: yes and no, left and right, and the
numbers are drawn first, then a question that has this answer. A canonical answer has one surface form.
"""

import random
from dataclasses import dataclass
from itertools import compress, product

from glamm_mini.storybook.language import vocabulary
from glamm_mini.storybook.language.captions import place_of
from glamm_mini.storybook.language.phrasebook import PLACE_WORDS, REGION_ANSWERS, SHORT
from glamm_mini.storybook.language.referring import Stated, matching, phrase_of, shortest
from glamm_mini.storybook.language.speech import noun_phrase, pick
from glamm_mini.storybook.language.words import NUMBERS, PATTERN_NAMES, SIZE_NAMES, names_of, with_article
from glamm_mini.storybook.world.relations import LOOSE, ORDER, RELATIONS, View


@dataclass(frozen=True)
class Asked:
    """question: may hold `<bbox>`; answer: one to four words; kind: an asker, or one and what it asks of a box or a
    pair; members: the things of its boxes, in order; also: other answers that are right."""

    question: str
    answer: str
    kind: str
    members: tuple[int, ...] = ()
    also: tuple[str, ...] = ()


PLACE_ANSWERS = {place: forms[0] for place, forms in PLACE_WORDS.items()}
BOX = "<bbox>"


def _yes(answer: bool) -> str:
    return "Yes." if answer else "No."


def _ask(rng: random.Random, kind: str, **slots: str) -> str:
    return pick(rng, SHORT[kind]).format(**slots)


def _named(view: View, rng: random.Random, k: int) -> str | None:
    """ "the boat", or with attributes where there are two; None where nothing singles it out."""
    stated = shortest(view, rng, k)
    return phrase_of(rng, stated) if stated else None


def _one(view: View, rng: random.Random) -> tuple[int, str] | None:
    """A thing and what to call it."""
    things = list(view.things)
    rng.shuffle(things)
    for k in things[:4]:
        name = _named(view, rng, k)
        if name:
            return k, name
    return None


def _answer_name(view: View, k: int) -> str:
    """How an answer calls thing `k`: always colour and canonical class, as "The red house."."""
    return f"The {view.thing(k).colour} {view.thing(k).cls}."


def ask_count(view: View, rng: random.Random) -> Asked | None:
    """How many of a class or of a class and colour; the number is drawn first, among those the picture offers."""
    pools: dict[int, list[Stated]] = {0: absent(view, rng)}
    for k in view.things:
        thing = view.thing(k)
        for stated in ({"cls": thing.cls}, {"colour": thing.colour}, {"cls": thing.cls, "colour": thing.colour}):
            pools.setdefault(len(matching(view, stated)), []).append(stated)
    several = [number for number in pools if number > 1]
    number = pick(rng, several) if several and rng.random() < 0.6 else pick(rng, [0, 1])
    if not pools.get(number):
        return None
    stated = pick(rng, pools[number])
    nouns = phrase_of(rng, stated, count=2, article="")
    return Asked(_ask(rng, "count", nouns=nouns), f"{NUMBERS[number].capitalize()}.", "count")


def absent(view: View, rng: random.Random) -> list[Stated]:
    """Things that the picture might well hold and does not: a class of the place, or a class in another colour."""
    present = {view.thing(k).cls for k in view.things}
    options: list[Stated] = []
    missing = [cls for cls in vocabulary.PLACE_CLASSES[view.scene.place] if cls not in present]
    if missing:
        options.append({"cls": pick(rng, missing)})
    for cls in sorted(present):
        here = {view.thing(k).colour for k in matching(view, {"cls": cls})}
        # A pair that only the compositional split shows is never asked for: "no" would always be right in training.
        free = [c for c in vocabulary.COLOURS if c not in here and (cls, c) not in vocabulary.UNSEEN_PAIRS]
        if free:
            options.append({"cls": cls, "colour": pick(rng, free)})
    return options


def ask_colour(view: View, rng: random.Random) -> Asked | None:
    """The colour of a thing that its class, or another attribute, singles out."""
    things = list(view.things)
    rng.shuffle(things)
    for k in things:
        for fields in (("cls",), ("cls", "pattern"), ("cls", "size")):
            stated = {field: getattr(view.thing(k), field) for field in fields}
            if len(matching(view, stated)) == 1:
                return Asked(_ask(rng, "colour", x=phrase_of(rng, stated)), _cap(view.thing(k).colour), "colour")
    return None


def _cap(word: str) -> str:
    return f"{word.capitalize()}."


def ask_exists(view: View, rng: random.Random) -> Asked | None:
    """Is there such a thing? Yes and no are equally frequent, with and without a colour."""
    present = rng.random() < 0.5
    coloured = rng.random() < 0.6
    if present:
        thing = view.thing(pick(rng, view.things))
        stated = {"cls": thing.cls, "colour": thing.colour} if coloured else {"cls": thing.cls}
    else:
        missing = [stated for stated in absent(view, rng) if ("colour" in stated) == coloured]
        if not missing:
            return None
        stated = pick(rng, missing)
    return Asked(_ask(rng, "exists", x=phrase_of(rng, stated, article="a")), _yes(present), "exists")


def ask_pattern(view: View, rng: random.Random) -> Asked | None:
    """Plain, striped or dotted: the pattern is drawn first, among those the picture shows."""
    by_pattern: dict[str, list[int]] = {}
    for k in view.things:
        by_pattern.setdefault(view.thing(k).pattern, []).append(k)
    pattern = pick(rng, sorted(by_pattern))
    for k in by_pattern[pattern]:
        thing = view.thing(k)
        for fields in (("cls",), ("cls", "colour")):
            stated = {field: getattr(thing, field) for field in fields}
            if len(matching(view, stated)) == 1:
                return Asked(_ask(rng, "pattern", x=phrase_of(rng, stated)), _cap(pattern), "pattern")
    return None


def _two(view: View, rng: random.Random) -> tuple[int, str, int, str] | None:
    """Two different things and their names."""
    if len(view.things) < 2:
        return None
    a, b = rng.sample(view.things, 2)
    x, y = _named(view, rng, a), _named(view, rng, b)
    return (a, x, b, y) if x and y else None


def ask_size(view: View, rng: random.Random) -> Asked | None:
    """Which of two is larger; only where the sizes differ in name."""
    two = _two(view, rng)
    if not two:
        return None
    a, x, b, y = two
    rank = ORDER[view.thing(a).size] - ORDER[view.thing(b).size]
    if rank == 0:
        return None
    kind = pick(rng, ("larger", "smaller", "larger than"))
    if kind == "larger than":
        return Asked(_ask(rng, kind, x=x, y=y), _yes(rank > 0), "size: yes or no")
    chosen = a if (rank > 0) == (kind == "larger") else b
    answer = _cap_first(x if chosen == a else y)
    return Asked(_ask(rng, kind, x=x, y=y), answer, "size: which", also=_names(view, chosen, b if chosen == a else a))


def _names(view: View, chosen: int, other: int) -> tuple[str, ...]:
    """Whatever calls the chosen one of two things by its class so that the other cannot be meant."""
    thing, found = view.thing(chosen), []
    forms = {"size": SIZE_NAMES[thing.size], "pattern": PATTERN_NAMES[thing.pattern], "colour": (thing.colour,)}
    for said in product((False, True), repeat=3):
        fields = (*compress(forms, said), "cls")
        if other not in matching(view, {field: getattr(thing, field) for field in fields}):
            chains = product(("the ", ""), *compress(forms.values(), said), names_of(thing.cls))
            found += [article + " ".join(words) for article, *words in chains]
    return tuple(found)


def _cap_first(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def ask_where(view: View, rng: random.Random) -> Asked | None:
    """Left or right, above or below, of two named things; each answer is equally frequent as the order is chance."""
    two = _two(view, rng)
    if not two:
        return None
    a, x, b, y = two
    if rng.random() < 0.4:
        return _ask_height(view, rng, two)
    if not (view.left_of(a, b) or view.left_of(b, a)):
        return None
    kind = pick(rng, ("side", "side", "left", "right"))
    left = view.left_of(a, b)
    answer = ("Left." if left else "Right.") if kind == "side" else _yes(left == (kind == "left"))
    return Asked(_ask(rng, kind, x=x, y=y), answer, "where")


def _ask_height(view: View, rng: random.Random, two: tuple[int, str, int, str]) -> Asked | None:
    """Above or below where the upper one flies, else higher or lower in the picture; only where it is clear."""
    a, x, b, y = two
    up = view.above(a, b, 0.12)
    if not up and not view.above(b, a, 0.12):
        return None
    flies = view.thing(a if up else b).cls in vocabulary.FLYING
    question = _ask(rng, "above" if flies and rng.random() < 0.7 else "higher", x=x, y=y)
    answers = next(pair for pair in HEIGHTS if pair[0].lower() in question.split())
    return Asked(question, _cap(answers[0] if up else answers[1]), "where")


HEIGHTS = (("above", "below"), ("over", "under"), ("higher", "lower"))


def ask_place(view: View, rng: random.Random) -> Asked | None:
    """The place, where the ground tells it."""
    place = place_of(view)
    return Asked(_ask(rng, "place"), _cap_first(PLACE_ANSWERS[place]), "place") if place else None


def ask_time(view: View, rng: random.Random) -> Asked | None:
    """Day or night; nights are rarer than days, so days are mostly passed over."""
    if view.sky is None or (view.sky == "sky" and rng.random() < DAY_PASSED):
        return None
    return Asked(_ask(rng, "time"), "Night." if view.sky == "night sky" else "Day.", "time")


DAY_PASSED = 0.65


def ask_box(view: View, rng: random.Random) -> Asked | None:
    """About what is in a box: its name, colour, pattern, size, or what is beside, behind or before it."""
    k = pick(rng, view.things)
    thing = view.thing(k)
    kind = pick(rng, ("what", "colour", "pattern", "size", "neighbour", "neighbour", "compare"))
    if kind == "neighbour":
        return _box_neighbour(view, rng)
    if kind == "compare":
        two = _two(view, rng)
        if not two or not (view.left_of(two[0], two[2]) or view.left_of(two[2], two[0])):
            return None
        side = pick(rng, ("left", "right"))
        left = view.left_of(two[0], two[2])
        return Asked(_ask(rng, side, x=BOX, y=BOX), _yes(left == (side == "left")), "box: side", (two[0], two[2]))
    if kind == "what":
        return Asked(_ask(rng, kind, x=BOX), _cap_first(with_article(thing.cls)), "box: what", (k,))
    value = getattr(thing, kind)
    return Asked(_ask(rng, kind, x=BOX), _cap(value), f"box: {kind}", (k,))


NEIGHBOURS = (
    ("what is behind", "behind"),
    ("what is in front", "front"),
    ("what is left", "left"),
    ("what is right", "right"),
)
"""Question about a box, and the relation to it that the answer has."""


def _box_neighbour(view: View, rng: random.Random) -> Asked | None:
    """What is behind, in front, left or right of a box, where one thing is and no other comes near to it."""
    options = []
    for k in view.things:
        for kind, name in NEIGHBOURS:
            fitting = [m for m in view.things if m != k and RELATIONS[name](view, m, k)]
            if len(fitting) != 1:
                continue
            if name in ("left", "right") and any(
                LOOSE[name](view, m, k) for m in view.things if m not in (k, fitting[0])
            ):
                continue
            options.append((kind, k, fitting[0]))
    if not options:
        return None
    rare = [option for option in options if option[0] in ("what is behind", "what is in front")]
    kind, k, other = pick(rng, rare if rare and rng.random() < 0.6 else options)
    return Asked(_ask(rng, kind, x=BOX), _answer_name(view, other), f"box: {kind}", (k,))


ASKERS = {
    "count": ask_count,
    "colour": ask_colour,
    "exists": ask_exists,
    "pattern": ask_pattern,
    "size": ask_size,
    "where": ask_where,
    "place": ask_place,
    "time": ask_time,
    "box": ask_box,
}
WEIGHTS = (1.2, 1.2, 1.2, 1.0, 0.8, 1.8, 0.4, 0.3, 2.4)


def ask(view: View, rng: random.Random, kinds: tuple[str, ...] | None = None) -> Asked | None:
    """A question with its short answer, of the given kinds or of all; None where the picture allows none of them."""
    if not view.things:
        kinds = ("place", "time")
    for _ in range(8):
        kind = pick(rng, kinds) if kinds else rng.choices(list(ASKERS), WEIGHTS)[0]
        asked = ASKERS[kind](view, rng)
        if asked:
            return asked
    return None


def describe_region(view: View, rng: random.Random, k: int) -> str:
    """What a box holds, all four attributes stated: "A small plain red balloon in the sky."."""
    thing = view.thing(k)
    phrase = noun_phrase(rng, thing.cls, colour=thing.colour, pattern=thing.pattern, size=thing.size)
    return pick(rng, REGION_ANSWERS).format(x=phrase)
