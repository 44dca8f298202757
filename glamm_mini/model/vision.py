"""What the language model sees: the global image encoder (CLIP) with its feature levels, and the V-L projector."""

from typing import NamedTuple

from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutput

from glamm_mini.model.config import GlammConfig


class GlobalFeatures(NamedTuple):
    """What CLIP makes of images: for the language model (B, P, C); for regions four (B, C, h, w), shallowest first."""

    tokens: Tensor
    levels: list[Tensor]


class VisionTower(CLIPVisionModel):
    """transformers' CLIP, parameters and all, that always returns the states of all layers; not by transformers' hooks,
    which stay on the layers, and which a model cannot be pickled with."""

    def forward(self, pixel_values: Tensor, output_hidden_states: bool = True) -> BaseModelOutput:
        """pixel_values: (B, 3, S, S). States (B, 1 + P, C): of the embeddings, then of every layer."""
        states = [self.pre_layrnorm(self.embeddings(pixel_values))]
        for layer in self.encoder.layers:
            states.append(layer(states[-1], attention_mask=None))
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states))


class GlobalImageEncoder(nn.Module):
    """Encodes the whole image (paper section 3.1); the class token is dropped, as in the official code."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        self.grid = config.image_grid
        self.feature_layer = config.feature_layer
        self.region_layers = config.region_layers
        self.clip = VisionTower(config.vision)

    def forward(self, images: Tensor) -> GlobalFeatures:
        """images: (B, 3, S, S) normalized as CLIP wants, S the config's image size."""
        states = self.clip(images).hidden_states
        columns = (states[layer][:, 1:].transpose(1, 2) for layer in self.region_layers)  # (B, P, C) -> (B, C, P)
        levels = [level.unflatten(2, (self.grid, self.grid)) for level in columns]  # (B, C, P) -> (B, C, h, w)
        return GlobalFeatures(states[self.feature_layer][:, 1:], levels)


class VLProjector(nn.Sequential):
    """Vision to language: Linear, GELU, Linear, from the global encoder's width to the language model's."""

    def __init__(self, vision_width: int, language_width: int):
        super().__init__(nn.Linear(vision_width, language_width), nn.GELU(), nn.Linear(language_width, language_width))
