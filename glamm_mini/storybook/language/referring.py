"""Referring expressions that fit one thing of the picture and no other: by name, attribute or relation."""

import random
from dataclasses import dataclass

from glamm_mini.storybook.language import vocabulary
from glamm_mini.storybook.language.captions import at_home
from glamm_mini.storybook.language.phrasebook import (
    BY_HOME,
    BY_RELATION,
    GENERAL,
    GROUPS_OF_ALL,
    GROUPS_OF_TWO,
    ORDINALS,
    RELATION_WORDS,
    SIDES,
)
from glamm_mini.storybook.language.speech import group_phrase, noun_phrase, pick
from glamm_mini.storybook.world.relations import LOOSE, ORDER, RELATIONS, Group, View

KINDS = ("class", "attribute", "superlative", "relation", "group", "stuff")
WEIGHTS = (0.22, 0.22, 0.22, 0.22, 0.07, 0.05)


@dataclass(frozen=True)
class Expression:
    """text: "the bird left of the house"; members: the things it fits; stuff: or the kind; kind: one of KINDS."""

    text: str
    members: tuple[int, ...]
    kind: str
    stuff: str | None = None

    @property
    def several(self) -> bool:
        return len(self.members) > 1


Stated = dict[str, str]


def matching(view: View, stated: Stated) -> tuple[int, ...]:
    """The visible things of which all that is stated holds (keys: cls, colour, pattern, size)."""
    found = view.things
    for field, value in stated.items():
        found = tuple(k for k in found if getattr(view.thing(k), field) == value)
    return found


def phrase_of(rng: random.Random, stated: Stated, count: int = 1, article: str = "the") -> str:
    """A noun phrase that states this and nothing more."""
    rest = {field: value for field, value in stated.items() if field != "cls"}
    return noun_phrase(rng, stated.get("cls") or pick(rng, GENERAL), article=article, count=count, **rest)


def unique_attributes(view: View, rng: random.Random, k: int, fields: tuple[str, ...] = ("cls",)) -> Stated | None:
    """The fewest attributes, beside `fields`, that single out thing `k`; which ones is chance. None: no set does."""
    thing = view.thing(k)
    base = {field: getattr(thing, field) for field in fields}
    pool = [field for field in ("colour", "pattern", "size") if field not in base]
    order = sorted(pool, key=lambda field: rng.random() * (0.6 if field == "colour" else 1.0))
    for field in order:
        stated = base | {field: getattr(thing, field)}
        if len(matching(view, stated)) == 1:
            return stated
    for out in reversed(order):
        stated = base | {field: getattr(thing, field) for field in order if field != out}
        if len(matching(view, stated)) == 1:
            return stated
    stated = base | {field: getattr(thing, field) for field in order}
    return stated if len(matching(view, stated)) == 1 else None


def shortest(view: View, rng: random.Random, k: int) -> Stated | None:
    """What to call thing `k`: its class where that is enough, else with the fewest attributes that single it out."""
    stated = {"cls": view.thing(k).cls}
    return stated if len(matching(view, stated)) == 1 else unique_attributes(view, rng, k)


def _shuffled(rng: random.Random, items) -> list:
    items = list(items)
    rng.shuffle(items)
    return items


def _twins_first(view: View, rng: random.Random) -> list[int]:
    """The visible things in random order, those that share their class with another first."""
    classes = [view.thing(k).cls for k in view.things]
    return sorted(_shuffled(rng, view.things), key=lambda k: classes.count(view.thing(k).cls) < 2)


def by_class(view: View, rng: random.Random) -> Expression | None:
    """ "the boat", where there is one boat."""
    for k in _shuffled(rng, view.things):
        stated = {"cls": view.thing(k).cls}
        if len(matching(view, stated)) == 1:
            return Expression(phrase_of(rng, stated), (k,), "class")
    return None


def by_attribute(view: View, rng: random.Random) -> Expression | None:
    """ "the striped boat", "the red thing": things that share their class are asked for first."""
    order = _twins_first(view, rng) if rng.random() < 0.7 else _shuffled(rng, view.things)
    for k in order:
        fields = () if rng.random() < 0.15 else ("cls",)
        stated = unique_attributes(view, rng, k, fields)
        if stated:
            return Expression(phrase_of(rng, stated), (k,), "attribute")
    return None


