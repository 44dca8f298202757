"""Our preprocessing of pictures and words beside the official one: pixels, ids and labels, bit by bit.

The numbers lie in preprocess.npz and tokens.json; they belong to no case and hold for a model of any size.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glamm_mini.checks.parity import weights
from glamm_mini.checks.parity.compare import Comparison, measured_row
from glamm_mini.model.config import OFFICIAL_SYSTEM, GlammConfig
from glamm_mini.model.tokens import IM_END, IM_START, IMAGE, PHRASE_END, PHRASE_START, SEG
from glamm_mini.paths import parity_folder
from glamm_mini.processing.images import encode_mask
from glamm_mini.processing.llama_tokenizer import official_decode, official_tokenizer
from glamm_mini.processing.processor import GlammProcessor, pad_rows

PICTURES, WORDS = "preprocess", "tokens"
INTRODUCTIONS = (f"The {IMAGE} provides an overview of the picture.\n", f"{IMAGE}\n")
"""Lines that bring in the image; visual question answering and RefCOCO's regions use the second."""


def compare_inputs(folder: str | Path | None = None) -> Iterator[Comparison]:
    """Rows for all pictures and all texts; folder: default the bundled one. Nothing may differ, in any bit."""
    folder = parity_folder() if folder is None else Path(folder)
    processor = GlammProcessor(GlammConfig.of_size("7b"), official_tokenizer(folder / "tokenizer"))
    yield from compare_pictures(folder, processor)
    yield from compare_words(json.loads((folder / "tokens.json").read_text("utf-8")), processor)


# --- pictures --------------------------------------------------------------------------------------------------------


def compare_pictures(folder: Path, processor: GlammProcessor) -> Iterator[Comparison]:
    """Four pictures as both encoders get them, and three masks as the records store them."""
    meta = json.loads((folder / "preprocess.json").read_text("utf-8"))
    stored = dict(np.load(folder / "preprocess.npz"))
    config = processor.config.grounding
    for name in [name for name, entry in meta.items() if "resize_hw" in entry]:
        size = tuple(int(n) for n in name.split("x"))
        out = processor.images([weights.rgb_image(name, size)])
        yield _same(PICTURES, f"{name}/resized", list(out["resized"][0]), meta[name]["resize_hw"])
        h, w = out["resized"][0]
        sam = out["grounding_images"][0].numpy()
        # Back from the encoder's numbers to pixels: (3, h, w) -> (h, w, 3).
        mean, std = (np.array(x)[:, None, None] for x in (config.pixel_mean, config.pixel_std))
        pixels = np.round(sam[:, :h, :w] * std + mean).astype(np.uint8).transpose(1, 2, 0)
        yield _exact(stored, f"{name}/sam_resized_uint8", pixels)
        yield _exact(stored, f"{name}/sam", sam)
        yield _exact(stored, f"{name}/clip", out["global_images"][0].numpy())
    example = meta["rle_example"]
    masks = [_rectangle(rect) for rect in example["rects_x0y0x1y1_on_7x9"]]
    yield _same(PICTURES, "rle_example", [encode_mask(mask) for mask in masks], example["compressed"])


def _rectangle(rect) -> np.ndarray:
    return np.zeros((7, 9), bool) if rect is None else weights.rect_mask((7, 9), rect) > 0


def _exact(stored: dict, name: str, ours: np.ndarray) -> Comparison:
    """Every stored number must be there to the last bit; the probe, a sum over all, within its rounding."""
    row = measured_row(PICTURES, name, stored, ours, 1e-12)
    row.tolerance = 0.0
    return row


# --- words -----------------------------------------------------------------------------------------------------------


