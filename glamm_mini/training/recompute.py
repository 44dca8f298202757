"""Activation checkpointing: a layer keeps only its input and is computed again in the backward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.utils.checkpoint import checkpoint

from glamm_mini.training.sharding import units


@contextmanager
def recomputed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside, the layers that `units` finds forget what they computed, if `wanted`.

    A frozen encoder, through which no gradient flows, keeps nothing anyway and does not run twice.

    Raises:
        ValueError: the model has no units.
    """
    layers = units(model) if wanted else []
    if wanted and not layers:
        raise ValueError("gradient_checkpointing needs a model that names its layers in _no_split_modules")
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
