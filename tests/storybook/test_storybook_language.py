"""The storybook language: what is said is true, can be read back, and is made of known words."""

import random
import re

import numpy as np
import pytest
from hand_made import TWO_HOUSES, hand_made, made_of

from glamm_mini.processing.tags import parse_grounded
from glamm_mini.storybook.language import captions, phrasebook, tasks, vocabulary
from glamm_mini.storybook.language.captions import CaptionWriter
from glamm_mini.storybook.language.speech import Draft, listing, noun_phrase
from glamm_mini.storybook.language.words import Description, names_of, parse_phrase, plural, with_article
from glamm_mini.storybook.world.relations import RELATIONS
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import keyed_rng

# ---- words ----


def test_plurals_and_articles():
    assert [plural(w) for w in ("boat", "fish", "cactus", "snowman", "bus")] == [
        "boats", "fish", "cacti", "snowmen", "buses",
    ]  # fmt: skip
    assert [with_article(w) for w in ("orange kite", "boat", "umbrella")] == ["an orange kite", "a boat", "an umbrella"]
    assert listing(["a", "b", "c"]) == "a, b and c" and listing(["a"]) == "a"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A small striped red balloon", Description("balloon", "red", "striped", "small", 1)),
        ("two little spotted blue cottages", Description("house", "blue", "dotted", "small", 2)),
        ("the big boulders", Description("rock", None, None, "large", None)),
        ("the night sky", Description("night sky")),
        ("The Ocean", Description("sea")),
        ("3 fish", Description("fish", count=3)),
        ("the fish", Description("fish")),
        ("the bird left of the red house", Description("bird", count=1)),
        ("red small wobbly balloon", Description("balloon", "red", None, "small", 1)),
        ("a balloon that is red and striped", Description("balloon", "red", "striped", None, 1)),
        ("all the large white stars", Description("star", "white", None, "large", None)),
        ("A medium plain green umbrella in the sand.", Description("umbrella", "green", "plain", "medium", 1)),
        ("nonsense", Description()),
        ("", Description()),
    ],
)
def test_parse_phrase_reads_what_people_and_models_write(text, expected):
    assert parse_phrase(text) == expected


def test_contradicts_only_where_both_state_something_else():
    truth = Description("boat", "red", "plain", "small", 1)
    assert not Description("boat", "red").contradicts(truth)
    assert Description("boat", "red", "striped").contradicts(truth)
    assert not truth.contradicts(Description())


def test_every_noun_phrase_reads_back():
    rng = random.Random(0)
    for _ in range(1500):
        cls = rng.choice(vocabulary.CLASSES)
        stated = {
            "colour": rng.choice((None, *vocabulary.COLOURS)),
            "pattern": rng.choice((None, *vocabulary.PATTERNS)),
            "size": rng.choice((None, *vocabulary.SIZES)),
        }
        count = rng.choice((1, 1, 2, 3, 6))
        text = noun_phrase(rng, cls, count=count, article=rng.choice(("a", "the")), **stated)
        found = parse_phrase(text)
        assert (found.cls, found.colour, found.pattern, found.size) == (cls, *stated.values()), text
        assert found.count == count or (found.count is None and plural(names_of(cls)[0]) == cls), text


def test_no_name_belongs_to_two_classes():
    names = [name for kind in (*vocabulary.CLASSES, *vocabulary.STUFF) for name in names_of(kind)]
    assert len(names) == len(set(names))
    assert set(phrasebook.VERBS) == set(vocabulary.CLASSES)
    assert set(phrasebook.HOME_WORDS) == set(vocabulary.STUFF)
    assert set(phrasebook.PLACE_WORDS) == set(vocabulary.PLACES)


# ---- relations ----


def test_relations_of_a_hand_made_scene():
    view = hand_made(*TWO_HOUSES, ("fence", "white", "plain", "small", (30, 70, 50, 82)))
    house, far, kite, fence = range(4)
    assert set(view.relation(house, far)) == {"left"}
    assert "above" in view.relation(kite, far) and "below" in view.relation(far, kite)
    assert "behind" in view.relation(house, fence) and "front" in view.relation(fence, house)
    assert view.home(kite) == "sky" and view.home(fence) == "meadow"
    assert view.things == (house, fence, kite, far) or view.things == (house, fence, far, kite)


def test_ground_things_are_never_above_each_other():
    view = hand_made(
        ("house", "red", "plain", "small", (40, 62, 52, 72)), ("rock", "pink", "plain", "small", (40, 80, 52, 92))
    )
    assert "above" not in view.relation(0, 1) and "below" not in view.relation(1, 0)


