"""The language model, and answers with the state behind every token.

transformers' generate returns ids; a mask needs the state of its [SEG] as well. `output_hidden_states` would keep the
states of all layers (160 MB for each image at the 7B size in bfloat16), and a hook on the module, which all threads
share, would mix up their calls. So each call brings a `States` of its own, which travels among its arguments.
"""

import copy
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from glamm_mini.model.splice import Spliced, language_states

MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
"""Ways to generate that need nothing but the prompt's embeddings."""

REFUSED = {
    "inputs": "give input_ids",
    "inputs_embeds": "give input_ids and images; they become embeddings here",
    "cache": "the prompt is always read anew",
    "past_key_values": "the prompt is always read anew",
    "position_ids": "they follow from the attention mask",
    "custom_generate": "its steps are not known here",
    "negative_prompt_ids": "the prompt has embeddings, not ids alone",
    "token_healing": "the prompt has embeddings, not ids alone",
}
"""Arguments of transformers' generate that GLaMM cannot take, and why."""

KEPT = ("scores", "logits", "sequences_scores", "beam_indices", "attentions", "hidden_states")


class States:
    """The last hidden states of every forward pass of one call, in order: (R, T, D) of the prompt, then (R, 1, D)s."""

    def __init__(self) -> None:
        self.pieces: list[torch.Tensor] = []

    def joined(self, rows: int, length: int) -> torch.Tensor | None:
        """(rows, length, D), one state a position, or None where the passes were of other rows or fewer positions."""
        fed = sum(piece.shape[1] for piece in self.pieces)
        if fed < length or any(piece.shape[0] != rows for piece in self.pieces):
            return None
        return torch.cat(self.pieces, dim=1)[:, :length]


class LanguageModel(LlamaForCausalLM):
    """transformers' Llama, parameters and all, whose forward pass adds its last states to a `States` it is given."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        states: States | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As LlamaForCausalLM's. The cache is among kwargs: releases of transformers differ in its name."""
        given = dict(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)
        given |= {"inputs_embeds": inputs_embeds, **kwargs}
        if states is None:
            return super().forward(**given, labels=labels, logits_to_keep=logits_to_keep)
        out = self.model(**given)
        hidden = out.last_hidden_state
        states.pieces.append(hidden)
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        more = {name: value for name, value in out.items() if name != "last_hidden_state"}
        return CausalLMOutputWithPast(logits=self.lm_head(hidden[:, last]), **more)


def answer(
    language_model: LanguageModel, prompt: Spliced, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, Any]]:
    """Ids (R, new) that follow the prompt (R, T, D), padded on the left, and the states they came from.

    options: those of transformers' generate. R grows by `num_return_sequences`.

    Returns:
        ids; states (R, T + new - 1, D) of the prompt and all new tokens but the last, or None where the passes of
        this way to generate do not have them in order (beams change places); and what else was asked for (`KEPT`).

    Raises:
        ValueError: an option that reads the prompt's ids, or takes steps of its own.
    """
    config = copy.deepcopy(options.pop("generation_config", None) or language_model.generation_config)
    more = config.update(**{name: value for name, value in options.items() if value is not None})
    for name, why in REFUSED.items():
        if more.get(name) is not None or getattr(config, name, None):
            raise ValueError(f"generate was given {name}; GLaMM does not take it: {why}")
    mode = config.get_generation_mode(more.get("assistant_model"))
    if mode not in MODES or config.cache_implementation == "paged":
        known = ", ".join(mode.value for mode in MODES)
        raise ValueError(
            f"these options of generate mean {mode.value} with cache_implementation={config.cache_implementation!r}; "
            f"GLaMM's masks need one of {known}, with a cache that is not paged"
        )
    config.disable_compile = True  # a compiled step reuses the memory of its outputs, and so of states that are kept
    states = States()
    out = language_model.generate(
        inputs_embeds=prompt.embeds,
        attention_mask=prompt.attention.long(),
        generation_config=config,
        states=states,
        **more,
    )
    ids, extra = (out, {}) if torch.is_tensor(out) else (out.sequences, {k: out.get(k) for k in KEPT})
    beams = (config.num_beams or 1) > 1
    hidden = None if beams else states.joined(len(ids), prompt.embeds.shape[1] + ids.shape[1] - 1)
    return ids, hidden, extra


def states_anew(language_model: LanguageModel, prompt: Spliced, ids: torch.Tensor) -> torch.Tensor:
    """Last states (R, T + new, D) of prompts and the answers (R, new) to them, by one pass over whole rows."""
    each = len(ids) // len(prompt.embeds)
    embeds = prompt.embeds.repeat_interleave(each, 0)
    words = language_model.get_input_embeddings()(ids)
    attention = prompt.attention.repeat_interleave(each, 0)
    whole = Spliced(
        torch.cat([embeds, words.to(embeds.dtype)], dim=1),
        torch.cat([attention, torch.ones_like(ids, dtype=torch.bool)], dim=1),
    )
    return language_states(language_model, whole)
