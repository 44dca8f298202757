"""What calls share: features of pictures seen before, and the model's mode. Both are safe in threads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from glamm_mini.model.glamm import ImageFeatures

REMEMBERED = 8
"""Pictures whose features are kept: at the 7B size 12 MB each, in half precision."""


class Lock(threading.Semaphore):
    """A lock that what holds it can be copied and pickled with: the copy has one of its own."""

    def __reduce__(self):
        return Lock, ()


class FeatureMemory:
    """The features of the pictures that were asked about last. A copy of it, and a pickled one, is empty."""

    def __init__(self):
        self._lock = Lock()
        self._kept: dict[tuple, ImageFeatures] = {}  # the last one that was asked about stands last

    def __reduce__(self):
        return FeatureMemory, ()

    def features(self, pictures: list[np.ndarray], state: tuple, encode) -> ImageFeatures:
        """Features of pictures (H, W, 3); `encode(pictures)` is called for those that are not known.

        state: all that features depend on beside the pixels; see `weights_state`.
        """
        keys = [(sha256(str(p.shape).encode() + p.tobytes()).digest(), state) for p in pictures]
        kept = self._kept  # never changed, but replaced
        found = {key: kept[key] for key in keys if key in kept}
        missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in found}
        if missing:
            encoded = encode(list(missing.values()))
            # Copies: a part of a batch would keep all of it.
            found |= {key: _each(lambda own, k=k: own[0][k : k + 1].clone(), encoded) for k, key in enumerate(missing)}
        with self._lock:
            others = {key: value for key, value in self._kept.items() if key not in found}
            self._kept = dict([*others.items(), *found.items()][-REMEMBERED:])
        return _each(torch.cat, *(found[key] for key in keys))  # the caller's own, also for one picture


def _each(do: Callable, *parts: ImageFeatures) -> ImageFeatures:
    """`do` of the tensors that have the same place in all parts, for every place."""
    levels = [do(own) for own in zip(*(part.levels for part in parts), strict=True)]
    return ImageFeatures(do([part.tokens for part in parts]), levels, do([part.grounding for part in parts]))


def weights_state(model) -> tuple:
    """What the features of a picture depend on beside its pixels; another training step, another state.

    Where each weight lies, how often torch has changed it, and a sum over its bits, for changes that torch does not
    count, such as those through `.data`. Weights that accelerate keeps elsewhere lie on no device and are passed over.
    """
    config, device = model.config, torch.device(model.device).type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    parts = (model.global_encoder, model.vl_projector, model.grounding_encoder)
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers()) if not t.is_meta]
    places = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, str(t.device), _sum(t)) for t in tensors]
    return config.mode, config.feature_layer, str(config.region_layers), autocast, *places


def _sum(t: torch.Tensor) -> int:
    """Of a tensor's memory as whole numbers, eight bytes each where that divides it: those are summed fastest."""
    # Of a weight that several processes share (fully_shard), this one's part: whole models come and go around it.
    with torch.inference_mode(False), torch.no_grad():
        t = t.to_local() if isinstance(t, DTensor) else t.detach()
    by_eight = t.is_contiguous() and t.nbytes % 8 == 0 and t.data_ptr() % 8 == 0
    own = getattr(torch, f"int{8 * t.element_size()}")
    bits = t.flatten().view(torch.uint8).view(torch.int64) if by_eight else t.view(own)
    return int(bits.sum(dtype=torch.int64))


_IN_USE: WeakKeyDictionary = WeakKeyDictionary()
"""By model, how many answers are under way, and which of its modules were in training mode before."""
_IN_USE_LOCK = threading.Lock()
_TURNS: WeakKeyDictionary = WeakKeyDictionary()


def turn_of(model: torch.nn.Module) -> threading.RLock:
    """What an answer holds while it computes. A small model's steps are shorter than what Python takes to change
    threads: eight answers side by side took twice as long as one after the other."""
    with _IN_USE_LOCK:
        return _TURNS.setdefault(model, threading.RLock())


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode; what was in training mode is so again when the last answer of all threads ends."""
    with _IN_USE_LOCK:
        count, modules = _IN_USE.get(model) or (0, [module for module in model.modules() if module.training])
        _IN_USE[model] = count + 1, modules
        for module in modules:
            module.training = False
    try:
        yield
    finally:
        with _IN_USE_LOCK:
            count, modules = _IN_USE.pop(model)
            if count > 1:
                _IN_USE[model] = count - 1, modules
            for module in modules if count == 1 else ():
                module.training = True
