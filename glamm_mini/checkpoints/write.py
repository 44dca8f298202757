"""Weights written to disk: in shards with an index, one shard in memory at a time; folders whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from glamm_mini.checkpoints.find import recover

MAX_SHARD_SIZE = "4GB"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A fresh folder to write into, which takes the place of `folder` at the end; a kill before leaves the old one.

    Raises OSError if the disk is full or the place cannot be written; what lay in `folder` is untouched then.
    """
    folder = Path(folder)
    if folder.is_file():
        raise OSError(f"{folder} is a file; a checkpoint is a folder: give another name")
    old = recover(folder)
    fresh = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        yield fresh
    except BaseException as error:
        # Half a checkpoint helps nobody, and on a full disk its room is needed.
        shutil.rmtree(fresh, ignore_errors=True)
        if not isinstance(error, (OSError, SafetensorError)):
            raise
        raise OSError(
            f"the checkpoint {folder} could not be written ({error}); what lay there before is untouched; "
            "free some room or choose another folder, then save again"
        ) from error
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def bytes_of(size: int | str) -> int:
    """4000000000 for "4GB". Raises ValueError for what is no size."""
    text = str(size).strip().upper()
    unit = next((unit for unit in sorted(UNITS, key=len, reverse=True) if text.endswith(unit)), "")
    number = text.removesuffix(unit).strip()
    if not number.replace(".", "", 1).isdigit() or float(number) <= 0:
        raise ValueError(f"{size!r} is no size; expected such as '4GB', '500MB' or a number of bytes")
    return int(float(number) * UNITS.get(unit, 1))


def write_weights(
    folder: Path,
    sizes: dict[str, int],
    tensors: Iterable[tuple[str, torch.Tensor]],
    max_shard_size: int | str = MAX_SHARD_SIZE,
    torch_files: bool = False,
    advance: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write (name, tensor) as they come, in shards below `max_shard_size` where they do not fit into one file.

    sizes: the bytes of each tensor, all of them, in the order in which they come. torch_files: torch's zip files, as
    official checkpoints are, in place of safetensors. advance: told the bytes of each tensor written. A tensor that
    is contiguous and on the CPU is written from where it lies; others are copied, one shard at a time.
    Returns the files. Raises OSError if the disk is full.
    """
    stem, ending = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
    shards = _plan(sizes, bytes_of(max_shard_size))
    files, state, places, number = [], {}, {}, 0
    for name, tensor in tensors:
        state[name] = tensor.detach().to("cpu").contiguous()
        if advance is not None:
            advance(state[name].nbytes)
        if len(state) < len(shards[number]):
            continue
        number += 1
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        files.append(folder / f"{stem}{part}.{ending}")
        places |= dict.fromkeys(state, files[-1].name)
        if torch_files:
            torch.save(state, files[-1])
        else:
            save_file(state, files[-1], metadata={"format": "pt"})
        state = {}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")
    return files


def _plan(sizes: dict[str, int], most: int) -> list[list[str]]:
    """Names in order, cut into shards that hold `most` bytes each; a bigger tensor has a shard of its own."""
    shards, filled = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > most:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards
