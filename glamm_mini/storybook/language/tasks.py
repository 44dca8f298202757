"""The seven things that people ask about a picture, each as a conversation with its exact answer and masks."""

import random
import re

from glamm_mini.data.sample import Turn
from glamm_mini.storybook.language import exchanges, phrasebook, vocabulary
from glamm_mini.storybook.language.captions import third_person
from glamm_mini.storybook.language.dialogues import chat
from glamm_mini.storybook.language.exchanges import Made
from glamm_mini.storybook.language.words import NUMBERS, PATTERN_NAMES, SIZE_NAMES, names_of, plural
from glamm_mini.storybook.world.relations import View
from glamm_mini.storybook.world.scene import Picture, Scene

_MAKERS = {
    "gcg": exchanges.gcg,
    "refseg": exchanges.refseg,
    "regcap": exchanges.regcap,
    "caption": exchanges.caption,
    "grounding": exchanges.grounding,
    "vqa": exchanges.vqa,
    "chat": chat,
}

TASKS = tuple(_MAKERS)


def converse(task: str, view: View, rng: random.Random) -> Made | None:
    """As `conversation`, for a view that several tasks share; beside the turns, the truth that scoring needs."""
    if task not in _MAKERS:
        raise ValueError(f"task {task!r} is unknown: choose one of {', '.join(TASKS)}")
    return _MAKERS[task](view, rng)


def conversation(task: str, scene: Scene, picture: Picture, rng: random.Random) -> list[Turn] | None:
    """A conversation of one task about a scene.

    Args:
        task: one of TASKS. scene, picture: the record and its drawing, of any size. rng: all chance.

    Returns:
        its turns (one, and two or three for "chat"), or None where the scene allows none.

    Raises:
        ValueError: if the task is unknown.
    """
    made = converse(task, View(scene, picture), rng)
    return made[0] if made else None


WORD = re.compile(r"<bbox>|[A-Za-z]+(?:'[a-z]+)?(?:-[a-z]+)?|\d+|[^\sA-Za-z\d]")
_SLOT = re.compile(r"\{\w+\}")


def _plain_texts() -> list[str]:
    """Every template and name that does not open a sentence in lower case."""
    texts = phrasebook.texts()
    for cls in vocabulary.CLASSES:
        texts.extend((*names_of(cls), *(plural(name) for name in names_of(cls))))
    texts.extend(name for kind in vocabulary.STUFF for name in names_of(kind))
    texts.extend((*vocabulary.COLOURS, *NUMBERS, *(plural(word) for word in phrasebook.GENERAL)))
    texts.extend(third_person(verb) for verbs in phrasebook.VERBS.values() for verb in verbs)
    texts.extend(word for names in (*SIZE_NAMES.values(), *PATTERN_NAMES.values()) for word in names)
    return texts


def corpus_words() -> list[str]:
    """Every word and mark that the language can write, sorted: the tiny tokenizer's whole-word vocabulary.

    Words are cut as WORD cuts them. A word that may open a sentence is listed with a capital too.
    """
    found: set[str] = {"<bbox>"}
    for text in (*_plain_texts(), *phrasebook.openers()):
        found.update(WORD.findall(_SLOT.sub(" ", text)))
    for text in (*phrasebook.openers(), *NUMBERS):
        if not text.startswith("{"):
            found.add(WORD.match(text)[0].capitalize())
    return sorted(found)
