"""The model, in the order in which data flows: config and tokens, vision, region_encoder, splice, language, sam, glamm.

The whole pass, for one row of ids (1, L) with one `<image>` in it; `GlammForConditionalGeneration` does the same for
any batch, with boxes, padding, packing and losses:

    features = glamm.encode_images(images["global_images"], images["grounding_images"])  # CLIP, projector, SAM
    words = glamm.get_input_embeddings()(ids.clamp(min=0))  # (1, L, D)
    k = ids[0].tolist().index(IMAGE)
    # One <image> becomes P positions; a <bbox> would become one vector of glamm.region_encoder.
    fed = torch.cat([words[:, :k], features.tokens, words[:, k + 1 :]], dim=1)  # (1, L - 1 + P, D)
    hidden = glamm.language_model.model(inputs_embeds=fed).last_hidden_state  # (1, L - 1 + P, D)
    logits = glamm.language_model.lm_head(hidden)  # (1, L - 1 + P, V), the words
    at = (ids[0] == SEG).nonzero()[:, 0] + features.tokens.shape[1] - 1  # (M,), where each [SEG] stands now
    prompts = glamm.lp_projector(hidden[0, at - 1])  # (M, C), from the state that predicts [SEG]
    low_res, _ = glamm.pixel_decoder(features.grounding, prompts[:, None], torch.zeros_like(at))  # (M, m, m), masks

B batch, R rows, I images, N boxes, M masks, T positions, C and D channels, H W pixels, h w grid, P patches, V words.
"""

from transformers.utils.versions import require_version

# Up to 5.12 transformers drew SAM's own parameters anew after loading them: answers would be wrong without a word.
require_version("transformers>=5.17.0", 'Older ones load wrong weights silently: pip install -U "transformers>=5.17"')
