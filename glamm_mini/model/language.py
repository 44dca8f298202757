"""The language model, and answers with the state behind every token.

transformers' generate returns ids; a mask needs the state of its [SEG] as well. `output_hidden_states` keeps those of
all layers (160 MB for each image at the 7B size in bfloat16), and a hook on the module, which all threads share, mixes
up their calls. So each call brings a list of its own, which travels among its arguments.
"""

import copy
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.generation import GenerationMode
from transformers.modeling_outputs import CausalLMOutputWithPast

from glamm_mini.model.splice import Spliced, language_states

MODES = tuple(GenerationMode(name) for name in ("greedy_search", "sample", "beam_search", "beam_sample"))
"""Ways to generate that need nothing but the prompt's embeddings."""
REFUSED = {
    "it reads the prompt's ids, and an image has none": (
        *("inputs", "inputs_embeds", "negative_prompt_ids", "guidance_scale", "token_healing", "prefill_chunk_size"),
        *("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"),
    ),
    "the prompt is read anew for every answer": ("cache", "past_key_values", "position_ids", "logits_to_keep"),
    "it takes steps of its own, whose states are not known here": ("custom_generate", "states"),
}
"""Options of transformers' generate that GLaMM cannot take, by the reason."""
WHOLE = "max_new_tokens min_new_tokens num_beams num_return_sequences bos_token_id eos_token_id pad_token_id".split()
"""Options that are whole numbers; several tokens may end an answer."""
KEPT = ("scores", "logits", "sequences_scores", "beam_indices", "attentions", "hidden_states")


class LanguageModel(LlamaForCausalLM):
    """transformers' Llama, parameters and all, whose forward pass adds its last states to a list it is given."""

    # transformers derives it from the name of the class, and warns at each loss where it finds none.
    loss_type = property(lambda self: "ForCausalLM", lambda self, found: None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        states: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As LlamaForCausalLM's. The cache is among kwargs: releases of transformers differ in its name."""
        given = dict(attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds) | kwargs
        if states is None:
            return super().forward(input_ids=input_ids, **given, labels=labels, logits_to_keep=logits_to_keep)
        out = dict(self.model(input_ids=input_ids, **given))
        states.append(out.pop("last_hidden_state"))
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=self.lm_head(states[-1][:, last]), **out)


def answer(model: LanguageModel, prompt: Spliced, **options: Any) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Ids (R, new) that follow the prompt (R, T, D), padded on the left, and the states they came from.

    options: those of transformers' generate; ValueError for one that reads the prompt's ids, or takes steps of its own.
    Returns ids; states (R, T + new - 1, D) of the prompt and all new tokens but the last, or None where the passes of
    this way to generate do not have them in order (beams change places); and what else was asked for (`KEPT`).
    """
    given = copy.deepcopy(options.pop("generation_config", None))
    beams = _checked(given or model.generation_config, options, prompt.embeds.device.type, model.config.vocab_size)
    # A compiled step reuses the memory of its outputs, and so of states that are kept.
    (options if given is None else vars(given))["disable_compile"] = True
    states: list[Tensor] = []  # of every forward pass, in order: (R, T, D) of the prompt, then (R, 1, D) each
    fed = dict(inputs_embeds=prompt.embeds, attention_mask=prompt.attention.long())
    try:
        out = model.generate(**fed, generation_config=given, states=states, **options)
    except ImportError as error:
        raise ValueError(f"an option of generate needs a package that is not there: {error}") from error
    ids, extra = (out, {}) if torch.is_tensor(out) else (out.sequences, {k: out.get(k) for k in KEPT})
    length = prompt.embeds.shape[1] + ids.shape[1] - 1
    whole = beams == 1 and all(len(piece) == len(ids) for piece in states)
    in_order = whole and sum(piece.shape[1] for piece in states) >= length
    return ids, torch.cat(states, dim=1)[:, :length] if in_order else None, extra


def _checked(config: GenerationConfig, options: Mapping[str, Any], device: str, words: int) -> int:
    """The number of beams that the options mean; a ValueError for what cannot be done."""
    if not isinstance(config, GenerationConfig):
        raise ValueError(f"generation_config is a {type(config).__name__}; expected a GenerationConfig")
    for name in WHOLE:
        value = options.get(name, getattr(config, name))
        several = value if name == "eos_token_id" and isinstance(value, list | tuple) else [value]
        if not all(isinstance(one, Integral | Tensor | None) for one in several):
            raise ValueError(f"{name} is {value!r}; expected a whole number")
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        value = options.get(name, getattr(config, name))
        if not all(isinstance(i, Integral) and 0 <= i < words for i in np.ravel([] if value is None else value)):
            raise ValueError(f"{name} is {value!r}; expected ids of {words} words")
    for name in ("streamer", "logits_processor", "stopping_criteria"):
        value = options.get(name)
        called = [value.put, value.end] if hasattr(value, "put") and hasattr(value, "end") else value
        if value is not None and not (isinstance(called, Sequence) and all(map(callable, called))):
            raise ValueError(f"{name} is {repr(value)[:60]}; expected transformers' kind of it")
    config = copy.deepcopy(config)
    given = config.update(**options) | vars(config)
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    for why, names in REFUSED.items():
        for name in given.keys() & names:
            raise ValueError(f"generate was given {name}, which GLaMM does not take: {why}")
    for name in ("num_beams", "num_return_sequences"):
        if (count := getattr(config, name)) is not None and count < 1:
            raise ValueError(f"{name} is {count}; expected 1 or more")
    mode, cache = config.get_generation_mode(options.get("assistant_model")), config.cache_implementation or ""
    if mode not in MODES:
        known, named = ", ".join(mode.value for mode in MODES), ", ".join(sorted(given.keys() - set(WHOLE)))
        raise ValueError(f"generate was given {named}, which means {mode.value}; GLaMM's masks need one of {known}")
    if cache == "paged" or (cache.startswith("offloaded") and device != "cuda"):
        raise ValueError(f"cache_implementation is {cache!r}, which does not work with embeddings on {device}")
    return config.num_beams or 1


def states_anew(language_model: LanguageModel, prompt: Spliced, ids: Tensor) -> Tensor:
    """Last states (R, T + new, D) of prompts and the answers (R, new) to them, by one pass over whole rows."""
    each = len(ids) // len(prompt.embeds)
    words = language_model.get_input_embeddings()(ids).to(prompt.embeds.dtype)
    pairs = (prompt.embeds, words), (prompt.attention, torch.ones_like(ids, dtype=torch.bool))
    whole = (torch.cat([begin.repeat_interleave(each, 0), end], dim=1) for begin, end in pairs)
    return language_states(language_model, Spliced(*whole))
