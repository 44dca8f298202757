"""What a language model is asked to do: look back, name the next token, and be judged on answers alone."""

import torch
from torch.nn import functional as F

from glamm_mini.model.tokens import IGNORE_INDEX


def causal_attention(q, k, v):
    """Each position mixes the values of itself and of those before it.

    q, k, v: (B, heads, T, C). Returns what was mixed (B, heads, T, C), and the weights (B, heads, T, T), whose rows
    sum to 1. Equal to PyTorch's `scaled_dot_product_attention` with `is_causal`.
    """
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, heads, T, T)
    future = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1)
    return weights @ v, weights


def next_token_loss(logits, labels):
    """Mean cross-entropy of position t against the label at t + 1; logits (B, T, V), labels (B, T).

    Labels of IGNORE_INDEX are left out. Equal to the loss of transformers' `LlamaForCausalLM` when it is given labels.
    """
    guesses, asked = logits[:, :-1], labels[:, 1:]  # (B, T - 1, V), (B, T - 1)
    learned = asked != IGNORE_INDEX
    return F.cross_entropy(guesses[learned], asked[learned])  # (K, V), (K,)


def write_conversation(system, turns):
    """The conversation template without an image: (text, spans).

    system: a line, may be empty. turns: (question, answer) pairs. spans: (start, end) in letters of each answer with
    its "</s>". Equal to `glamm_mini.processing.prompts.render` without an image.
    """
    text, spans = f"{system} " if system else "", []
    for question, answer in turns:
        text += f"USER: {question} ASSISTANT: "
        start = len(text)
        text += f"{answer}</s>"
        spans.append((start, len(text)))
    return text, spans


def answer_labels(ids, offsets, spans):
    """Labels of one row: a token's own id where it lies inside one of the spans, IGNORE_INDEX elsewhere.

    ids: T numbers. offsets: (start, end) of each token in letters; an empty one belongs to no letter. Equal to the
    labels of `GlammProcessor.encode`.
    """
    labels = []
    for token, (start, end) in zip(ids, offsets, strict=True):
        inside = any(first <= start < end <= last for first, last in spans)
        labels.append(token if inside else IGNORE_INDEX)
    return labels


@torch.no_grad()
def split_loss(model, batch):
    """(answers, questions): `next_token_loss` of the tokens with labels, and of all others but padding.

    model: a transformers language model. batch: input_ids, attention_mask and labels, each (B, T), padded on the right.
    """
    ids, seen, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    logits = model(ids, attention_mask=seen).logits  # (B, T, V)
    others = torch.where((labels == IGNORE_INDEX) & seen, ids, IGNORE_INDEX)
    return next_token_loss(logits, labels).item(), next_token_loss(logits, others).item()