def test_relations_are_opposites(views):
    opposite = {"left": "right", "above": "below", "behind": "front", "beside": "beside"}
    for view in views:
        for a in view.things:
            for b in view.things:
                for name, back in opposite.items():
                    assert a == b or RELATIONS[name](view, a, b) == RELATIONS[back](view, b, a)


# ---- captions ----


def test_captions_ground_everything_once_from_left_to_right(views):
    for view, turns, truth in made_of(views, "gcg"):
        facts = truth["phrases"]
        things = [fact["members"] for fact in facts if fact["members"]]
        assert things == [group.members for group in view.groups], turns[0].answer
        assert sorted(k for members in things for k in members) == sorted(view.things)
        assert sorted(fact["cls"] for fact in facts if not fact["members"]) == sorted(view.stuff)


def test_phrases_state_what_the_picture_shows_and_no_default(views):
    for task in ("gcg", "grounding", "refseg"):
        for _, turns, truth in made_of(views, task, 2):
            grounded = parse_grounded(turns[0].answer)
            assert len(grounded.phrases) == len(truth["phrases"])
            for phrase, fact in zip(grounded.phrases, truth["phrases"], strict=True):
                found = parse_phrase(phrase.text)
                assert not found.contradicts(Description(**{k: v for k, v in fact.items() if k != "members"}))
                assert found.pattern != "plain" and found.size != "medium"
                if fact["cls"]:
                    assert found.cls == fact["cls"] and found.colour == fact["colour"]
                    # What a phrase leaves unsaid is the default.
                    assert found.pattern or fact["pattern"] in (None, "plain")
                    assert found.size or fact["size"] in (None, "medium")


def test_like_things_share_a_phrase_and_a_mask():
    kites = [("kite", "red", "plain", "medium", (x, 5, x + 15, 20)) for x in (5, 60)]
    view = hand_made(*kites)
    turns, truth = tasks.converse("gcg", view, random.Random(1))
    index = next(i for i, fact in enumerate(truth["phrases"]) if fact["cls"] == "kite")
    assert truth["phrases"][index]["count"] == 2 and "two red kites" in turns[0].answer.lower()
    assert (turns[0].masks[index] == view.picture.thing_masks.any(0)).all()


def test_captions_vary():
    view = hand_made(*TWO_HOUSES)
    texts = {tasks.converse("gcg", view, random.Random(k))[0][0].answer for k in range(300)}
    skeletons = {re.sub(r"<p>.*?</p> \[SEG\]", "_", text) for text in texts}
    assert len(texts) > 280 and len(skeletons) > 150


def test_captions_are_compact(views):
    lengths = [len(parse_grounded(turns[0].answer).caption.split()) for _, turns, _ in made_of(views, "gcg")]
    assert 20 < np.mean(lengths) < 45 and max(lengths) <= 75


def test_a_scene_without_things_still_has_a_caption():
    view = hand_made()
    for k in range(30):
        turns, truth = tasks.converse("gcg", view, random.Random(k))
        assert {fact["cls"] for fact in truth["phrases"]} == {"sky", "meadow"}, turns[0].answer
        assert turns[0].answer.endswith(".") and "  " not in turns[0].answer


def test_verbs_agree_in_number(views):
    singular = {captions.third_person(verb) for verbs in phrasebook.VERBS.values() for verb in verbs} | {"is"}
    base = {verb for verbs in phrasebook.VERBS.values() for verb in verbs} | {"are"}
    for view in views:
        for group in view.groups:
            writer = CaptionWriter(Draft(view), random.Random(0))
            assert writer.verb(group) in (singular if group.count == 1 else base)


def test_the_place_is_named_only_where_the_ground_tells_it():
    assert captions.places_of(("meadow", "road")) == ("countryside", "town")
    assert captions.place_of(hand_made(stuff=(("sky", 0, 50), ("meadow", 50, 70), ("road", 70, 100)))) is None
    assert captions.place_of(hand_made(stuff=(("sky", 0, 50), ("dunes", 50, 100)))) == "desert"


