"""Tagged answers, prompts and boxes for whatever is drawn: read back as written, never an error where none is meant."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glamm_mini.checks.parity.inputs import official_parse
from glamm_mini.model.config import PromptConfig
from glamm_mini.model.tokens import ADDED_TOKENS, BBOX, IGNORE_INDEX, IMAGE, IMAGE_TOKEN_INDEX, SEG
from glamm_mini.processing.boxes import SLACK, checked_boxes
from glamm_mini.processing.prompts import EOS, plain_words, render
from glamm_mini.processing.tags import parse_grounded, tag_phrases

pieces = st.sampled_from([*ADDED_TOKENS, IMAGE, EOS, "<s>", "<", ">", "<p", "p>", "[", "]", " ", "\n", ".", ", "])
tagged = st.lists(pieces | st.text(max_size=5), max_size=12).map("".join)
word = st.text("abcdefg", min_size=1, max_size=6)
sentence = st.lists(word, min_size=1, max_size=8).map(" ".join)


# --- tagged text --------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(tagged)
def test_any_text_is_read_and_every_span_lies_in_the_caption(text):
    read = parse_grounded(text)
    assert len(read.phrases) == text.count(SEG)
    end = 0
    for phrase in read.phrases:
        assert (phrase.span is None) == (phrase.text == "")
        if phrase.span:
            assert end <= phrase.span[0] < phrase.span[1] <= len(read.caption), "in order, and in the caption"
            assert read.caption[slice(*phrase.span)] == phrase.text
            end = phrase.span[1]
    assert not any(tag in read.caption for tag in ("<p>", "</p>", SEG) if tag not in text.replace(tag, ""))
    assert read.caption == read.caption.strip() and "  " not in read.caption
    caption, phrases = official_parse(text)
    assert isinstance(caption, str) and len(phrases) <= text.count("<p>")


@given(sentence, st.data())
def test_tagged_phrases_are_read_back(caption, data):
    words = caption.split(" ")
    starts = np.cumsum([0] + [len(one) + 1 for one in words[:-1]]).tolist()
    spans, k = [], 0
    while k < len(words):
        length = data.draw(st.integers(0, 3))
        if length and k + length <= len(words):
            spans.append((starts[k], starts[k + length - 1] + len(words[k + length - 1])))
        k += max(length, 1)
    read = parse_grounded(tag_phrases(caption, spans))
    assert read.caption == caption and read.notes == []
    assert [phrase.span for phrase in read.phrases] == spans


@given(
    sentence, st.tuples(st.integers(-3, 40), st.integers(-3, 40)), st.tuples(st.integers(-3, 40), st.integers(0, 40))
)
def test_spans_that_overlap_or_leave_the_caption_are_refused(caption, first, second):
    good = 0 <= first[0] < first[1] <= second[0] < second[1] <= len(caption)
    if good:
        assert tag_phrases(caption, [first, second]).count(SEG) == 2
    else:
        with pytest.raises(ValueError, match="span"):
            tag_phrases(caption, [first, second])


# --- prompts ------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(tagged, st.sampled_from([(), (BBOX,), ("<p>", "</p>", SEG)]))
def test_no_tag_gets_through_plain_words(text, keep):
    plain = plain_words(text, keep)
    for token in (*ADDED_TOKENS, IMAGE, EOS, "<s>", "<unk>"):
        assert token in keep or token not in plain
        if token in keep:
            assert plain.count(token) == text.count(token)
    assert plain.replace(" ", "") == text.replace(" ", ""), "nothing but blanks is added"
    assert plain_words(plain, keep) == plain


turns = st.lists(st.tuples(sentence, sentence | st.just("")), min_size=1, max_size=4)


@given(turns, st.booleans(), st.booleans())
def test_answers_and_nothing_else_are_supervised(conversation, has_image, is_open):
    given_turns = [*conversation[:-1], (conversation[-1][0], None)] if is_open else conversation
    prompt = render(PromptConfig(), given_turns, has_image)
    answers = [answer for _, answer in given_turns if answer is not None]
    assert [prompt.text[start:end] for start, end in prompt.supervised] == [answer + EOS for answer in answers]
    assert prompt.text.count(IMAGE) == has_image and (prompt.shared > 0) == has_image
    assert is_open or prompt.text.endswith(EOS)


@given(conversation=turns)
def test_labels_are_the_ids_of_the_answers(processor, conversation):
    ids, labels = processor.encode(conversation)
    assert len(ids) == len(labels) and ids.count(IMAGE_TOKEN_INDEX) == 1
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(ids, labels, strict=True))
    learned = [label for label in labels if label != IGNORE_INDEX]
    end = processor.tokenizer.convert_tokens_to_ids(EOS)
    assert learned.count(end) == ids.count(end) == len(conversation)
    expected = [t for _, a in conversation for t in processor.tokenizer(a + EOS, add_special_tokens=False).input_ids]
    assert learned == expected


# --- boxes --------------------------------------------------------------------------------------------------------

side = st.integers(1, 500)
fraction = st.floats(0, 1, width=32)


@given(side, side, st.lists(st.tuples(fraction, fraction, fraction, fraction), min_size=1, max_size=4))
def test_fractions_are_pixels_of_the_same_boxes(height, width, drawn):
    boxes = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in drawn]
    sides = np.array([width, height, width, height], np.float32)
    if not all(x0 < x1 and y0 < y1 and x0 < 1 and y0 < 1 and x1 > 0 and y1 > 0 for x0, y0, x1, y1 in boxes):
        with pytest.raises(ValueError, match="box "):
            checked_boxes(boxes, (height, width), normalised=True)
        return
    pixels = checked_boxes(boxes, (height, width), normalised=True)
    assert pixels.dtype == np.float32 and pixels.shape == (len(boxes), 4)
    np.testing.assert_array_equal(pixels, np.array(boxes, np.float32) * sides)
    assert (pixels >= 0).all() and (pixels <= sides).all()


@given(side, side, st.tuples(*[st.floats(-600, 600, width=32)] * 4))
def test_boxes_are_clipped_to_the_picture_or_refused(height, width, box):
    x0, y0, x1, y1 = box
    inside = x0 < x1 and y0 < y1 and x0 < width and y0 < height and x1 > 0 and y1 > 0
    if not inside:
        with pytest.raises(ValueError, match="box 0"):
            checked_boxes(box, (height, width))
        return
    expected = [max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)]
    assert checked_boxes(box, (height, width)).tolist() == [expected]


@given(boxes=st.lists(st.tuples(*[st.floats(0, 64, width=32, allow_subnormal=False)] * 4), max_size=4))
def test_normalized_boxes_are_shares_of_the_longer_side(processor, boxes):
    fractions = processor.normalize_boxes(np.array(boxes, np.float32).reshape(-1, 4), (48, 64))
    assert fractions.shape == (len(boxes), 4) and (fractions <= 1).all() and (fractions >= 0).all()
    np.testing.assert_array_equal(fractions.numpy() * 64, np.array(boxes, np.float32).reshape(-1, 4))


def test_fractions_may_leave_the_picture_by_the_slack_of_a_division():
    assert checked_boxes((-SLACK / 2, 0, 1 + SLACK / 2, 1), (10, 20), normalised=True).tolist() == [[0, 0, 20, 10]]
    for box in ((-2 * SLACK, 0, 1, 1), (0, 0, 1, 1 + 2 * SLACK)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            checked_boxes(box, (10, 20), normalised=True)
