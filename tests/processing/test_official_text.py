"""The official tokenizer, prompts, labels, truncation and post-processing, against what the released code gave.

The toy tokenizer of the bundled case has 512 pieces; the rules are those of Vicuna's 32000.
"""

import json
import random
import shutil

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from small_models import small_config

from glamm_mini import paths
from glamm_mini.checks.parity.inputs import official_parse, set_introduction
from glamm_mini.model.config import OFFICIAL_SYSTEM
from glamm_mini.model.tokens import ADDED_TOKENS, IGNORE_INDEX
from glamm_mini.processing.llama_tokenizer import official_decode, official_tokenizer
from glamm_mini.processing.processor import GlammProcessor, pad_rows
from glamm_mini.processing.prompts import render
from glamm_mini.processing.tags import parse_grounded

TOKENS = json.loads((paths.parity_folder() / "tokens.json").read_text("utf-8"))
FOLDER = paths.parity_folder() / "tokenizer"


def make(folder=FOLDER, **prompt) -> GlammProcessor:
    tokenizer = official_tokenizer(folder)
    text = small_config().text.to_dict() | {"vocab_size": len(tokenizer)}
    config = small_config(mode="official", prompt=dict(system=OFFICIAL_SYSTEM) | prompt, text=text)
    return GlammProcessor(config, tokenizer)


@pytest.fixture(scope="module", params=["made", "reloaded", "from_json"])
def processor(request, tmp_path_factory):
    """As made, as `save_pretrained` and `from_pretrained` bring it back, and made from the saved tokenizer.json."""
    made, folder = make(), tmp_path_factory.mktemp("saved")
    made.save_pretrained(folder)
    if request.param == "from_json":
        return make(folder)
    return GlammProcessor.from_pretrained(folder) if request.param == "reloaded" else made


def prepare(processor, conversation):
    """The turns of a conversation; the processor brings in the image as that conversation does."""
    turns = set_introduction(processor, conversation)
    assert render(processor.config.prompt, turns, True).text == conversation
    return turns


def test_added_tokens_follow_the_vocabulary(processor):
    t = processor.tokenizer
    assert {token: t.convert_tokens_to_ids(token) for token in ADDED_TOKENS} == TOKENS["added_tokens"]
    assert (t.bos_token_id, t.eos_token_id, t.pad_token_id, t.unk_token_id) == (1, 2, 0, 0)
    assert processor.config.tokens.seg == TOKENS["added_tokens"]["[SEG]"]


@pytest.mark.parametrize("fragment", TOKENS["tokenizer_fragments"])
def test_fragments(processor, fragment):
    expected = TOKENS["tokenizer_fragments"][fragment]
    ids = processor.tokenizer(fragment).input_ids
    assert ids == expected["ids"]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == expected["tokens"]


@pytest.mark.parametrize("name", TOKENS["train_examples"])
def test_training_examples(processor, name):
    stored = TOKENS["train_examples"][name]
    ids, labels = processor.encode(prepare(processor, stored["conversation"]))
    assert ids == stored["input_ids"] and labels == stored["labels"]
    supervised = [y for y in labels if y != IGNORE_INDEX]
    assert processor.tokenizer.convert_ids_to_tokens(supervised) == stored["supervised_text"]


def test_padded_batch(processor):
    stored, rows = TOKENS["padded_batch"], []
    for name in stored["names"]:
        rows.append(processor.encode(prepare(processor, TOKENS["train_examples"][name]["conversation"]), truncate=True))
    batch = pad_rows([r[0] for r in rows], [r[1] for r in rows], None, processor.tokenizer.pad_token_id)
    for key in ("input_ids", "labels"):
        assert batch[key].tolist() == stored[key]
    assert batch["attention_mask"].long().tolist() == stored["attention_masks"]


def long_conversation() -> list[tuple[str, str]]:
    """A conversation longer than 125 ids, with a supervised answer: the stored one's text is not known."""
    return [("What is in the image?", "<p> A man </p> [SEG] is near <p> the dog </p> [SEG]. " * 12)]