def test_words_of_one_thing_and_of_several():
    assert [captions.third_person(verb) for verb in ("fly", "sway", "sail")] == ["flies", "sways", "sails"]
    assert captions.at_home(random.Random(0), "fish", "sea") == "in"
    assert captions.at_home(random.Random(0), "boat", "sea") == "on"
    one, two = hand_made(TWO_HOUSES[0]), hand_made(*TWO_HOUSES[:2])
    texts = [[CaptionWriter(Draft(view), random.Random(k)).scene() for k in range(200)] for view in (one, two)]
    assert not any(re.search(r"\bthem\b", text) for text in texts[0])
    assert any(re.search(r"\bthem\b", text) for text in texts[1])


def test_verbs_agree_with_the_number_of_kinds_of_stuff():
    view = hand_made(stuff=(("sky", 0, 40), ("meadow", 40, 70), ("dunes", 70, 100)))
    writer = CaptionWriter(Draft(view), random.Random(0))
    assert " is there" in writer._fill(("{stuff} {is} there",), (), ["meadow"])
    assert " are there" in writer._fill(("{stuff} {is} there",), (), ["sky", "meadow"])
    assert " are there" in writer._fill(("{stuff} {is} there",), (), ["dunes"])


def test_what_is_said_of_a_group_holds_for_all_of_it():
    kites = [("kite", "red", "plain", "medium", (x, 5, x + 15, 20)) for x in (5, 80)]
    house = ("house", "blue", "plain", "large", (40, 60, 60, 90))
    view = hand_made(*kites, house)
    both, one = view.groups
    assert both.members == (0, 1) and captions.relation_of(view, both, one) == []
    alone = hand_made(kites[0], house)
    assert "left" in captions.relation_of(alone, *alone.groups)
    writer = CaptionWriter(Draft(view), random.Random(0))
    assert writer._spot(both) is None and writer._spot(one) == phrasebook.SPOTS[1]
    assert CaptionWriter(Draft(alone), random.Random(0))._spot(alone.groups[0]) == phrasebook.SPOTS[0]
    grounds = (("sky", 0, 40), ("sea", 40, 70), ("beach", 70, 100))
    rocks = [("rock", "gray", "plain", "small", (10, y, 20, y + 10)) for y in (45, 80)]
    coast = hand_made(*rocks, stuff=grounds, place="coast")
    homes = {coast.home(k) for k in (0, 1)}
    assert captions.home_of(coast, coast.groups[0]) == (homes.pop() if len(homes) == 1 else None)


# ---- all tasks ----


@pytest.mark.parametrize("task", tasks.TASKS)
def test_turns_are_well_formed(views, task):
    for view, turns, _ in made_of(views, task):
        assert len(turns) in ((2, 3) if task == "chat" else (1,))
        for turn in turns:
            assert len(turn.masks) == turn.answer.count("[SEG]") == turn.answer.count("</p> [SEG]")
            assert turn.masks.shape[1:] == view.picture.image.shape[:2] and turn.masks.dtype == bool
            assert turn.boxes.shape == (turn.question.count("<bbox>"), 4) and turn.boxes.dtype == np.float32
            assert all(mask.any() for mask in turn.masks)
            assert "<p>" not in turn.question and "<image>" not in turn.question
            grounded = parse_grounded(turn.answer)
            assert not grounded.notes
            for text in (turn.question, grounded.caption):
                assert text[0].isupper() and text[-1] in ".?!", text
                assert not re.search(r"  | [.,;?]|\{|\}|[\ue000-\ue0ff]|\ba [aeiou]|[.?] [a-z]", text), text


def test_each_task_asks_in_a_dozen_ways():
    assert all(len(set(options)) >= 12 for options in phrasebook.QUESTIONS.values())


def test_the_vocabulary_is_complete_and_small(views):
    known = set(tasks.corpus_words())
    assert 300 < len(known) <= 700
    tag = re.compile(r"</?p>|\[SEG\]")
    for task in tasks.TASKS:
        for _, turns, _ in made_of(views, task, 9):
            for turn in turns:
                for text in (turn.question, turn.answer):
                    words = re.findall(r"<bbox>|[A-Za-z]+(?:'[a-z]+)?(?:-[a-z]+)?|\d+|[^\sA-Za-z\d]", tag.sub("", text))
                    assert known.issuperset(words), set(words) - known


def test_conversation_is_keyed_and_names_unknown_tasks():
    scene = sample_scene("val", 0, 3)
    picture = render(scene, 96, supersample=1)
    one, two = (tasks.conversation("gcg", scene, picture, keyed_rng("a", 1)) for _ in range(2))
    assert one[0].answer == two[0].answer
    with pytest.raises(ValueError, match="gcgg.*choose one of"):
        tasks.conversation("gcgg", scene, picture, random.Random(0))
