"""Which number type a device computes fast and well, and how parts of different types work together."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Number types by the names that commands and `load` take."""

AUTOCAST = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a training of each precision computes in."""


def half_type(device: torch.device) -> torch.dtype:
    """bfloat16 where a GPU computes it itself, float16 on older ones (a T4), float32 everywhere else.

    bfloat16 has float32's range; float16 ends at 65504, so that training in it scales the loss.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def in_type_of(part: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x in the type of the part's weights; as it is under autocast, which casts by itself, and for quantized weights.

    Official checkpoints hold SAM and the L-P projector in float32, the rest in bfloat16, and CLIP comes from its own
    file, in float32.
    """
    dtype = next(part.parameters(), x).dtype
    return x.to(dtype) if dtype.is_floating_point and not _autocast_on(x.device.type) else x


def across_types(language_model: nn.Module) -> AbstractContextManager:
    """Autocast to half precision for a language model of which some weights are float32, and nothing for any other.

    That is how it stands after LoRA training: embeddings and output layer trained in float32, layers frozen in half.
    Autocast is also what it was trained under. LoRA's own matrices do not count, since peft casts for them.
    """
    named = language_model.named_parameters()
    types = {p.dtype for name, p in named if p.is_floating_point() and ".lora_" not in name}
    half = types - {torch.float32}
    kind = next(language_model.parameters()).device.type
    if (len(types), len(half)) != (2, 1) or _autocast_on(kind) or not torch.amp.is_autocast_available(kind):
        return nullcontext()
    return torch.autocast(kind, dtype=half.pop())


def no_autocast(kind: str) -> AbstractContextManager:
    """No autocast inside, which casts every matrix product."""
    able = torch.amp.is_autocast_available(kind)  # not for meta tensors
    return torch.autocast(kind, enabled=False) if able else nullcontext()


def _autocast_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # not for meta tensors
