"""Conversations of two or three turns about one picture, in which later questions speak of "it" and "them"."""

import random

from glamm_mini.data.sample import Turn
from glamm_mini.storybook.language.exchanges import Made, answer_referring, caption, question_about, refseg, regcap, vqa
from glamm_mini.storybook.language.phrasebook import AGAIN, MASK_AGAIN, NEXT, NEXT_AFTER_MASK, QUESTIONS, SHORT
from glamm_mini.storybook.language.referring import Expression, refer
from glamm_mini.storybook.language.speech import Draft, noun_phrase, pick
from glamm_mini.storybook.language.words import NUMBERS, with_article
from glamm_mini.storybook.world.relations import View


def chat(view: View, rng: random.Random) -> Made | None:
    """Two or three turns; None where the picture holds nothing to talk about."""
    if not view.things:
        return None
    turns = pick(rng, (_region, _thing, _group, _tour))(view, rng)
    if len(turns) < 2 or (len(turns) < 3 and rng.random() < 0.4):
        last = vqa(view, rng, ("exists", "where", "count", "colour"))
        turns += last[0] if last else []
    return (turns, {}) if len(turns) >= 2 else None


def _mask_again(rng: random.Random, several: bool) -> str:
    """ "Where is it?", "Segment them."."""
    template = pick(rng, MASK_AGAIN)
    if not several:
        return template.format(it="it", **{"is": "is"})
    return template.format(it="they" if "{is}" in template else "them", **{"is": "are"})


def _attribute(view: View, rng: random.Random, k: int) -> Turn:
    """ "What colour is it?" of a thing that the conversation has named."""
    field = pick(rng, tuple(AGAIN))
    return Draft(view).turn(pick(rng, AGAIN[field]), f"{getattr(view.thing(k), field).capitalize()}.")


def _region(view: View, rng: random.Random) -> list[Turn]:
    """A box is described, then shown as a mask."""
    k = pick(rng, view.things)
    shown, _ = answer_referring(view, rng, _mask_again(rng, False), Expression("it", (k,), "it"))
    return [*regcap(view, rng, k)[0], shown]


def _thing(view: View, rng: random.Random) -> list[Turn]:
    """A thing is found and asked about, or asked for and then found."""
    kinds = ("superlative", "relation", "attribute", "class")
    first = int(rng.random() * 4)
    expression = refer(view, rng, kinds[first:] + kinds[:first])
    if expression is None:
        return []
    if expression.kind in ("attribute", "class") and rng.random() < 0.5:
        text = with_article(expression.text.removeprefix("the "))
        asked = Draft(view).turn(pick(rng, SHORT["exists"]).format(x=text), "Yes.")
        return [asked, answer_referring(view, rng, _mask_again(rng, False), expression)[0]]
    question = question_about(rng, QUESTIONS["refseg"], expression)
    # The answer has named what is special about it; the next tests that "it" and what went unsaid are understood.
    return [answer_referring(view, rng, question, expression)[0], _attribute(view, rng, expression.members[0])]


def _group(view: View, rng: random.Random) -> list[Turn]:
    """Things of a class are counted, then shown."""
    counts: dict[str, list[int]] = {}
    for k in view.things:
        counts.setdefault(view.thing(k).cls, []).append(k)
    cls = pick(rng, [cls for cls in counts if len(counts[cls]) > 1] or list(counts))
    members = tuple(counts[cls])
    question = pick(rng, SHORT["count"]).format(nouns=noun_phrase(rng, cls, count=2, article=""))
    asked = Draft(view).turn(question, f"{NUMBERS[len(members)].capitalize()}.")
    again = _mask_again(rng, len(members) > 1)
    return [asked, answer_referring(view, rng, again, Expression("them", members, "it"))[0]]


def _tour(view: View, rng: random.Random) -> list[Turn]:
    """A caption, or a first thing, then one or two more things to find."""
    named = set()
    if rng.random() < 0.6:
        turns, templates = caption(view, rng)[0], NEXT
    else:
        turns, truth = refseg(view, rng)
        named, templates = {(truth["members"], truth["stuff"])}, NEXT_AFTER_MASK
    for _ in range(1 + int(rng.random() * 2)):
        expression = refer(view, rng)
        if expression and (expression.members, expression.stuff) not in named:
            named.add((expression.members, expression.stuff))
            turns.append(answer_referring(view, rng, question_about(rng, templates, expression), expression)[0])
            templates = NEXT_AFTER_MASK
    return turns
