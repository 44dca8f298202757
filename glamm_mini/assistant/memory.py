"""What calls share: features of pictures seen before, and the model's mode. Both are safe in threads."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from glamm_mini.model.glamm import ImageFeatures

REMEMBERED = 8
"""Pictures whose features are kept: at the 7B size 12 MB each, in half precision."""


class Lock:
    """A lock that what holds it can be copied and pickled with: the copy has one of its own."""

    def __init__(self):
        self._lock = threading.Lock()

    def __enter__(self):
        return self._lock.__enter__()

    def __exit__(self, *error):
        return self._lock.__exit__(*error)

    def __reduce__(self):
        return Lock, ()


class FeatureMemory:
    """The features of the pictures that were asked about last. A copy of it, and a pickled one, is empty."""

    def __init__(self):
        self._lock = Lock()
        self._kept: OrderedDict[tuple, ImageFeatures] = OrderedDict()

    def __reduce__(self):
        return FeatureMemory, ()

    def features(self, pictures: list[np.ndarray], state: tuple, encode) -> ImageFeatures:
        """Features of pictures (H, W, 3); `encode(pictures)` is called for those that are not known.

        state: all that features depend on beside the pixels; see `weights_state`.
        """
        keys = [(sha256(str(p.shape).encode() + p.tobytes()).digest(), state) for p in pictures]
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
        missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in found}
        if missing:
            encoded = encode(list(missing.values()))
            found |= {key: _one(encoded, k) for k, key in enumerate(missing)}
        with self._lock:
            for key in keys:
                self._kept[key] = found[key]
                self._kept.move_to_end(key)
            while len(self._kept) > REMEMBERED:
                self._kept.popitem(last=False)
        return _joined([found[key] for key in keys])


def _one(features: ImageFeatures, k: int) -> ImageFeatures:
    grounding = None if features.grounding is None else features.grounding[k : k + 1]
    return ImageFeatures(features.tokens[k : k + 1], [level[k : k + 1] for level in features.levels], grounding)


def _joined(parts: list[ImageFeatures]) -> ImageFeatures:
    if len(parts) == 1:
        return parts[0]
    levels = [torch.cat(levels) for levels in zip(*(part.levels for part in parts), strict=True)]
    grounding = None if parts[0].grounding is None else torch.cat([part.grounding for part in parts])
    return ImageFeatures(torch.cat([part.tokens for part in parts]), levels, grounding)


def weights_state(model) -> tuple:
    """What the features of a picture depend on beside its pixels; another training step, another state.

    Where each weight lies, how often torch has changed it, and a sum over its bits, for changes that torch does not
    count, such as those through `.data`. Weights that accelerate keeps elsewhere lie on no device and are passed over.
    """
    config, device = model.config, torch.device(model.device).type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    settings = (config.mode, config.feature_layer, str(config.region_layers), autocast)
    parts = (model.global_encoder, model.vl_projector, model.grounding_encoder)
    tensors = [t for part in parts for t in (*part.parameters(), *part.buffers()) if not t.is_meta]
    sums = [int(_bits(t).sum(dtype=torch.int64)) for t in tensors]
    places = [(t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, str(t.device)) for t in tensors]
    return (*settings, *zip(places, sums, strict=True))


def _bits(t: torch.Tensor) -> torch.Tensor:
    """A tensor's memory as whole numbers, eight bytes each where that divides it: those are summed fastest."""
    # Of a weight that several processes share (fully_shard), this one's part: whole models come and go around it.
    with torch.inference_mode(False), torch.no_grad():
        t = t.to_local() if isinstance(t, DTensor) else t.detach()
    if t.is_contiguous() and t.nbytes % 8 == 0 and t.data_ptr() % 8 == 0:
        return t.flatten().view(torch.uint8).view(torch.int64)
    return t.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()])


_IN_USE: WeakKeyDictionary = WeakKeyDictionary()
_IN_USE_LOCK = threading.Lock()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode; what was in training mode is so again when the last answer of all threads ends."""
    with _IN_USE_LOCK:
        count, modules = _IN_USE.get(model, (0, []))
        if count == 0:
            modules = [module for module in model.modules() if module.training]
            for module in modules:
                module.training = False
        _IN_USE[model] = count + 1, modules
    try:
        yield
    finally:
        with _IN_USE_LOCK:
            count, modules = _IN_USE.pop(model)
            if count > 1:
                _IN_USE[model] = count - 1, modules
            else:
                for module in modules:
                    module.training = True
