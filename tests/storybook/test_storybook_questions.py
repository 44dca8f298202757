"""What is asked about storybook scenes: expressions that mean one thing, questions whose answers are right."""

import random
import re

import pytest
from hand_made import TWO_HOUSES, hand_made, made_of

from glamm_mini.evaluation.score import normalize_answer
from glamm_mini.storybook.language import exchanges, phrasebook, questions, referring, vocabulary
from glamm_mini.storybook.language.words import parse_phrase
from glamm_mini.storybook.world.relations import RELATIONS, View
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene

# ---- referring ----


def expressions(view, writer, count=300):
    found = [writer(view, random.Random(k)) for k in range(count)]
    return [expression for expression in found if expression]


def test_the_leftmost_is_so_by_a_clear_gap():
    kite = ("kite", "red", "plain", "medium")
    for gap, clear in ((5, False), (8, True)):
        view = hand_made((*kite, (10, 5, 25, 20)), (*kite, (10 + gap, 25, 25 + gap, 40)))
        words = " ".join(expression.text for expression in expressions(view, referring.by_superlative))
        assert ("left" in words) == clear


def test_the_largest_shows_itself_as_such():
    small = ("house", "red", "plain", "small", (60, 60, 70, 70))
    for width, clear in ((11, False), (13, True)):
        large = ("house", "red", "plain", "large", (10, 60, 10 + width, 65))
        texts = [expression.text for expression in expressions(hand_made(small, large), referring.by_superlative)]
        assert any("largest" in text or "biggest" in text for text in texts) == clear


def test_ordinals_count_things_that_stand_apart():
    kite = ("kite", "red", "plain", "medium")
    for step, apart in ((4, False), (20, True)):
        xs = [5 + step * k for k in range(4)]
        view = hand_made(*((*kite, (x, 5, x + 3, 8)) for x in xs))
        found = [e for e in expressions(view, referring.by_superlative) if re.search("second|third", e.text)]
        assert bool(found) == apart
        for expression in found:
            place = {"second": 1, "third": 2}[re.search("second|third", expression.text)[0]]
            assert expression.members == ((place,) if "from the left" in expression.text else (3 - place,))


def test_a_group_is_more_than_one_and_an_answer_states_what_all_share():
    view = hand_made(*TWO_HOUSES)
    found = expressions(view, referring.by_group)
    assert found and all(len(expression.members) >= 2 for expression in found)
    both = referring.Expression("the houses", (0, 1), "group")
    phrase, facts = referring.full_description(view, random.Random(0), both)
    assert facts == {"cls": "house", "colour": None, "pattern": None, "size": None, "count": 2}
    stated = parse_phrase(phrase)
    assert (stated.colour, stated.pattern, stated.size) == (None, None, None)
    alike = referring.Expression("the red things", (0, 2), "group")
    stated = parse_phrase(referring.full_description(view, random.Random(0), alike)[0])
    assert stated.colour == "red" and stated.pattern is None, "plain is what is meant where nothing is said"


def test_a_rival_whose_home_is_open_may_be_there_too():
    view = hand_made(*TWO_HOUSES)
    view._homes = {0: "meadow", 1: None}
    assert referring._by_home(view, random.Random(0), 0, {"cls": "house"}, [1]) is None
    view._homes = {0: "meadow", 1: "meadow"}
    assert referring._by_home(view, random.Random(0), 0, {"cls": "house"}, [1]) is None
    view._homes = {0: "meadow", 1: "road"}
    assert referring._by_home(view, random.Random(0), 0, {"cls": "house"}, [1]).members == (0,)


def test_a_relation_that_a_rival_nearly_has_is_not_used():
    house = ("house", "blue", "plain", "large", (50, 60, 70, 80))
    kite = ("kite", "red", "plain", "medium")
    view = hand_made((*kite, (20, 60, 30, 70)), (*kite, (54, 5, 62, 15)), house)
    # The second kite is left of the house by two hundredths: not surely, but somebody might say so.
    assert "left" not in view.relation(1, 2) and "left" in view.relation(0, 2)
    names = {referring._sure_relation(view, random.Random(k), 0, 2, [1]) for k in range(40)}
    assert "left" not in names
    assert "left" in {referring._sure_relation(view, random.Random(k), 0, 2, []) for k in range(40)}


def test_expressions_mean_one_thing():
    view = hand_made(*TWO_HOUSES)
    for k in range(200):
        expression = referring.refer(view, random.Random(k))
        text = expression.text
        if text in ("the house", "the cottage", "the red thing", "the red object"):
            pytest.fail(f"{text!r} fits two")
        if "blue" in text and "of" not in text.split() and expression.kind == "attribute":
            assert expression.members == (1,)
        if expression.kind == "superlative" and "leftmost" in text:
            assert expression.members == (0,)


