"""What notebook 02 builds equals the libraries, its graders see near misses, and its strips show what they say."""

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from glamm_mini.course.room_02 import grader as exercises
from glamm_mini.course.room_02 import pictures as token_strip
from glamm_mini.course.room_02.lesson import (
    answer_labels,
    causal_attention,
    next_token_loss,
    split_loss,
    write_conversation,
)
from glamm_mini.model.config import PromptConfig
from glamm_mini.model.tokens import IGNORE_INDEX
from glamm_mini.processing.processor import pad_rows
from glamm_mini.processing.prompts import render
from glamm_mini.visuals.palette import color

CHAT = [("Find the kite.", "It is <p> the red kite </p> [SEG]."), ("Is it large?", "No.")]


def test_attention_is_that_of_pytorch():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8)
    mixed, weights = causal_attention(q, k, v)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    assert weights.triu(1).sum() == 0 and torch.allclose(weights.sum(-1), torch.ones(2, 4, 7))


def test_loss_is_that_of_transformers(processor):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(processor.tokenizer), **sizes)).eval()
    rows = [processor.encode(turns, has_image=False) for turns in (CHAT, CHAT[1:])]
    batch = pad_rows(*zip(*rows, strict=True), None, 0)
    with torch.no_grad():
        out = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
    torch.testing.assert_close(next_token_loss(out.logits, batch["labels"]), out.loss, atol=1e-5, rtol=1e-5)
    answers, questions = split_loss(model, batch)
    assert answers == pytest.approx(out.loss.item(), abs=1e-5)
    labels, seen = batch["labels"], batch["attention_mask"]
    counts = (labels[:, 1:] != IGNORE_INDEX).sum(), ((labels == IGNORE_INDEX) & seen)[:, 1:].sum()
    together = next_token_loss(out.logits, batch["input_ids"].masked_fill(~seen, IGNORE_INDEX))
    assert (answers * counts[0] + questions * counts[1]) / sum(counts) == pytest.approx(together.item(), abs=1e-4)


@pytest.mark.parametrize("system", ["", "Look and answer."])
def test_template_and_labels_are_those_of_the_package(processor, system):
    text, spans = write_conversation(system, CHAT)
    expected = render(PromptConfig(system=system), CHAT, has_image=False)
    assert (text, spans) == (expected.text, expected.supervised)
    if not system:
        encoded = processor.tokenizer(text, return_offsets_mapping=True)
        labels = answer_labels(encoded.input_ids, encoded.offset_mapping, spans)
        assert (encoded.input_ids, labels) == processor.encode(CHAT, has_image=False)


def test_graders_see_what_is_nearly_right():
    def unshifted(labels):
        return [(at, label) for at, label in enumerate(labels) if label != IGNORE_INDEX]

    assert "expected" in exercises.grade_asked(unshifted).message
    assert exercises.grade_asked(lambda labels: [[a, b] for a, b in unshifted(labels[1:])])

    def always_the_last(ids, start, end, seg):
        places, begun, closed = [], None, None
        for at, token in enumerate(ids):
            begun = at + 1 if token == start else begun
            closed = (begun, at) if token == end else closed
            places += [closed] if token == seg else []
        return places

    assert "None" in exercises.grade_phrase_tokens(always_the_last).message

    def without_end(ids, opening, eos):
        labels = [IGNORE_INDEX] * len(ids)
        at = next(k for k in range(len(ids)) if ids[k : k + len(opening)] == opening) + len(opening)
        labels[at : ids.index(eos)] = ids[at : ids.index(eos)]
        return labels

    assert "case 1" in exercises.grade_learned(without_end).message

    def unwritten(*_):
        raise NotImplementedError

    for grader in (exercises.grade_asked, exercises.grade_phrase_tokens, exercises.grade_learned):
        assert "not written" in grader(unwritten).message


def test_tokens_know_who_says_them(processor):
    found = token_strip.read_tokens(processor, CHAT)
    assert [t.text for t in found if t.role == "image"] == ["<im_start>", "<image>", "<im_end>"]
    assert [t.learned for t in found if t.text == "</s>"] == [True, True] and not found[0].learned
    assert {t.role for t in found if t.text in ("<s>", "</s>", "<p>", "</p>", "[SEG]")} == {"special"}
    assert not any(t.learned for t in found if t.role in ("user", "image")) and found[1].role == "user"
    processor.config.prompt.system = "A picture."
    try:
        told = token_strip.read_tokens(processor, CHAT)
    finally:
        processor.config.prompt.system = ""
    assert [t.text for t in told if t.role == "system"] == ["A", "picture", "."]
    assert [t.text for t in told[4:]] == [t.text for t in found[1:]]
    colored = token_strip.by_phrase(found)
    assert [t.text for t in colored if t.color == color(0)] == ["<p>", "the", "red", "kite", "</p>", "[SEG]"]


def test_strips_grow_with_their_tokens(processor):
    found = token_strip.read_tokens(processor, CHAT)
    assert token_strip.token_strip(found).width == token_strip.shift_strip(found).width == 1600
    assert token_strip.token_strip(found, 500).height > token_strip.token_strip(found, 1600).height
    assert token_strip.token_strip(found, numbers=True).height > token_strip.token_strip(found).height


def test_typed_text_is_shown_as_the_model_gets_it(processor):
    draw = token_strip.typed_tokens(processor)
    said = {kind: draw({"as": kind, "text": "a zebra [SEG]"})[1] for kind in token_strip.TYPED}
    assert "reads as a token: 0" in said["question"] and "zebra" in said["question"]
    assert "reads as a token: 1" in said["question, unguarded"] and "reads as a token: 1" in said["answer"]
    assert "phrases: none" in said["answer"]
    for kind in token_strip.TYPED:
        for text in ("", "</s> <image>", "<p> a kite"):
            picture, words = draw({"as": kind, "text": text})
            assert picture.width == 620 and "learned" in words
