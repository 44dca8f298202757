"""A checkpoint's folder and the weights' files in it, of either kind: found, listed, and read tensor by tensor.

transformers can read these files by itself, but not as this package needs it: it takes weights from one folder (an
official checkpoint lies in two), does not tell which file a wrong name stands in, passes over second names without
asking whether their values are the same, and holds what `torch.save` wrote in memory twice.
"""

import json
import os
import threading
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SLICES = 8
"""A file of `torch.save` is mapped anew after each such part of it: pages once read count as used until then."""

LFS_POINTER = b"version https://git-lfs"
SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its shape (any) and type known before its values are read: `stored[...]` reads them.

    first: the first name in the file that stands for the same values, of the same shape: `torch.save` stores what
        several names share once. None in safetensors, which share nothing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    first: str | None = None
    reader: Any = field(default=None, repr=False, compare=False)

    @property
    def nbytes(self) -> int:
        """Bytes of its values in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def __getitem__(self, _: Any) -> torch.Tensor:
        """The tensor, on the CPU, in memory of its own. Raises ValueError that names a file that is cut short."""
        try:
            return self.reader.read(self.name)
        except Exception as error:  # both readers raise types of their own, and many
            raise damaged(self.file, error) from error


class _Safetensors:
    """A safetensors file, read and not mapped, so that it may be replaced while its tensors live."""

    def __init__(self, file: Path):
        self.handle = safe_open(file, framework="pt", backend="pread")

    def listed(self):
        for name in self.handle.keys():
            view = self.handle.get_slice(name)
            yield name, tuple(view.get_shape()), SAFETENSORS_TYPES[view.get_dtype()], None

    def read(self, name: str) -> torch.Tensor:
        return self.handle.get_tensor(name)


class _TorchFile:
    """A file of `torch.save`, mapped; nothing in it can run code."""

    def __init__(self, file: Path):
        self.file, self.lock, self.stamp = file, threading.Lock(), _stamp(file)
        self.state, self.given = self._mapped(), 0

    def _mapped(self) -> dict[str, torch.Tensor]:
        # Files older than torch 1.6 are no zip archives and cannot be mapped; they are read whole.
        state = torch.load(self.file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.file))
        if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
            raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
        odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
        if odd:
            raise ValueError(f"{odd[0]!r} is a {type(state[odd[0]]).__name__}, not a tensor")
        return state

    def listed(self):
        firsts: dict[tuple, str] = {}
        for name, tensor in self.state.items():
            shape, place = tuple(tensor.shape), None
            if tensor.layout is torch.strided and tensor.data_ptr() != 0:  # 0: no values, or none here
                place = firsts.setdefault((tensor.data_ptr(), tensor.stride(), shape, tensor.dtype), name)
            yield name, shape, tensor.dtype, place

    def read(self, name: str) -> torch.Tensor:
        with self.lock:
            if self.given > self.stamp[1] // SLICES:
                if _stamp(self.file) != self.stamp:
                    raise ValueError("it was replaced while it was read")
                self.state, self.given = self._mapped(), 0
            tensor = self.state[name].clone(memory_format=torch.contiguous_format)
            self.given += tensor.nbytes
            return tensor


def weight_files(folder: str | Path) -> list[Path]:
    """The weights' files of a Hugging Face folder: one, or the shards that its index names; safetensors come first.

    Raises FileNotFoundError that names what is missing, ValueError for an index that cannot be read.
    """
    folder = Path(folder)
    for single, index in zip(SINGLE, INDICES, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder / index)
    there = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
    raise FileNotFoundError(
        f"{folder} holds no weights; expected one of {', '.join(SINGLE + INDICES)}, "
        f"found {', '.join(there) or 'nothing'}; copy or download the folder whole"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        foreign = [name for name in names if Path(name).name != name or "\\" in name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of shards ({error!r}); copy or download it again") from error
    if foreign:
        raise ValueError(f"{index} names {foreign[0]!r}, which lies outside its folder; expected plain file names")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise FileNotFoundError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} shards that {index.name} names "
            f"({', '.join(missing[:3])}); copy or download the folder whole"
        )
    return [index.parent / name for name in names]


def list_tensors(files: Iterable[str | Path]) -> dict[str, Stored]:
    """Every tensor's name with its shape, type and file, no values read. ValueError for a damaged or foreign file, or
    for a name that stands in two files; FileNotFoundError for a file that is not there."""
    found: dict[str, Stored] = {}
    for file in map(Path, files):
        reader = _opened(file)
        try:
            entries = [Stored(name, shape, dtype, file, first, reader) for name, shape, dtype, first in reader.listed()]
        except KeyError as error:
            raise damaged(file, ValueError(f"numbers of the type {error} are unknown here")) from error
        for entry in entries:
            if entry.name in found:
                both = f"{found[entry.name].file} and in {file}"
                raise ValueError(f"{entry.name} stands in {both}; remove the file that is too much")
            found[entry.name] = entry
    return found


def _opened(file: Path) -> _Safetensors | _TorchFile:
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; check the path, or download it")
    with file.open("rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(f"{file} is a pointer of git-lfs, not weights; fetch them with git lfs pull")
    try:
        return _Safetensors(file) if file.suffix == ".safetensors" else _TorchFile(file)
    except Exception as error:  # both readers raise types of their own, and many
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> ValueError:
    """What is said of a file that cannot be read as weights, such as a pickle under a safetensors name."""
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"{file} is damaged, truncated or not a file of weights ({reason[0][:200]}); copy or download it again"
    )


def stamps(folder: Path) -> dict[str, tuple]:
    """What tells whether any file of a checkpoint was replaced: its file numbers, sizes and times."""
    kinds = (".json", ".safetensors", ".bin", ".model")
    return {path.name: _stamp(path) for path in sorted(folder.iterdir()) if path.suffix in kinds and path.is_file()}


def _stamp(file: Path) -> tuple[int, int, int]:
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns
