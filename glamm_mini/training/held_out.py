"""The loss on held-out samples."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from glamm_mini.training.data_order import COUNTS


@torch.no_grad()
def held_out_loss(
    model: nn.Module, data: Any, collate: Callable[[list], dict], batch_size: int, device: torch.device
) -> float:
    """The loss of `model` on all of `data`, as if it were one batch: `batch_size` does not change it.

    Where the batches bring no counts (see the trainer), it is the mean of each batch's own loss, weighted by samples.
    """

    def batches() -> Iterator[tuple[int, dict]]:
        for start in range(0, len(data), batch_size):
            samples = [data[i] for i in range(start, min(start + batch_size, len(data)))]
            yield len(samples), collate(samples)

    totals: dict[str, int] = {}
    for _, batch in batches():  # losses are sums divided by totals, which must be known first
        for name, key in COUNTS.items():
            if key in batch:
                totals[name] = totals.get(name, 0) + int(batch[key])
    normalizers = {name: max(1, total) for name, total in totals.items()}
    loss = 0.0
    for count, batch in batches():
        batch = {key: value for key, value in batch.items() if key not in COUNTS.values()}
        share = 1.0 if normalizers else count / len(data)
        more = {"normalizers": normalizers} if normalizers else {}
        loss += float(model(**send_to_device(batch, device), **more).loss) * share
    return loss
