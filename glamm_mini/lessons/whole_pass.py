"""GLaMM's forward pass in ten lines, for one row with one picture; `model/glamm.py` does the same for any batch."""

import torch

from glamm_mini.text.tokens import IMAGE_TOKEN_INDEX


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
