"""Which thing a model names next: the verdicts by hand, and the model's own captions continued as it wrote them."""

import sys

import pytest
import torch

import glamm_mini
from glamm_mini.data.sample import Sample, Turn
from glamm_mini.model.tokens import PHRASE_START
from glamm_mini.storybook.dataset import evaluation_samples
from glamm_mini.storybook.pretrain import ceilings
from glamm_mini.storybook.pretrain.next_phrase import VERDICTS, continued, next_phrases, table, verdict

NAMES = ["the sky", "a red kite", "two small boats", "a blue house"]
FACTS = [
    {"cls": "sky", "members": ()},
    {"cls": "kite", "colour": "red", "pattern": "plain", "size": "large", "count": 1, "members": (0,)},
    {"cls": "boat", "colour": None, "pattern": "dotted", "size": "small", "count": 2, "members": (1, 2)},
    {"cls": "house", "colour": "blue", "pattern": "plain", "size": "small", "count": 1, "members": (3,)},
]


@pytest.fixture(scope="module")
def glamm():
    torch.set_num_threads(1)
    return glamm_mini.load("tiny", device="cpu")


@pytest.mark.parametrize(
    ("k", "phrase", "expected"),
    [
        (1, "A large red kite", "next"),
        (1, "a kite", "next"),
        (1, "a green kite", "attribute"),
        (1, "a blue house", "later"),
        (1, "the sky", "earlier"),
        (3, "two boats", "earlier"),
        (3, "two large boats", "attribute"),
        (1, "a purple fish", "absent"),
        (1, "", "absent"),
    ],
)
def test_verdicts(k, phrase, expected):
    assert verdict(k, phrase, NAMES, FACTS, {"sky", "kite", "boat", "house"}) == expected


def test_behind_its_own_words_a_model_writes_its_own_phrases(glamm):
    sample = next(iter(evaluation_samples("gcg", "test", 7, 1)))
    answer = glamm.ask(sample.image, sample.conversations[0][0].question)
    pieces = answer.text.split(PHRASE_START)
    begun = [PHRASE_START.join(pieces[:k]) + PHRASE_START for k in range(1, len(pieces))]
    assert len(begun) > 2
    assert continued(glamm, sample, answer.question, begun) == [phrase.text for phrase in answer.phrases]


def test_the_models_own_caption_as_the_truth_names_the_next_thing_each_time(glamm):
    [sample] = evaluation_samples("gcg", "test", 7, 1)
    question = sample.conversations[0][0].question
    answer = glamm.ask(sample.image, question)
    facts = [{"cls": None, "members": () if "sky" in phrase.text else (0,)} for phrase in answer.phrases]
    turn = Turn(question, answer.text)
    extras = {"truth": [{"phrases": facts}], "things": sample.extras["things"], "stuff": sample.extras["stuff"]}
    found = next_phrases(glamm, [Sample(sample.image, [[turn]], "a", "gcg", extras)])
    assert len(found) == sum(bool(known["members"]) for known in facts)
    assert {one[1] for one in found} == {"next"} and [one[0] for one in found] == [True] + [False] * (len(found) - 1)


def test_the_table_is_a_command(glamm, monkeypatch, capsys):
    verdicts = ["next", "later", "next", "absent"]
    found = [(k == 0, one, "a red kite", "a kite") for k, one in enumerate(verdicts)]
    lines = [line.split() for line in table(found).splitlines()[1:]]
    assert [line[0] for line in lines] == [*VERDICTS, "phrases"]
    assert lines[0][1:] == ["50.0%", "100.0%"] and lines[1][1:] == ["25.0%", "0.0%"] and lines[-1][1:] == ["4", "1"]
    monkeypatch.setattr(ceilings, "load", lambda name: {"tiny": glamm}[name])
    monkeypatch.setattr(sys, "argv", ["ceilings", "--phrases", "tiny", "--scenes", "2"])
    ceilings.main()
    shown = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in shown] == [*VERDICTS, "phrases"] and int(shown[-1][1]) > 2