def _extreme(view: View, members: tuple[int, ...], side: str) -> int | None:
    """The member that is clearly the most to that side, or None."""
    if side in ("largest", "smallest"):
        sign = -1 if side == "largest" else 1
        ranked = sorted(members, key=lambda k: sign * view.thing(k).extent)
        first, second = ranked[0], ranked[1]
        clear = ORDER[view.thing(first).size] != ORDER[view.thing(second).size]
        spans = [_span(view, k) for k in ranked]
        # A large thing of which little shows is not what a viewer would call the largest.
        seen = spans[0] > 1.15 * max(spans[1:]) if sign < 0 else 1.15 * spans[0] < min(spans[1:])
        return first if clear and seen else None
    axis, sign = (0, 1) if side in ("leftmost", "rightmost") else (1, 1)
    sign = -1 if side in ("rightmost", "lowest") else sign
    ranked = sorted(members, key=lambda k: sign * view.center(k)[axis])
    gap = abs(view.center(ranked[0])[axis] - view.center(ranked[1])[axis])
    return ranked[0] if gap > 0.06 else None


def _span(view: View, k: int) -> float:
    """The longer side of the visible box, in pixels."""
    x0, y0, x1, y1 = view.boxes[k]
    return max(x1 - x0, y1 - y0)


def by_superlative(view: View, rng: random.Random) -> Expression | None:
    """ "the leftmost bird", "the largest thing", "the second boat from the left"."""
    pools: list[tuple[Stated, tuple[int, ...]]] = []
    for cls in sorted({view.thing(k).cls for k in view.things}):
        members = matching(view, {"cls": cls})
        if len(members) >= 2:
            pools.append(({"cls": cls}, members))
            colour = view.thing(pick(rng, members)).colour
            same = matching(view, {"cls": cls, "colour": colour})
            if 2 <= len(same) < len(members):
                pools.append(({"cls": cls, "colour": colour}, same))
    rng.shuffle(pools)
    if len(view.things) >= 2:
        pools.insert(0 if rng.random() < 0.2 else len(pools), ({}, view.things))
    for stated, members in pools:
        noun = phrase_of(rng, stated, article="")
        if len(members) >= 3 and rng.random() < 0.3:
            ordinal = _ordinal(view, rng, members, noun)
            if ordinal:
                return ordinal
        for side in _shuffled(rng, SIDES):
            k = _extreme(view, members, side)
            if k is not None:
                return Expression(pick(rng, SIDES[side]).format(noun=noun), (k,), "superlative")
    return None


def _ordinal(view: View, rng: random.Random, members: tuple[int, ...], noun: str) -> Expression | None:
    """ "the second bird from the left", where all of them stand clearly apart; `members` run from left to right."""
    xs = [view.center(k)[0] for k in members]
    if len(members) > len(ORDINALS) or min(b - a for a, b in zip(xs, xs[1:], strict=False)) < 0.05:
        return None
    place = 1 + int(rng.random() * (len(members) - 2))
    side, k = pick(rng, (("left", members[place]), ("right", members[-1 - place])))
    return Expression(f"the {ORDINALS[place]} {noun} from the {side}", (k,), "superlative")


def by_relation(view: View, rng: random.Random) -> Expression | None:
    """ "the bird left of the red house": true of one thing, and nowhere near true of any other of that name."""
    for k in _twins_first(view, rng):
        thing = view.thing(k)
        options: list[Stated] = [{"cls": thing.cls}, {"cls": thing.cls, "colour": thing.colour}, {}]
        # Prefer a name that others share, so that the relation is needed.
        options = [stated for stated in options if len(matching(view, stated)) > 1]
        if rng.random() < 0.15 or not options:
            options.append({"cls": thing.cls})
        others = _shuffled(rng, (m for m in view.things if m != k))
        stated = options[0] if rng.random() < 0.75 else pick(rng, options)
        rivals = [m for m in matching(view, stated) if m != k]
        if rng.random() < 0.15:
            expression = _by_home(view, rng, k, stated, rivals)
            if expression:
                return expression
        for landmark in others:
            name = _sure_relation(view, rng, k, landmark, rivals)
            called = shortest(view, rng, landmark) if name else None
            if called:
                text = pick(rng, BY_RELATION[:1] if rng.random() < 0.75 else BY_RELATION).format(
                    noun=phrase_of(rng, stated, article=""),
                    relation=pick(rng, RELATION_WORDS[name]),
                    landmark=phrase_of(rng, called),
                )
                return Expression(text, (k,), "relation")
    return None


