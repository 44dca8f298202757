"""Tags, prompts and the tiny tokenizer: text that goes in comes out as it was, or with a note that says why not."""

import json
import random

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from glamm_mini import paths
from glamm_mini.assistant.requests import unknown_words
from glamm_mini.model.config import OFFICIAL_SYSTEM, PromptConfig
from glamm_mini.model.tokens import ADDED_TOKENS, BBOX, IM_END, IM_START, IMAGE, SEG
from glamm_mini.processing.prompts import EOS, plain_words, render
from glamm_mini.processing.tags import parse_grounded, tag_phrases
from glamm_mini.storybook.language.tokenizer import build_wordpiece

OFFICIAL = json.loads((paths.parity_folder() / "tokens.json").read_text("utf-8"))
PROMPTS = {name: given["prompt"] for name, given in OFFICIAL["generation_prompts"].items() if isinstance(given, dict)}


def spans_of(text):
    parsed = parse_grounded(text)
    for phrase in parsed.phrases:
        if phrase.span is None:
            assert phrase.text == ""
        else:
            assert phrase.text == parsed.caption[slice(*phrase.span)] != ""
            assert phrase.text == phrase.text.strip()
    return parsed


# --- tagged text to phrases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "caption", "phrases"),
    [
        ("<p> A man </p> [SEG] is near <p> the dog </p> [SEG] .", "A man is near the dog.", ["A man", "the dog"]),
        ("<p>A man</p>[SEG] near <p> a  red   car </p> [SEG].\nGood", "A man near a red car. Good", None),
        ("'quoted <p> cat </p> [SEG]'", "'quoted cat '", ["cat"]),
        ("no space:<p>x</p> [SEG]", "no space: x", ["x"]),
        ("a < b and c > d [SEG]", "a < b and c > d", [""]),
        ("It is [SEG].", "It is.", [""]),
        ("[SEG]", "", [""]),
        ("", "", []),
        ("  plain   words , and\tmore !", "plain words, and more!", []),
        ("<p> two dogs </p> [SEG] [SEG] run", "two dogs run", ["two dogs", ""]),
        ("<p> a cat </p> sits [SEG] here", "a cat sits here", ["a cat"]),
        ("here , <p> , a dog </p> [SEG]", "here,, a dog", [", a dog"]),
        ("look <p> . </p> [SEG] now", "look. now", ["."]),
    ],
)
def test_well_formed_text_gives_caption_and_phrases_without_notes(text, caption, phrases):
    parsed = spans_of(text)
    assert parsed.caption == caption
    assert parsed.notes == []
    if phrases is not None:
        assert [p.text for p in parsed.phrases] == phrases


def test_official_examples_give_the_same_phrases_and_keep_what_the_official_code_loses():
    """Official post-processing cuts at "ASSISTANT: ", leaves a blank before a mark, drops quotes and all text between
    < and >; we keep the words. Where its tags are balanced the phrases agree, runs of blanks joined."""
    for case in OFFICIAL["post_processing"]:
        answer = case["text"].rpartition("ASSISTANT:")[2].removesuffix(EOS)
        parsed = spans_of(answer)
        named = [p.text for p in parsed.phrases if p.text]
        if answer.count("<p>") == answer.count("</p>"):
            assert named == [" ".join(p.split()) for p in case["phrases"]]
        else:
            assert named == ["unclosed", "b"] and case["phrases"] == ["unclosed [SEG] and <p> b"]
            assert parsed.notes


@pytest.mark.parametrize(
    ("text", "phrases", "note"),
    [
        ("<p> a <p> b </p> [SEG]", ["b"], "inside another"),
        ("a </p> [SEG]", [""], "never opened"),
        ("<p> a [SEG] b", ["a"], "not closed"),
        ("<p> a [SEG] b </p> [SEG]", ["a", ""], "not closed"),
        ("[SEG] <p> a", [""], "the last phrase was not closed"),
        ("<p> </p> [SEG]", [""], None),
        ("<p> a </p> and <p> b </p> [SEG]", ["b"], "no mask"),
        ("<p> a </p> and b", [], "no mask"),
    ],
)
def test_unbalanced_tags_are_noted_and_never_fail(text, phrases, note):
    parsed = spans_of(text)
    assert [p.text for p in parsed.phrases] == phrases
    assert any(note in found for found in parsed.notes) if note else parsed.notes == []
    assert "<p>" not in parsed.caption and "</p>" not in parsed.caption and SEG not in parsed.caption


