"""Sharding by hand: who holds which rows of a matrix, and how gradients of many become one."""

import torch


def rows_of(tensor: torch.Tensor, rank: int, processes: int) -> torch.Tensor:
    """The slice of a tensor (rows, ...) that process `rank` of `processes` holds; the last ones may hold fewer rows.

    As torch's `Shard(0)` cuts: every process gets as many rows as the first, until none are left.
    """
    share = -(-len(tensor) // processes)  # rounded up
    return tensor[rank * share : (rank + 1) * share]


def reduce_scatter(gradients: list[torch.Tensor], rank: int) -> torch.Tensor:
    """Of every process's gradient (rows, ...) of the same matrix: the mean, and of it the rows of process `rank`."""
    processes = len(gradients)
    return rows_of(sum(gradients) / processes, rank, processes)
