"""The loss on held-out samples."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from glamm_mini.training.batches import COUNTS


@torch.no_grad()
def held_out_loss(
    model: nn.Module, data: Any, collate: Callable[[list], dict], batch_size: int, device: torch.device
) -> float:
    """Mean loss of `model` on all of `data`, weighted by samples; the model takes its own mean within a batch."""
    total = 0.0
    for start in range(0, len(data), batch_size):
        samples = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        batch = {key: value for key, value in collate(samples).items() if key not in COUNTS.values()}
        total += float(model(**send_to_device(batch, device)).loss) * len(samples)
    return total / len(data)