def test_attributes_and_classes_single_out_their_thing(views):
    for number, view in enumerate(views):
        for repeat in range(5):
            expression = referring.refer(view, random.Random(100 * number + repeat), ("attribute", "class"))
            if expression is None or expression.stuff:
                continue
            stated = {k: v for k, v in vars(parse_phrase(expression.text)).items() if v is not None and k != "count"}
            assert referring.matching(view, stated) == expression.members, expression.text


def test_relations_hold_for_the_target_and_for_no_rival(views):
    seen = 0
    words = {word: name for name, forms in phrasebook.RELATION_WORDS.items() for word in forms}
    pattern = re.compile("|".join(sorted(map(re.escape, words), key=len, reverse=True)))
    for number, view in enumerate(views):
        for repeat in range(4):
            expression = referring.by_relation(view, random.Random(10 * number + repeat))
            match = expression and pattern.search(expression.text)
            if not match:
                continue
            seen += 1
            name = words[match[0]]
            head = {k: v for k, v in vars(parse_phrase(expression.text[: match.start()])).items() if v and k != "count"}
            tail = {k: v for k, v in vars(parse_phrase(expression.text[match.end() :])).items() if v and k != "count"}
            (landmark,) = referring.matching(view, tail)
            rivals = [k for k in referring.matching(view, head) if k != landmark]
            fitting = tuple(k for k in rivals if RELATIONS[name](view, k, landmark))
            assert fitting == expression.members, expression.text
    assert seen > 40


def test_kinds_of_expressions_have_their_shares(views):
    kinds = [truth["kind"] for _, _, truth in made_of(views, "refseg", 6)]
    for kind in ("class", "attribute", "superlative", "relation"):
        assert 0.14 < kinds.count(kind) / len(kinds) < 0.36, kind


# ---- questions ----


def test_answers_are_short_and_balanced(views):
    answers = [turns[0].answer for _, turns, _ in made_of(views, "vqa", 10)]
    assert all(len(answer.split()) <= 5 and answer.endswith(".") for answer in answers)
    for one, other in (("Yes.", "No."), ("Left.", "Right.")):
        share = answers.count(one) / (answers.count(one) + answers.count(other))
        assert 0.35 < share < 0.65, one


def test_unseen_pairs_are_never_asked_for():
    for index in range(40):
        scene = sample_scene("train", 0, index)
        view = View(scene, render(scene, 64, supersample=1))
        for stated in questions.absent(view, random.Random(index)):
            assert (stated["cls"], stated.get("colour")) not in vocabulary.UNSEEN_PAIRS


def test_either_of_two_is_named_by_whatever_fits_it_alone(views):
    """Which is larger? Any name of the right one is right; a name that fits the other too is not."""
    asked = [a for number, view in enumerate(views * 8) if (a := questions.ask_size(view, random.Random(number)))]
    which = [a for a in asked if a.kind == "size: which"]
    assert len(which) > 5 and all(not a.also for a in asked if a not in which)
    for one in which:
        known = {normalize_answer(text) for text in one.also}
        assert normalize_answer(one.answer) in known
        x, y = (parse_phrase(text) for text in re.search(r", (.*) or (.*)\?", one.question).groups())
        chosen, other = (x, y) if parse_phrase(one.answer) == x else (y, x)
        assert all(parse_phrase(text).cls == chosen.cls for text in one.also)
        assert not any(parse_phrase(text) == other for text in one.also)
    twins = questions._names(hand_made(*TWO_HOUSES[:2]), 0, 1)
    assert twins and not {"house", "the house"} & set(twins), "both are houses"


def test_what_is_absent_is_said_to_be(views):
    for number, view in enumerate(views):
        made = exchanges.absent(view, random.Random(number))
        if made:
            [turn], truth = made
            words = truth["expression"].removeprefix("the ")
            assert turn.answer == f"There is no {words} in the picture." and words in turn.question
            stated = {k: v for k, v in vars(parse_phrase(words)).items() if v is not None and k != "count"}
            assert not referring.matching(view, stated) and truth["members"] == () and truth["kind"] == "absent"
            assert turn.masks.shape == (0, view.height, view.width)


def test_counts_are_right(views):
    for number, view in enumerate(views):
        asked = questions.ask_count(view, random.Random(number))
        if asked:
            stated = vars(parse_phrase(asked.question.replace("picture", "")))
            stated = {k: v for k, v in stated.items() if v is not None and k != "count"}
            spoken = asked.answer.rstrip(".").lower()
            assert parse_phrase(f"{spoken} boats").count == len(referring.matching(view, stated)), asked
