"""What transformers' users expect of a model around its passes: starting values, loading, saving, embeddings."""

import math
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from glamm_mini import paths, registry
from glamm_mini.model.config import GlammConfig

POSITION_SCALE = 0.2  # of the sines in position tables: started so, small encoders learn far faster than from noise


class GlammPreTrained(PreTrainedModel, GenerationMixin):
    """The base of `GlammForConditionalGeneration`."""

    config_class = GlammConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True  # CLIP and the language model; SAM's attention is its own
    main_device: torch.device | str | int | None = None  # that computes, of several that hold parts (`placement`)
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer", "Block"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Self:
        """As `glamm_mini.load`: a bundled name, a folder or a hub id, official or ours, where no tokenizer is needed.

        Takes transformers' `dtype` (default float32; "auto" keeps what is stored), `device_map` (with `max_memory` and
        `offload_folder`), `attn_implementation`, `quantization_config` (BitsAndBytesConfig; of the language model),
        `config`, `output_loading_info` and what finds files (`subfolder`, `revision`, `token`, `cache_dir` ...), and
        `load`'s `vision_tower` and `drop`. Raises FileNotFoundError for what is missing, and ValueError for what is
        damaged, of another kind, or has a weight too few or too many: nothing is filled up with random values.
        """
        if not isinstance(kind := kwargs.get("attn_implementation"), str | dict | None):
            raise ValueError(f"attn_implementation is {kind!r}; expected a name, such as 'sdpa' or 'eager'")
        if pretrained_model_name_or_path is None and kwargs.get("state_dict") is not None:  # the weights themselves
            return super().from_pretrained(None, *args, **kwargs)
        return registry.find("checkpoint", "model")(cls, pretrained_model_name_or_path, *args, **kwargs)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As transformers', with weights that others than their owner may read as well. ValueError for LoRA in it."""
        if any(".lora_" in name for name, _ in self.named_parameters()):
            raise ValueError("the model has LoRA beside its weights: merge it (merge_lora), or save that (save_lora)")
        folder = paths.place_to_save(save_directory, "a model")
        super().save_pretrained(folder, *args, **kwargs)
        if folder.is_dir():
            registry.find("checkpoint", "rights")(folder)

    def _init_weights(self, module: nn.Module) -> None:
        """One module's starting values; transformers calls this for every module it finds without weights."""
        std = self.config.text.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=min(1 / math.sqrt(module.weight[0].numel()), 5 * std))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, CLIPVisionEmbeddings):
            nn.init.normal_(module.class_embedding, std=std)
            table = sine_table(module.image_size // module.patch_size, module.embed_dim).flatten(0, 1)
            module.position_embedding.weight.data[1:] = table.to(module.position_embedding.weight)  # (P, C)
        elif isinstance(module, ImageEncoderViT) and module.pos_embed is not None:
            module.pos_embed.data.copy_(sine_table(*module.pos_embed.shape[2:]))  # (h, w, C)

    @property
    def device(self) -> torch.device:
        """Where inputs go. Weights that accelerate keeps elsewhere are fetched from there when they are needed."""
        weights = (p.device for p in self.parameters() if not p.is_meta)
        return torch.device(self.main_device if self.main_device is not None else next(weights, "meta"))

    @property
    def generation_config(self) -> GenerationConfig:
        """How answers are generated where a call says nothing else; the language model's own, so that there is one."""
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        if "language_model" in self._modules:  # transformers sets one before any part is there
            self.language_model.generation_config = config

    def get_output_embeddings(self) -> nn.Linear:
        """The language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Linear) -> None:
        """Another head. transformers finds the embedding of tokens by itself, the head it does not."""
        self.language_model.set_output_embeddings(value)

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As transformers': embedding, head and `config.text.vocab_size` follow the tokenizer's new length; ValueError
        for one that leaves out one of GLaMM's added tokens."""
        least = 1 + max(vars(self.config.tokens).values())
        if not (new_num_tokens is None or (isinstance(new_num_tokens, Integral) and least <= new_num_tokens <= 2**24)):
            raise ValueError(f"new_num_tokens is {new_num_tokens!r}; expected {least} (the added tokens) to {2**24}")
        return self.language_model.resize_token_embeddings(new_num_tokens, *args, **kwargs)


def sine_table(side: int, width: int) -> torch.Tensor:
    """(side, side, width): sines and cosines of rows in the first half of the channels, of columns in the second."""
    quarter = max(width // 4, 1)
    frequency = math.pi * 2.0 ** torch.linspace(0, math.log2(max(side, 2)), quarter)
    angle = torch.linspace(0, 1, side)[:, None] * frequency  # (side, quarter)
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, 2 * quarter)
    both = torch.cat([x.expand(side, side, -1) for x in (waves[:, None], waves[None])], dim=-1)[..., :width]
    return POSITION_SCALE * nn.functional.pad(both, (0, width - both.shape[-1]))
