"""The storybook language: what is said is true, can be read back, and is made of known words."""

import random
import re

import numpy as np
import pytest

from glamm_mini.evaluation.score import normalize_answer
from glamm_mini.processing.tags import parse_grounded
from glamm_mini.storybook.language import captions, exchanges, phrasebook, questions, referring, tasks, vocabulary
from glamm_mini.storybook.language.captions import CaptionWriter
from glamm_mini.storybook.language.speech import Draft, listing, noun_phrase
from glamm_mini.storybook.language.words import Description, names_of, parse_phrase, plural, with_article
from glamm_mini.storybook.world.relations import RELATIONS, View
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import Picture, Scene, Stuff, Thing, keyed_rng

SCENES = 60


@pytest.fixture(scope="module")
def views():
    scenes = [sample_scene(split, 0, index) for split in ("train", "compositional") for index in range(SCENES // 2)]
    return [View(scene, render(scene, 128, supersample=1)) for scene in scenes]


def made_of(views, task, repeats=3):
    for number, view in enumerate(views):
        for repeat in range(repeats):
            made = tasks.converse(task, view, keyed_rng("test", task, number, repeat))
            if made:
                yield view, *made


def hand_made(*things, stuff=(("sky", 0, 60), ("meadow", 60, 100)), place="countryside"):
    """A view of rectangles: things are (cls, colour, pattern, size, (x0, y0, x1, y1)) on 100 x 100 pixels."""
    label = np.zeros((100, 100), int)
    for number, (_, top, bottom) in enumerate(stuff):
        label[top:bottom] = number
    boxes = []
    for number, (*_, (x0, y0, x1, y1)) in enumerate(things, start=len(stuff)):
        label[y0:y1, x0:x1] = number
        boxes.append((x0, y0, x1, y1))
    masks = label[None] == np.arange(len(stuff) + len(things))[:, None, None]
    records = tuple(
        Thing(cls, colour, pattern, size, (b[0] + b[2]) / 200, (b[1] + b[3]) / 200, vocabulary.SIZES[size])
        for cls, colour, pattern, size, b in things
    )
    bands = tuple(Stuff(kind, top / 100, bottom / 100) for kind, top, bottom in stuff)
    scene = Scene("test", 0, 0, place, (1, 1), bands, records)
    picture = Picture(
        np.zeros((100, 100, 3), np.uint8),
        masks[len(stuff) :],
        masks[: len(stuff)],
        np.array(boxes, np.float32).reshape(-1, 4),
    )
    return View(scene, picture)


TWO_HOUSES = (
    ("house", "red", "plain", "large", (5, 50, 35, 80)),
    ("house", "blue", "striped", "small", (60, 60, 72, 72)),
    ("kite", "red", "plain", "medium", (55, 5, 75, 25)),
)


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
    house, twin = hand_made(*TWO_HOUSES[:1]), hand_made(*TWO_HOUSES[:2])
    assert questions._names(twin, 0, 1) and "house" not in questions._names(twin, 0, 1), "both are houses"
    assert house.things == (0,)


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
