"""Greedy decoding twice: everything anew for each word, as the official code does, and with a key-value cache."""

import time

import torch
from transformers import DynamicCache


@torch.no_grad()
def decode_anew(model, embeds, most, end):
    """Greedy answer to `embeds` (1, T, D), feeding the whole row for every token; at most `most` tokens, or to `end`.

    Args:
        model: a transformers causal language model, such as LlamaForCausalLM.

    Returns:
        (ids, states, seconds): the new ids, n of them; the last hidden states (1, T + n - 1, D) of the last step;
        processor seconds of each step.
    """
    ids, seconds = [], []
    while len(ids) < most and end not in ids:
        start = time.process_time()
        states = model.model(inputs_embeds=embeds, use_cache=False).last_hidden_state  # (1, T + step, D)
        token = model.lm_head(states[:, -1]).argmax(-1)  # (1,)
        embeds = torch.cat([embeds, model.get_input_embeddings()(token)[:, None]], dim=1)
        ids.append(int(token))
        seconds.append(time.process_time() - start)
    return ids, states, seconds


@torch.no_grad()
def decode_cached(model, embeds, most, end):
    """As `decode_anew`, with keys and values kept: the prompt is fed once, then one token a step.

    Each step gives only the states of the positions that it was fed; put one behind the other they are the same.
    """
    ids, states, seconds, cache = [], [], [], DynamicCache(config=model.config)
    while len(ids) < most and end not in ids:
        start = time.process_time()
        # Ids, attention mask and positions are left to the model, which adds to the cache in place.
        out = model.model(None, None, None, cache, embeds, use_cache=True)
        states.append(out.last_hidden_state)  # (1, T, D) at first, (1, 1, D) from then on
        token = model.lm_head(states[-1][:, -1]).argmax(-1)  # (1,)
        embeds = model.get_input_embeddings()(token)[:, None]  # (1, 1, D)
        ids.append(int(token))
        seconds.append(time.process_time() - start)
    return ids, torch.cat(states, dim=1), seconds
