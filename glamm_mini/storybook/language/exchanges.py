"""Single questions and their answers, one maker per task: turns, and beside them the truth that scoring needs."""

import random

from glamm_mini.data.sample import Turn
from glamm_mini.storybook.language import questions
from glamm_mini.storybook.language.captions import CaptionWriter, at_home
from glamm_mini.storybook.language.phrasebook import ABSENT_ANSWER, QUESTIONS, REFSEG_ANSWERS
from glamm_mini.storybook.language.referring import Expression, full_description, phrase_of, refer
from glamm_mini.storybook.language.speech import Draft, noun_phrase, pick
from glamm_mini.storybook.language.words import PLURAL_STUFF
from glamm_mini.storybook.world.relations import View

Made = tuple[list[Turn], dict]
"""Turns, and the truth: what the words state and which things they mean."""


def gcg(view: View, rng: random.Random) -> Made | None:
    """A grounded caption of all that is visible; the facts hold one entry per `[SEG]`."""
    if not view.groups and not view.stuff:
        return None
    draft = Draft(view)
    text = CaptionWriter(draft, rng).scene()
    answer, masks, facts = draft.tagged(text)
    return [Turn(pick(rng, QUESTIONS["gcg"]), answer, masks=masks)], {"phrases": facts}


def answer_referring(view: View, rng: random.Random, question: str, expression: Expression) -> tuple[Turn, dict]:
    """The turn that names what an expression fits, and then points at it."""
    draft = Draft(view)
    phrase, facts = full_description(view, rng, expression)
    mark = draft.phrase(phrase, expression.stuff or expression.members, facts)
    several = facts["count"] not in (None, 1) or expression.stuff in PLURAL_STUFF
    slots = {"it": "they", "is": "are"} if several else {"it": "it", "is": "is"}
    template = pick(rng, REFSEG_ANSWERS[:-1] if several else REFSEG_ANSWERS)
    turn = draft.turn(question, template.format(x=mark, **slots))
    return turn, {"phrases": [{**facts, "members": expression.members}]}


def question_about(rng: random.Random, templates: tuple[str, ...], expression: Expression) -> str:
    """A template filled with an expression, its verb in the right number."""
    several = (expression.several and not expression.text.startswith(("every ", "the pair "))) or (
        expression.stuff in PLURAL_STUFF
    )
    return pick(rng, templates).format(x=expression.text, **{"is": "are" if several else "is"})


def refseg(view: View, rng: random.Random, kinds: tuple[str, ...] | None = None) -> Made | None:
    """One expression that fits one thing (or a group, or stuff), and its mask."""
    expression = refer(view, rng, kinds)
    if expression is None:
        return None
    question = question_about(rng, QUESTIONS["refseg"], expression)
    turn, truth = answer_referring(view, rng, question, expression)
    named = {"expression": expression.text, "kind": expression.kind}
    return [turn], truth | named | {"members": expression.members, "stuff": expression.stuff}


def absent(view: View, rng: random.Random) -> Made | None:
    """An expression that fits nothing, though it might: the answer says so, and has no mask."""
    options = questions.absent(view, rng)
    if not options:
        return None
    words = phrase_of(rng, pick(rng, options), article="")
    expression = Expression(f"the {words}", (), "absent")
    turn = Draft(view).turn(question_about(rng, QUESTIONS["refseg"], expression), ABSENT_ANSWER.format(x=words))
    return [turn], {"phrases": [], "expression": expression.text, "kind": "absent", "members": (), "stuff": None}


def regcap(view: View, rng: random.Random, k: int | None = None) -> Made | None:
    """A box, by default of a thing drawn at random, and all that is to say about what it holds."""
    if not view.things:
        return None
    k = pick(rng, view.things) if k is None else k
    text = questions.describe_region(view, rng, k)
    home = view.home(k)
    draft = Draft(view)
    if home and rng.random() < 0.5:
        cls = view.thing(k).cls
        text += f" {at_home(rng, cls, home)} {noun_phrase(rng, home, article='the')}"
    turn = draft.turn(pick(rng, QUESTIONS["regcap"]), text + ".", [view.boxes[k]])
    return [turn], {"thing": k}


def caption(view: View, rng: random.Random) -> Made | None:
    """A short caption without masks."""
    if not view.groups and not view.stuff:
        return None
    draft = Draft(view)
    text = draft.plain(CaptionWriter(draft, rng).outline())
    return [Draft(view).turn(pick(rng, QUESTIONS["caption"]), text)], {}


def grounding(view: View, rng: random.Random) -> Made | None:
    """A sentence about a part of the picture, to be repeated with its phrases tagged."""
    if not view.groups:
        return None
    draft = Draft(view)
    number = min(len(view.groups), 1 + int(rng.random() * 3))
    start = int(rng.random() * (len(view.groups) - number + 1))
    kind = pick(rng, list(view.stuff)) if view.stuff and rng.random() < 0.6 else None
    text = CaptionWriter(draft, rng).part(view.groups[start : start + number], kind)
    question = pick(rng, QUESTIONS["grounding"]).format(x=draft.plain(text))
    answer, masks, facts = draft.tagged(text)
    return [Turn(question, answer, masks=masks)], {"phrases": facts, "sentence": draft.plain(text)}


def vqa(view: View, rng: random.Random, kinds: tuple[str, ...] | None = None) -> Made | None:
    """A question with an answer of one to four words."""
    asked = questions.ask(view, rng, kinds)
    if asked is None:
        return None
    turn = Draft(view).turn(asked.question, asked.answer, [view.boxes[k] for k in asked.members])
    return [turn], {"kind": asked.kind} | ({"also": list(asked.also)} if asked.also else {})