def test_spans_index_the_caption_whatever_is_written():
    rng = random.Random(0)
    pieces = ["<p>", "</p>", SEG, " ", "  ", "\n", "a", "red kite", ".", ",", " ,", "!", "é", "🎈", "<", "p>", "'s"]
    for _ in range(2000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(12)))
        parsed = spans_of(text)
        assert len(parsed.phrases) == text.count(SEG), text
        assert parsed.caption == parsed.caption.strip() and "  " not in parsed.caption, text
        assert not any(f" {mark}" in parsed.caption for mark in ".,;:!?"), text
        starts = [p.span[0] for p in parsed.phrases if p.span]
        assert starts == sorted(starts)


# --- phrases to tagged text ------------------------------------------------------------------------------------------


def test_tagging_and_parsing_are_inverse():
    rng = random.Random(1)
    words = ["a", "red", "kite", "over", "sea", "über", "it's"]
    for _ in range(300):
        chosen = [rng.choice(words) for _ in range(rng.randrange(1, 12))]
        caption, offsets = " ".join(chosen) + rng.choice(["", ".", "!"]), [0]
        for word in chosen:
            offsets.append(offsets[-1] + len(word) + 1)
        cuts = sorted(rng.sample(range(len(chosen) + 1), 2 * rng.randrange((len(chosen) + 1) // 2 + 1)))
        spans = [(offsets[a], offsets[b] - 1) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
        parsed = spans_of(tag_phrases(caption, spans))
        assert parsed.caption == caption and not parsed.notes
        assert [p.span for p in parsed.phrases] == spans


def test_tagging_writes_the_official_layout():
    caption = "A man is standing near the dog in the park."
    tagged = tag_phrases(caption, [(0, 5), (23, 30), (34, 42)])
    assert OFFICIAL["train_examples"]["gcg_train"]["conversation"].endswith(f"ASSISTANT: {tagged}{EOS}")


@pytest.mark.parametrize("spans", [[(0, 3), (2, 5)], [(4, 5), (0, 1)], [(2, 2)], [(3, 2)], [(0, 99)], [(-1, 2)]])
def test_spans_that_overlap_or_lie_outside_are_refused(spans):
    with pytest.raises(ValueError, match="overlaps the one before it"):
        tag_phrases("a red kite", spans)


# --- prompts ---------------------------------------------------------------------------------------------------------


def turns_of(conversation, line):
    """Questions and answers of an official text, whose layout is written out here once more."""
    body = conversation.removeprefix(OFFICIAL_SYSTEM + " ")
    assert body != conversation
    turns = []
    for k, part in enumerate(body.split(EOS)[:-1] if body.endswith(EOS) else body.split(EOS)):
        question, _, answer = part.removeprefix("USER: ").partition(" ASSISTANT:")
        question = question.removeprefix(line.replace(IMAGE, IM_START + IMAGE + IM_END)) if k == 0 else question
        turns.append((question, answer.removeprefix(" ") if answer else None))
    return turns


@pytest.mark.parametrize("name", [*OFFICIAL["train_examples"], *PROMPTS])
def test_rendered_text_is_the_official_text(name):
    text = PROMPTS[name] if name in PROMPTS else OFFICIAL["train_examples"][name]["conversation"]
    line = PromptConfig().image_line if "provides an overview" in text else f"{IMAGE}\n"
    turns = turns_of(text, line)
    prompt = render(PromptConfig(system=OFFICIAL_SYSTEM, image_line=line), turns, has_image=True)
    assert prompt.text == text
    assert [text[a:b] for a, b in prompt.supervised] == [answer + EOS for _, answer in turns if answer is not None]
    assert text[: prompt.shared].endswith(IM_START + IMAGE + IM_END)
    assert len(turns) == text.count("USER: ")


def test_prompt_without_system_or_image():
    prompt = render(PromptConfig(), [("hi", "ho"), ("so", None)], has_image=False)
    assert prompt.text == "USER: hi ASSISTANT: ho</s>USER: so ASSISTANT:"
    assert [prompt.text[a:b] for a, b in prompt.supervised] == ["ho</s>"]
    assert prompt.shared == 0


def test_prompts_that_cannot_be_rendered_say_why():
    with pytest.raises(ValueError, match="turn 0 of 2 has no answer"):
        render(PromptConfig(), [("a", None), ("b", "c")], True)
    with pytest.raises(ValueError, match="no turn"):
        render(PromptConfig(), [], True)
    with pytest.raises(ValueError, match="image_line"):
        render(PromptConfig(image_line="A picture.\n"), [("a", None)], True)


def test_typed_special_tokens_become_plain_words():
    tokenizer = build_wordpiece(["p", "image"])
    typed = " ".join((*ADDED_TOKENS, IMAGE, EOS, "<s>", "<unk>", "<<p>p>", "<p</p>>"))
    plain = plain_words(typed)
    assert plain.count(BBOX) == 1
    assert BBOX not in plain_words(typed, keep=())
    assert plain_words("a [SEG] b", keep=(SEG,)) == "a [SEG] b"
    assert plain_words("x < y [ok] </q>") == "x < y [ok] </q>"
    special = {tokenizer.convert_tokens_to_ids(t) for t in (*ADDED_TOKENS, EOS, "<s>", "<unk>")}
    ids = tokenizer(plain, add_special_tokens=False).input_ids
    assert special & set(ids) == {tokenizer.convert_tokens_to_ids(BBOX)}
    # With blanks aside, every character that was typed is still there.
    assert plain.replace(" ", "") == typed.replace(" ", "")


# --- the tiny tokenizer ----------------------------------------------------------------------------------------------

WORDS = ["A", "red", "kite", "over", "the", "sea", ".", ",", BBOX]


@pytest.fixture(scope="module")
def tokenizer():
    return build_wordpiece(WORDS)


def test_known_words_are_one_id_and_others_are_spelt(tokenizer):
    ids = tokenizer("A red kite.").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "A", "red", "kite", "."]
    spelled = tokenizer.convert_ids_to_tokens(tokenizer("Zeppelin", add_special_tokens=False).input_ids)
    assert spelled == ["Z", "##e", "##p", "##p", "##e", "##l", "##i", "##n"]
    # A known word at the beginning is used (the tokenizer takes the longest piece that fits), the rest is spelled.
    inflected = tokenizer("kites", add_special_tokens=False).input_ids
    assert tokenizer.convert_ids_to_tokens(inflected) == ["kite", "##s"]
    assert len(tokenizer("12", add_special_tokens=False).input_ids) == 2
    assert tokenizer.convert_ids_to_tokens(tokenizer("café 🎈", add_special_tokens=False).input_ids) == ["<unk>"] * 2


def test_ids_of_special_tokens_are_fixed_or_unique(tokenizer):
    assert [tokenizer.convert_tokens_to_ids(t) for t in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    ids = [tokenizer.convert_tokens_to_ids(t) for t in ADDED_TOKENS]
    assert len(set(ids)) == len(ADDED_TOKENS) and min(ids) > 2
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    for token, i in zip(ADDED_TOKENS, ids, strict=True):
        assert tokenizer(f"red{token}kite", add_special_tokens=False).input_ids[1] == i


def test_decoding_gives_the_words_back(tokenizer):
    text = "<p> A red kite </p> [SEG] over the Zeppelin , sea ."
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_offsets_point_at_the_words(tokenizer):
    text = "A kite,\n<p> Zed </p>"
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pieces = [text[a:b] for a, b in encoded.offset_mapping]
    assert pieces == ["A", "kite", ",", "<p>", "Z", "e", "d", "</p>"]


def test_saved_tokenizer_encodes_and_decodes_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = "A red [SEG] Zeppelin <bbox> 42 , <p> sea </p>"
    for back in (PreTrainedTokenizerFast.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert back(text).input_ids == tokenizer(text).input_ids
        assert back.decode(back(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
        assert back.get_vocab() == tokenizer.get_vocab()
        assert (back.pad_token_id, back.bos_token_id, back.eos_token_id) == (0, 1, 2)


def test_unknown_words_are_listed_once_in_order(tokenizer):
    assert unknown_words(tokenizer, "A blue kite, one blue Kite 12!") == ["blue", "one", "Kite"]
    assert unknown_words(tokenizer, "A red kite over the sea.") == []
    assert unknown_words(tokenizer, "café 🎈 12 $") == ["café", "🎈"]


def test_a_tokenizer_of_pieces_knows_all_words():
    model = models.BPE({"a": 0, "<unk>": 1}, [], unk_token="<unk>")
    pieces = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
    assert unknown_words(pieces, "anything") == []