@pytest.mark.parametrize("length", [700, 1536])
def test_truncation_is_for_training_alone(length):
    processor = make(max_length=length)
    processor.config.vision.image_size = 336
    processor.config.vision.patch_size = 14
    assert processor.config.image_tokens == 576
    ids, labels = processor.encode(long_conversation())
    cut, cut_labels = processor.encode(long_conversation(), truncate=True)
    room = TOKENS["truncation"][f"model_max_length={length},inference=False"]["truncate_len"]
    assert processor.room == room and len(ids) > 125
    assert cut == ids[:room] and cut_labels == labels[:room]
    batch = processor(None, [long_conversation()], truncate=True)
    assert batch["input_ids"].shape[1] == min(room, processor(None, [long_conversation()])["input_ids"].shape[1])


@pytest.mark.parametrize("name", [k for k, v in TOKENS["generation_prompts"].items() if isinstance(v, dict)])
def test_generation_prompts(processor, name):
    stored = TOKENS["generation_prompts"][name]
    assert stored["prompt"].endswith("ASSISTANT:")
    batch = processor.prompts([prepare(processor, stored["prompt"])])
    assert batch["input_ids"].tolist() == [stored["input_ids"]] and batch["attention_mask"].all()


def test_decoding(processor):
    stored = TOKENS["decode_example"]
    assert official_decode(processor.tokenizer, stored["ids"]) == stored["decoded"]
    answer = "<p> A man </p> [SEG] is near <p> the dog </p> [SEG]."
    ids = processor.tokenizer(answer).input_ids
    decoded = processor.decode([*ids, processor.tokenizer.eos_token_id])
    assert decoded == answer.replace("[SEG].", "[SEG] .")
    assert processor.tokenizer(decoded).input_ids[:-2] == ids[:-2]
    assert parse_grounded(decoded).caption == "A man is near the dog."


@pytest.mark.parametrize("stored", TOKENS["post_processing"], ids=lambda s: s["cleaned_caption"])
def test_post_processing(stored):
    assert official_parse(stored["text"]) == (stored["cleaned_caption"], stored["phrases"])


def test_pieces_are_those_of_sentencepiece():
    """Two implementations: the merges derived here, and SentencePiece itself, on text of every kind."""
    tokenizer, reference = (
        official_tokenizer(FOLDER),
        SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model")),
    )
    rng = random.Random(0)
    text = " ".join(e["conversation"] for e in TOKENS["train_examples"].values())
    for token in (*ADDED_TOKENS, "<image>", "</s>"):
        text = text.replace(token, "")
    for k in range(600):
        start = rng.randrange(len(text))
        sample = text[start : start + rng.randrange(1, 40)]
        if k % 3 == 0:
            sample = "".join(rng.choice("abtheséñ好\n\u2581  .<>") for _ in range(rng.randrange(1, 30)))
        assert tokenizer(sample, add_special_tokens=False).input_ids == reference.encode(sample), repr(sample)


def test_ids_that_a_folder_numbers_itself_are_kept(tmp_path):
    shutil.copy(FOLDER / "tokenizer.model", tmp_path)
    own = {"<pad>": 512, "[SEG]": 513, "<im_start>": 514}
    (tmp_path / "added_tokens.json").write_text(json.dumps(own))
    t = official_tokenizer(tmp_path)
    rest = [token for token in ADDED_TOKENS if token not in own]
    expected = own | {token: 515 + k for k, token in enumerate(rest)}
    assert {token: t.convert_tokens_to_ids(token) for token in expected} == expected
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[SEG]": 600}))
    with pytest.raises(ValueError, match="vocabulary of 512 without a gap"):
        official_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tokenizer.model nor tokenizer.json"):
        official_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece", "vocab": {}}}')
    with pytest.raises(ValueError, match="no BPE tokenizer"):
        official_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        official_tokenizer(tmp_path)


def test_labels_do_not_depend_on_words_of_the_template():
    """The released rule counts pieces and fails here; ours follows characters."""
    processor = make()
    ids, labels = processor.encode([("Say USER: hi", "ASSISTANT: the dog"), ("And?", "a man")])
    learned = torch.tensor(labels) != IGNORE_INDEX
    pieces = processor.tokenizer.convert_ids_to_tokens(torch.tensor(ids)[learned].tolist())
    assert "".join(pieces).replace("\u2581", " ") == " ASSISTANT: the dog</s> a man</s>"