def _by_home(view: View, rng: random.Random, k: int, stated: Stated, rivals: list[int]) -> Expression | None:
    """ "the house in the field", "the thing on the road", where all rivals are surely somewhere else."""
    home = view.home(k)
    if home is None or home in vocabulary.SKIES:
        return None
    if any(view.home(m) in (None, home) and view.thing(m).cls not in vocabulary.FLYING for m in rivals):
        return None
    place = f"{at_home(rng, view.thing(k).cls, home)} {noun_phrase(rng, home, article='the')}"
    text = BY_HOME.format(noun=phrase_of(rng, stated, article=""), place=place)
    return Expression(text, (k,), "relation")


def _sure_relation(view: View, rng: random.Random, k: int, landmark: int, rivals: list[int]) -> str | None:
    """A relation that `k` has to `landmark` and that no rival has even loosely; rare relations first."""
    names = [
        name
        for name in RELATIONS
        if RELATIONS[name](view, k, landmark)
        and not any(LOOSE[name](view, rival, landmark) for rival in rivals if rival != landmark)
    ]
    if not names:
        return None
    rare = [name for name in names if name not in ("left", "right")]
    return pick(rng, rare if rare and rng.random() < 0.6 else names)


def by_group(view: View, rng: random.Random) -> Expression | None:
    """ "all the birds", "both red boats", "the striped things"."""
    pools: list[tuple[Stated, tuple[int, ...]]] = []
    for k in view.things:
        thing = view.thing(k)
        general = {"colour": thing.colour} if rng.random() < 0.7 else {"pattern": thing.pattern}
        for stated in ({"cls": thing.cls}, {"cls": thing.cls, "colour": thing.colour}, general):
            members = matching(view, stated)
            if len(members) >= 2 and (stated, members) not in pools:
                pools.append((stated, members))
    named = [pool for pool in pools if "cls" in pool[0]]
    if not pools:
        return None
    stated, members = pick(rng, named if named and rng.random() < 0.8 else pools)
    # One draw for both numbers, so that "{noun}" and "{nouns}" name the same class alike.
    state = rng.getstate()
    noun = phrase_of(rng, stated, article="")
    rng.setstate(state)
    nouns = phrase_of(rng, stated, count=2, article="")
    template = pick(rng, GROUPS_OF_ALL + GROUPS_OF_TWO if len(members) == 2 else GROUPS_OF_ALL)
    return Expression(template.format(noun=noun, nouns=nouns), members, "group")


def by_stuff(view: View, rng: random.Random) -> Expression | None:
    """ "the sea"."""
    if not view.stuff:
        return None
    kind = pick(rng, list(view.stuff))
    return Expression(noun_phrase(rng, kind, article="the"), (), "stuff", kind)


_WRITERS = {
    "class": by_class,
    "attribute": by_attribute,
    "superlative": by_superlative,
    "relation": by_relation,
    "group": by_group,
    "stuff": by_stuff,
}


def refer(view: View, rng: random.Random, kinds: tuple[str, ...] | None = None) -> Expression | None:
    """An expression that fits exactly what it returns.

    Args:
        view: the scene. rng: the chance.
        kinds: which kinds to try, in this order; without it, one by WEIGHTS and then the others.

    Returns:
        the expression, or None where no kind is possible.
    """
    if kinds is None:
        first = rng.choices(KINDS, WEIGHTS)[0]
        kinds = (first, *_shuffled(rng, (kind for kind in KINDS[:4] if kind != first)), "stuff")
    for kind in kinds:
        expression = _WRITERS[kind](view, rng)
        if expression:
            return expression
    return None


def full_description(view: View, rng: random.Random, expression: Expression) -> tuple[str, dict]:
    """What the answer calls the thing: class and all attributes by the policy of captions, with its facts.

    Several things share one phrase: their number, and of the attributes those that all have.
    """
    things = [view.thing(k) for k in expression.members]
    if expression.stuff:
        facts = {"cls": expression.stuff, "colour": None, "pattern": None, "size": None, "count": None}
        return noun_phrase(rng, expression.stuff, article="the"), facts
    shared = {
        field: getattr(things[0], field) if len({getattr(thing, field) for thing in things}) == 1 else None
        for field in ("cls", "colour", "pattern", "size")
    }
    facts = shared | {"count": len(things)}
    if all(shared.values()):
        group = Group(*shared.values(), expression.members)
        return group_phrase(rng, group, "the"), facts
    stated = {
        "colour": shared["colour"],
        "pattern": None if shared["pattern"] == "plain" else shared["pattern"],
        "size": None if shared["size"] == "medium" else shared["size"],
    }
    return noun_phrase(rng, shared["cls"] or "thing", count=len(things), article="the", **stated), facts
