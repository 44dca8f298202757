"""Grounded captions: what they mention is fixed by the picture, how they say it is drawn anew each time.

Every visible thing and every visible kind of stuff is one phrase, things from left to right. A model that sees the
picture can therefore know what must be said, and no score punishes it for what only the writer knew.
"""

import random
from functools import cache

from glamm_mini.storybook.language import phrasebook, vocabulary
from glamm_mini.storybook.language.phrasebook import RELATION_WORDS, VERBS, WITH_WORDS
from glamm_mini.storybook.language.speech import Draft, listing, pick
from glamm_mini.storybook.language.words import PLURAL_STUFF
from glamm_mini.storybook.world.relations import RELATIONS, Group, View


@cache
def third_person(verb: str) -> str:
    """ "fly" gives "flies"."""
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeiou" else verb + "s"


@cache
def places_of(ground: tuple[str, ...]) -> tuple[str, ...]:
    """The places that these grounds, back to front, may belong to; a viewer can name the place only where it is one."""
    return tuple(place for place, choices in vocabulary.GROUNDS.items() if any(kinds == ground for _, kinds in choices))


def place_of(view: View) -> str | None:
    """The place, where the visible ground tells it, else None."""
    places = places_of(view.ground)
    return places[0] if len(places) == 1 else None


def at_home(rng: random.Random, cls: str, kind: str) -> str:
    """The preposition of a class at its home: a boat is on the sea, a fish in it."""
    if kind == "sea":
        return "in" if cls in phrasebook.IN_WATER else "on"
    return pick(rng, phrasebook.HOME_WORDS[kind])


def home_of(view: View, group: Group) -> str | None:
    """The kind of stuff that all members of a group are on, else None."""
    homes = {view.home(k) for k in group.members}
    return homes.pop() if len(homes) == 1 else None


def relation_of(view: View, a: Group, b: Group) -> list[str]:
    """The relations that hold between every member of `a` and every member of `b`."""
    return [name for name, holds in RELATIONS.items() if all(holds(view, i, j) for i in a.members for j in b.members)]