def compare_words(stored: dict, processor: GlammProcessor) -> Iterator[Comparison]:
    """Token ids, labels, padding, truncation, prompts, decoding and the clean-up of answers."""
    tokenizer = processor.tokenizer
    for text, expected in stored["tokenizer_fragments"].items():
        yield _same(WORDS, f"fragment/{text!r}", tokenizer(text).input_ids, expected["ids"])
    rows = {}
    for name, example in stored["train_examples"].items():
        rows[name] = processor.encode(set_introduction(processor, example["conversation"]), truncate=True)
        yield _same(WORDS, f"train_examples/{name}/input_ids", rows[name][0], example["input_ids"])
        yield _same(WORDS, f"train_examples/{name}/labels", rows[name][1], example["labels"])
    batch = stored["padded_batch"]
    ours = pad_rows(*zip(*(rows[name] for name in batch["names"]), strict=True), None, tokenizer.pad_token_id)
    for ours_name, name in (("input_ids",) * 2, ("labels",) * 2, ("attention_mask", "attention_masks")):
        yield _same(WORDS, f"padded_batch/{name}", ours[ours_name].long().tolist(), batch[name])
    yield from _truncation(stored["truncation"], processor)
    for name, example in stored["generation_prompts"].items():
        if isinstance(example, dict):
            ids = processor.prompts([set_introduction(processor, example["prompt"])])["input_ids"]
            yield _same(WORDS, f"generation_prompts/{name}", ids[0].tolist(), example["input_ids"])
    example = stored["decode_example"]
    yield _same(WORDS, "decode_example", official_decode(tokenizer, example["ids"]), example["decoded"])
    for k, example in enumerate(stored["post_processing"]):
        expected = (example["cleaned_caption"], example["phrases"])
        yield _same(WORDS, f"post_processing/{k}", official_parse(example["text"]), expected)


def turns_of(conversation: str) -> tuple[str, list[tuple[str, str | None]]]:
    """A whole conversation, as the official code feeds it, to the line that brings in the image and its turns.

    Raises ValueError for a conversation that our template cannot have made.
    """
    text = conversation.removeprefix(OFFICIAL_SYSTEM + " ").replace(IM_START + IMAGE + IM_END, IMAGE)
    line = next((line for line in INTRODUCTIONS if text.startswith("USER: " + line)), None)
    if line is None:
        raise ValueError(f"the conversation {text[:60]!r} begins with no known introduction of the image")
    turns = []
    for part in text.removesuffix("</s>").split("</s>"):
        question, answer = re.fullmatch("USER: (.*) ASSISTANT:(.*)", part, re.S).groups()
        turns.append((question.removeprefix(line), answer.removeprefix(" ") or None))
    return line, turns


def set_introduction(processor: GlammProcessor, conversation: str) -> list[tuple[str, str | None]]:
    """The turns of a conversation; from now on the processor brings in the image as that conversation does."""
    processor.config.prompt.image_line, turns = turns_of(conversation)
    return turns


def _truncation(stored: dict, processor: GlammProcessor) -> Iterator[Comparison]:
    """Rows may be as long as the longest of a model of that length, and only in training are cut to it."""
    longest = processor.config.prompt.max_length
    # The stored conversation's words are not known, only its 362 ids: one here that is as long or longer.
    turns = [("What is in the picture?", "the dog " * 400)]
    for name, expected in stored.items():
        given = re.fullmatch(r"model_max_length=(\d+),inference=(True|False)", name)
        if given is None:
            continue
        processor.config.prompt.max_length = int(given[1])
        ids, labels = processor.encode(turns, truncate=given[2] == "False")
        whole = len(processor.encode(turns)[0])
        length = whole if given[2] == "True" else min(whole, expected["truncate_len"])
        found = [processor.room, len(ids), len(labels)]
        yield _same(WORDS, f"truncation/{name}", found, [expected["truncate_len"], length, length])
    processor.config.prompt.max_length = longest


def _same(part: str, name: str, ours, expected) -> Comparison:
    """Equal or not; where both are lists, how many entries differ."""
    if isinstance(ours, list) and isinstance(expected, list):
        off = sum(a != b for a, b in zip(ours, expected, strict=False)) + abs(len(ours) - len(expected))
    else:
        off = int(ours != expected)
    return Comparison(part, name, float(off), 0.0, float("inf") if off else 0.0)


def official_parse(output: str) -> tuple[str, list[str]]:
    """A whole output, prompt included, to caption and phrases as the released evaluation took them.

    Published numbers depend on its oddities: the answer begins behind the last "ASSISTANT: ", blank included; line
    ends vanish without a blank; everything from a "<" to the next ">" is cut, ordinary text too; a phrase that was not
    closed swallows the next one, tags included; quotation marks (') around the caption are dropped.
    `processing.tags.parse_grounded` is what the package itself uses.
    """
    answer = output.replace("\n", "").replace("  ", " ").split("ASSISTANT: ")[-1]
    phrases = [phrase.strip() for phrase in re.findall(f"{PHRASE_START}(.*?){PHRASE_END}", answer)]
    caption = re.sub("<.*?>", "", answer).replace(SEG, "")
    return " ".join(caption.split()).strip("'").strip(), phrases
