"""The whole model: GLaMM's forward pass in ten lines, and greedy decoding without and with a cache."""

import time

import torch
from transformers import DynamicCache

from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX

# ---- the whole pass ----
# One row with one picture; `model/glamm.py` does the same for any batch.


def whole_pass(glamm, ids, features):
    """Ids (1, L) with one `<image>`, and the features of one picture, to words and masks.

    Returns:
        hidden (1, L - 1 + P, D): last states of the language model; prompts (M, C) and low_res (M, m, m): one of
        each for every [SEG] of the row, taken from the state before it.
    """
    words = glamm.get_input_embeddings()(ids.clamp(min=0))  # (1, L, D)
    k = ids[0].tolist().index(IMAGE_TOKEN_INDEX)
    fed = torch.cat([words[:, :k], features.tokens, words[:, k + 1 :]], dim=1)  # (1, L - 1 + P, D)
    hidden = glamm.language_model.model(inputs_embeds=fed).last_hidden_state
    seg = (ids[0] == glamm.config.tokens.seg).nonzero()[:, 0]  # (M,)
    seg = seg + features.tokens.shape[1] - 1  # one <image> has become P positions
    prompts = glamm.lp_projector(hidden[0, seg - 1])  # (M, C)
    low_res, _ = glamm.pixel_decoder(features.grounding, prompts[:, None], torch.zeros_like(seg))
    return hidden, prompts, low_res


# ---- decoding ----
# Greedy decoding twice: everything anew for each word, as the official code does, and with a key-value cache.


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
