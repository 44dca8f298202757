"""Generation: greedy or sampled words with a key-value cache, and the right hidden state for every mask.

The official code generates without a cache and computes every image, region and token again at each step, because
its masks need the hidden states of the whole sequence. With a cache each step returns only the states of the new
position; they are collected here, which gives the same numbers.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from glamm_mini.model.pixel_decoder import upscale_logits
from glamm_mini.model.precision import across_types


@dataclass
class GlammGenerated:
    """sequences: (R, new) ids of the answers, without the prompt. last_hidden: (R, T, D) of prompt and all new tokens
    but the last. seg_steps: per row, the indices of [SEG] in its sequence that have a state. states: per row (M, D).
    prompts: per row (M, C). low_res: per row (M, m, m). mask_logits: per row (M, H, W); the last three are None
    where no grounding image was given."""

    sequences: torch.Tensor
    last_hidden: torch.Tensor
    seg_steps: list
    states: list
    prompts: list | None = None
    low_res: list | None = None
    mask_logits: list | None = None


class GlammGeneration:
    """`generate` of GlammForConditionalGeneration."""

    @torch.no_grad()
    def generate(
        self,
        input_ids,
        attention_mask=None,
        global_images=None,
        grounding_images=None,
        image_index=None,
        boxes=None,
        resized=None,
        original=None,
        image_features=None,
        **kwargs,
    ) -> GlammGenerated:
        """Answers for prompts (R, L), padded on the LEFT when their lengths differ.

        kwargs go to transformers' generate (max_new_tokens, do_sample, temperature, logits_processor ...).
        Pass `image_features` of an earlier `encode_images` to answer again about the same images; several rows may
        ask about one image, by `image_index`. Raises ValueError for beams, whose rows change places at every step,
        and for generation without a cache.
        """
        for name, only in (("num_beams", 1), ("num_return_sequences", 1), ("use_cache", True)):
            if kwargs.get(name, only) != only:
                raise ValueError(f"{name} is {kwargs[name]!r}; generation with masks takes {only!r} only: leave it out")
        features = image_features
        if features is None and global_images is not None:
            features = self.encode_images(global_images, grounding_images)
        if image_index is None:
            rows = input_ids.shape[0]
            image_index = torch.arange(rows) if features is not None else torch.full((rows,), -1)
        spliced = self.splice(input_ids, attention_mask, None, features, image_index, boxes)
        spliced = _pad_left(spliced)
        kwargs.setdefault("do_sample", False)
        kwargs.setdefault("pad_token_id", self.config.text.pad_token_id)
        kwargs.setdefault("eos_token_id", self.config.text.eos_token_id)
        with last_states(self.language_model.model) as states, across_types(self.language_model):
            sequences = self.language_model.generate(
                inputs_embeds=spliced.embeds, attention_mask=spliced.attention.long(), **kwargs
            )
        result = self._collect(sequences, torch.cat(states, dim=1), spliced.embeds.shape[1])
        if features is not None and features.grounding is not None:
            self._decode(result, features.grounding, image_index, resized, original)
        return result

    def _collect(self, sequences, hidden, prompt_length) -> GlammGenerated:
        """States of [SEG] by step: the state that predicted new token s stands at position prompt_length + s - 1."""
        offset = prompt_length - (1 if self.config.seg_state == "before" else 0)
        steps, states = [], []
        for row, ids in enumerate(sequences):
            found = (ids == self.config.tokens.seg).nonzero().flatten()
            # The last new token was never fed, so that with seg_state "at" it has no state of its own.
            found = found[found + offset < hidden.shape[1]]
            steps.append(found)
            states.append(hidden[row, found + offset])
        return GlammGenerated(sequences, hidden, steps, states)

    def _decode(self, result, grounding, image_index, resized, original):
        counts = [len(s) for s in result.states]
        images = torch.as_tensor(image_index, device=grounding.device).clamp(min=0)
        which = torch.repeat_interleave(images, torch.tensor(counts, device=grounding.device))
        prompts, low_res = self.decode_masks(torch.cat(result.states), grounding, which)
        result.prompts, result.low_res = list(prompts.split(counts)), list(low_res.split(counts))
        if resized is None:
            return
        size = self.config.grounding.image_size
        result.mask_logits = [
            upscale_logits(masks, size, tuple(resized[int(i)]), tuple(original[int(i)]))
            for masks, i in zip(result.low_res, images, strict=True)
        ]


@contextmanager
def last_states(model):
    """A list that every call of a transformers model adds its last hidden states (R, T, D) to, while the block runs.

    `output_hidden_states` would keep those of all layers: 160 MB for each image at the 7B size in bfloat16.
    """
    states = []
    hook = model.register_forward_hook(lambda module, given, out: states.append(out.last_hidden_state))
    try:
        yield states
    finally:
        hook.remove()


def _pad_left(spliced):
    """Move the padding of rows without image, which the splice leaves on the right, to the left."""
    length = spliced.attention.shape[1]
    order = torch.argsort(spliced.attention.long(), dim=1, stable=True)  # padding first, the rest in order
    if torch.equal(order, torch.arange(length, device=order.device).expand_as(order)):
        return spliced
    spliced.attention = spliced.attention.gather(1, order)
    spliced.embeds = spliced.embeds.gather(1, order[..., None].expand_as(spliced.embeds))
    spliced.ids = spliced.ids.gather(1, order)
    return spliced
