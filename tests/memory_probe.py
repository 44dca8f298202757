"""What a pass really holds in memory on a CPU: storages counted as they come and go, and what autograd keeps."""

import os
import weakref
from contextlib import contextmanager, nullcontext

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from glamm_mini.model.sam import FusedAttention


def giving_back() -> dict[str, str]:
    """The environment of a process that gives freed memory back at once, whatever the tests themselves run with: a
    model as small as a test's would stay with malloc, the tensors of a 7B model, 32 MB and more, do not."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    return kept | {"MALLOC_MMAP_THRESHOLD_": "65536"}


class Live(TorchDispatchMode):
    """Bytes of all tensors made inside and still alive: `now`, and `peak`, their highest sum."""

    def __init__(self, *known):
        super().__init__()
        self.now = self.peak = 0
        self.seen = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key, size):
        self.seen.discard(key)
        self.now -= size


def kept_by_part(model, batch: dict, autocast: bool = False) -> dict[str, int]:
    """Bytes of different storages that autograd keeps of one forward pass, by the part that was running; "losses" are
    kept outside of any part. Parameters and buffers do not count."""
    seen = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    inside, alive, kept = ["losses"], [], {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            alive.append(storage)
            kept[inside[-1]] = kept.get(inside[-1], 0) + storage.nbytes()
        return tensor

    def enter(name):
        return lambda *_: inside.append(name)

    def leave(*_):
        inside.pop()

    modules = [*model.named_children(), ("language_model", model.language_model.model)]
    modules.append(("language_model", model.language_model.lm_head))
    handles = [m.register_forward_pre_hook(enter(name)) for name, m in modules]
    handles += [m.register_forward_hook(leave) for _, m in modules]
    half = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), half:
        model(**batch)
    for handle in handles:
        handle.remove()
    return kept


@contextmanager
def as_on_a_gpu():
    """SAM's attention takes the kernel for GPUs, and norms run in float32 under autocast, as CUDA's autocast does."""
    before = FusedAttention.in_blocks, F.layer_norm, F.group_norm

    def full(norm):
        def run(x, shape, weight=None, bias=None, eps=1e-5):
            with torch.autocast("cpu", enabled=False):
                return norm(x.float(), shape, weight.float(), bias.float(), eps)

        return run

    FusedAttention.in_blocks = FusedAttention.in_one_kernel
    F.layer_norm, F.group_norm = full(before[1]), full(before[2])
    try:
        yield
    finally:
        FusedAttention.in_blocks, F.layer_norm, F.group_norm = before
