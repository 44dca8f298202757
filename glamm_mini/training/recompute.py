"""Activation checkpointing: a layer keeps only its input and is computed again in the backward pass.

Layers are the transformer layers, and the region encoder's rounds of mixing: its maps are large (officially 192, 96,
48 and 24 patches to a side), and five rounds of them weigh more than the language model's layers do.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.checkpoint import checkpoint

from glamm_mini.model.region_encoder import LevelMixer
from glamm_mini.training.sharding import units


@contextmanager
def recomputed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, the layers that `units` finds and all rounds of mixing forget what they computed, if `wanted`.

    A frozen encoder, through which no gradient flows, keeps nothing anyway and does not run twice.

    Raises:
        ValueError: the model has no units.
    """
    layers = units(model) if wanted else []
    if wanted and not layers:
        raise ValueError("gradient_checkpointing needs a model that names its layers in _no_split_modules")
    layers += [module for module in model.modules() if isinstance(module, LevelMixer)] if wanted else []
    for layer in layers:
        layer.forward = _recomputing(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _recomputing(forward):
    def run(*args, **kwargs):
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
