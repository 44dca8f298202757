"""Which number type a device computes fast and well."""

import torch


def half_type(device: torch.device) -> torch.dtype:
    """bfloat16 where a GPU computes it itself, float16 on older ones (a T4), float32 everywhere else.

    bfloat16 has float32's range; float16 ends at 65504, so that training in it scales the loss.
    """
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