class CaptionWriter:
    """Writes sentences about groups of things and stuff of one view into a draft."""

    def __init__(self, draft: Draft, rng: random.Random):
        self.draft, self.rng, self.view = draft, rng, draft.view

    def verb(self, group: Group, bare: bool = False) -> str | None:
        """A verb that fits the group in class and number; `bare`: one that needs no word of place, or None."""
        verbs = VERBS[group.cls]
        if bare:
            verbs = [verb for verb in verbs if verb not in phrasebook.NEEDS_PLACE]
        if not verbs:
            return None
        verb = pick(self.rng, verbs)
        return third_person(verb) if group.count == 1 else verb

    # ---- clauses about things ----

    def body(self, groups: tuple[Group, ...], weave: dict[int, str], sentences: int = 3) -> str:
        """One to `sentences` sentences, without the last full stop, that name all groups in order.

        `weave`: index of a group to the kind of stuff that its clause names.
        """
        text, stops, joined, at, was_list = "", 0, 0, 0, False
        while at < len(groups):
            used, clause, is_list = self._clause(groups, at, weave, was_list)
            at += used
            if not text:
                text = clause
            elif stops < sentences - 1 and (joined >= 2 or is_list or was_list or self.rng.random() < 0.45):
                text, stops, joined = f"{text}. {clause}", stops + 1, 0
            else:
                # One "while" is enough for a sentence, and none goes with a list.
                plain = is_list or was_list or ", while" in text.rpartition(". ")[2]
                text += pick(self.rng, phrasebook.PLAIN_JOINS if plain else phrasebook.JOINS) + clause
            joined, was_list = joined + 1, is_list
        return text

    def _clause(
        self, groups: tuple[Group, ...], at: int, weave: dict[int, str], was_list: bool
    ) -> tuple[int, str, bool]:
        """One clause from the group `at` on, after a list or not: (how many groups it names, text, is it a list)."""
        if at in weave:
            return 1, self._solo(groups[at], weave[at]), False
        free = 1
        while at + free < len(groups) and at + free not in weave and free < 4:
            free += 1
        chance = self.rng.random()
        if free >= 2:
            pair = self._pair(groups[at], groups[at + 1]) if chance < 0.5 else None
            pair = pair or (self._shared(groups[at], groups[at + 1]) if chance < 0.75 else None)
            if pair:
                return 2, pair, False
            if not was_list and (chance > 0.85 or len(groups) > 4):
                number = min(free, 2 + int(self.rng.random() * 3))
                return number, self._list(groups[at : at + number], at == 0), True
        solo = self._solo(groups[at], None)
        return (1, solo, False) if solo else (1, self._list(groups[at : at + 1], at == 0), True)

    def _spot(self, group: Group) -> str | None:
        """ "on the left", where the whole group is clearly in one third of the picture."""
        xs = [self.view.center(k)[0] for k in group.members]
        for spot, low, high in zip(phrasebook.SPOTS, (0.0, 0.42, 0.7), (0.3, 0.58, 1.0), strict=True):
            if low <= min(xs) and max(xs) <= high:
                return spot
        return None

    def _solo(self, group: Group, kind: str | None) -> str | None:
        """ "a boat sails", "a boat sails on the sea", "on the left a boat sails"; None where no verb fits."""
        if kind is not None:
            place = f"{at_home(self.rng, group.cls, kind)} {self.draft.stuff(self.rng, kind)}"
        else:
            place = self._spot(group) if self.rng.random() < 0.5 else None
        verb = self.verb(group, bare=place is None)
        if verb is None:
            return None
        noun = self.draft.group(self.rng, group)
        if place is None:
            return f"{noun} {verb}"
        if self.rng.random() < 0.3:
            return f"{place} {verb} {noun}" if kind or self.rng.random() < 0.5 else f"{place}, {noun} {verb}"
        return f"{noun} {verb} {place}"

    def _pair(self, a: Group, b: Group) -> str | None:
        """A clause that relates two groups, or None where no relation is beyond dispute."""
        names = relation_of(self.view, a, b)
        if not names:
            return None
        # What is special in a picture is said first; left and right hold nearly always.
        special = [name for name in names if name not in ("left", "right")]
        name = pick(self.rng, special if special and self.rng.random() < 0.75 else names)
        first, verb = self.draft.group(self.rng, a), self.verb(a, bare=True)
        second = self.draft.group(self.rng, b)
        if verb and name in WITH_WORDS and self.rng.random() < 0.3:
            its, it = ("its", "it") if a.count == 1 else ("their", "them")
            return f"{first} {verb} with {second} {pick(self.rng, WITH_WORDS[name]).format(its=its, it=it)}"
        verb = self.verb(a)
        if self.rng.random() < 0.2:
            verb = "is" if a.count == 1 else "are"
        return f"{first} {verb} {pick(self.rng, RELATION_WORDS[name])} {second}"

    def _shared(self, a: Group, b: Group) -> str | None:
        """ "a kite and two birds fly", or None where the two do nothing alike."""
        beside = "beside" in relation_of(self.view, a, b) and self.rng.random() < 0.7
        verbs = [verb for verb in VERBS[a.cls] if verb in VERBS[b.cls]]
        if not beside:
            verbs = [verb for verb in verbs if verb not in phrasebook.NEEDS_PLACE]
        if not verbs:
            return None
        nouns = f"{self.draft.group(self.rng, a)} and {self.draft.group(self.rng, b)}"
        return f"{nouns} {pick(self.rng, verbs)}" + (" side by side" if beside else "")

    def _list(self, groups: tuple[Group, ...], first: bool) -> str:
        """ "there is a boat, a rock and two fish"."""
        templates = phrasebook.LISTS if first else phrasebook.LATER_LISTS
        # Of one thing, nothing is said from left to right.
        template = pick(self.rng, templates[:7] if first and len(groups) == 1 else templates)
        nouns = [self.draft.group(self.rng, group) for group in groups]
        return template.format(list=listing(nouns), **{"is": "is" if groups[0].count == 1 else "are"})

    # ---- stuff ----

    def _fill(self, plain: tuple[str, ...], with_sky: tuple[str, ...], kinds: list[str], them: str = "them") -> str:
        """A template for these kinds of stuff, filled; those that set sky against ground where there are both."""
        skies = [kind for kind in kinds if kind in vocabulary.SKIES]
        ground = [kind for kind in kinds if kind not in vocabulary.SKIES]
        both = skies and ground
        template = pick(self.rng, plain + with_sky if both else plain)
        named = ground if "{ground}" in template else kinds
        nouns = [self.draft.stuff(self.rng, kind) for kind in named]
        slots = {"stuff": listing(nouns), "ground": listing(nouns), "them": them}
        if "{sky}" in template:
            slots["sky"] = self.draft.stuff(self.rng, skies[0])
        many = len(named) > 1 or named[0] in PLURAL_STUFF
        return template.format(**slots, s="" if many else "s", **{"is": "are" if many else "is"})

    def _weave(self, kinds: list[str]) -> dict[int, str]:
        """Index of a group to the stuff that its clause shall name: each kind at one of the things that are on it."""
        chosen: dict[int, str] = {}
        for kind in kinds:
            fitting = [
                k for k, group in enumerate(self.view.groups) if k not in chosen and home_of(self.view, group) == kind
            ]
            if fitting:
                chosen[pick(self.rng, fitting)] = kind
        return chosen

    # ---- whole texts ----

    def scene(self) -> str:
        """The whole grounded caption, as draft text: every visible group of things, every visible kind of stuff."""
        view, rng = self.view, self.rng
        kinds = list(view.stuff)
        if not view.groups:
            return self._fill(phrasebook.OPENINGS, phrasebook.SKY_OPENINGS, kinds).strip()
        weave = self._weave(kinds) if rng.random() < 0.5 else {}
        left = [kind for kind in kinds if kind not in weave.values()]
        them = "it" if len(view.things) == 1 else "them"
        chance = rng.random()
        stuff_first = left and chance < 0.25
        stuff_last = left and chance >= 0.75 and left != [view.sky]
        body = self.body(view.groups, weave, 2 if stuff_first or stuff_last else 3)
        if not left:
            return f"{body}."
        if left == [view.sky] and not stuff_first:
            sky = self.draft.stuff(rng, left[0])
            return f"under {sky}, {body}." if chance < 0.6 else f"{body}, under {sky}."
        if stuff_first:
            return f"{self._fill(phrasebook.OPENINGS, phrasebook.SKY_OPENINGS, left)}{body}."
        if chance < 0.5:
            return f"{self._fill(phrasebook.FRONTS, phrasebook.SKY_FRONTS, left)}{body}."
        if chance < 0.75:
            return f"{body}{self._fill(phrasebook.TAILS, phrasebook.SKY_TAILS, left, them)}."
        return f"{body}{self._fill(phrasebook.CLOSINGS, phrasebook.SKY_CLOSINGS, left, them)}."

    def part(self, groups: tuple[Group, ...], kind: str | None) -> str:
        """One sentence about some groups, and about the stuff `kind` where one of them is on it."""
        homes = [k for k, group in enumerate(groups) if kind and home_of(self.view, group) == kind]
        return self.body(groups, {homes[0]: kind} if homes else {}, 1) + "."

    def outline(self) -> str:
        """A short caption for use without masks: the place and the time where they show, then the things."""
        view, rng = self.view, self.rng
        place = place_of(view)
        if not view.groups:
            return self._fill(phrasebook.OPENINGS, phrasebook.SKY_OPENINGS, list(view.stuff)).strip()
        night = view.sky == "night sky"
        if rng.random() < 0.4:
            nouns = listing([self.draft.group(rng, group) for group in view.groups])
            scene = phrasebook.SCENE_WORDS[place] if place else "a scene"
            return f"{scene} {'at night ' if night else ''}with {nouns}."
        words = [pick(rng, phrasebook.NIGHT_WORDS)] if night else []
        # A winter day is not a night.
        words += [pick(rng, phrasebook.PLACE_WORDS[place][: 1 if night else None])] if place else []
        front = f"{' '.join(words)}, " if words else ""
        return f"{front}{self.body(view.groups, {}, 2)}."
