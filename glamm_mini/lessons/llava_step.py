"""The first training step of LLaVA in small: a projector learns from words alone, all else stays as it is."""

import torch

from glamm_mini.datasets.storybook.vocabulary import CLASSES, COLOURS
from glamm_mini.model.splice import language_states, put_images
from glamm_mini.processor import pad_rows
from glamm_mini.text.tokens import IGNORE_INDEX


def spoken_rows(samples, processor):
    """One packed row (ids, labels, segments) a Sample, of the conversations that need neither boxes nor masks.

    Raises ValueError for a sample that has no such conversation.
    """
    rows = []
    for sample in samples:
        plain = [turns for turns in sample.conversations if not any(len(t.boxes) + len(t.masks) for t in turns)]
        if not plain:
            raise ValueError(f"{sample.image_id} has no conversation in words alone; draw more conversations")
        rows.append(processor.encode_packed([[(t.question, t.answer) for t in turns] for turns in plain]))
    return rows


def answer_logits(model, rows, tokens):
    """What the model expects at every learnt word of packed rows, and the words that stand there.

    rows: R of them, see `spoken_rows`. tokens: (R, P, D), the projected pictures. Returns logits (K, V), words (K,).
    """
    ids, labels, segments = zip(*rows, strict=True)
    batch = pad_rows(ids, labels, segments, model.config.text.pad_token_id)
    ids = batch["input_ids"]  # (R, L)
    embeds = model.get_input_embeddings()(ids.clamp(min=0))  # (R, L, D)
    columns = embeds, ids, batch["attention_mask"], batch["labels"], batch["segment_ids"]
    spliced = put_images(*columns, tokens, range(len(rows)))
    states = language_states(model.language_model, spliced)  # (R, T, D)
    learnt = spliced.labels[:, 1:] != IGNORE_INDEX
    return model.language_model.lm_head(states[:, :-1][learnt]), spliced.labels[:, 1:][learnt]


def sight_words(tokenizer):
    """Ids of the words that one cannot know without looking: the storybook's things and colours."""
    words = [*CLASSES, *(f"{name}s" for name in CLASSES), *COLOURS]
    ids = {tokenizer.convert_tokens_to_ids(word) for word in words} - {None, tokenizer.unk_token_id}
    return torch.tensor(sorted(ids))


@torch.no_grad()
def sight_accuracy(model, rows, tokens, wanted):
    """Share of the `wanted` words among the learnt ones that the model finds likeliest, given the words before."""
    right = []
    for start in range(0, len(rows), 16):
        logits, words = answer_logits(model, rows[start : start + 16], tokens[start : start + 16])
        asked = torch.isin(words, wanted)
        right.append(logits[asked].argmax(-1) == words[asked])
    return torch.cat(right).float().mean().item()
