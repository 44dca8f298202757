"""Official weights: how a checkpoint is cut into shards, and what the bytes of a safetensors file say."""

import json

import torch

from glamm_mini.checkpoints.files import SAFETENSORS_TYPES


def cut_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names with their bytes, in order, to lists of names of at most `limit` bytes each; a larger tensor stands alone.

    As huggingface_hub cuts them.
    """
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def read_header(data: bytes) -> tuple[dict, int]:
    """The bytes of a safetensors file to what it says about its tensors, and where their numbers begin."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, 8 + length


def read_tensor(data: bytes, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, by its name."""
    header, start = read_header(data)
    begin, end = header[name]["data_offsets"]
    numbers = bytearray(data[start + begin : start + end])
    kind = SAFETENSORS_TYPES[header[name]["dtype"]]
    return torch.frombuffer(numbers, dtype=kind).reshape(header[name]["shape"])
