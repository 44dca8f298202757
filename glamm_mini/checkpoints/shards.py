"""Weights in files, one or many, safetensors or what `torch.save` writes: listed first, then read tensor by tensor.

Nothing here runs code from a file, and never more than a slice of a file is in memory beside what the caller keeps:
files are memory-mapped, and mapped anew after every slice, since pages once read count as used until then.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SLICE, SLICES = 256 * 2**20, 32
"""A slice is so many bytes at most, and of a smaller file such a part."""
LFS_POINTER = b"version https://git-lfs"


class Entry(NamedTuple):
    """A tensor that a file holds, known without reading its values.

    first: the first name in the file that stands for the same values, of the same shape: `torch.save` stores what
        several names share once. None in safetensors, which share nothing.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    first: str | None = None


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
        foreign = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r}); copy or download it again") from error
    if foreign:
        raise ValueError(f"{index} names {foreign[0]!r}, which lies outside its folder; expected plain file names")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing or not names:
        raise FileNotFoundError(
            f"{index.parent} lacks {len(missing)} of the {len(names)} shards that {index.name} names "
            f"({', '.join(missing[:3])}); copy or download the folder whole"
        )
    return [index.parent / name for name in names]


def list_tensors(files: Iterable[str | Path]) -> dict[str, Entry]:
    """Every tensor's name with its shape, type and file, no values read. ValueError for a damaged or foreign file, or
    for a name that stands in two files; FileNotFoundError for a file that is not there."""
    found: dict[str, Entry] = {}
    for file in map(Path, files):
        for name, entry in _contents(file).items():
            if name in found:
                raise ValueError(f"{name} stands in {found[name].file} and in {file}; remove the file that is too much")
            found[name] = entry
    return found


def read_tensors(files: Iterable[str | Path], names=None) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """(name, tensor, file) one after the other, of all `names` (default: everything) in the files' own order.

    A tensor may be a view of its file: copy it before you change it, and keep none, or its file stays mapped.
    """
    for file in map(Path, files):
        wanted = {name: entry for name, entry in _contents(file).items() if names is None or name in names}
        for part in _slices(wanted, min(SLICE, file.stat().st_size // SLICES)):
            with _Opened(file) as tensors:
                for name in part:
                    try:
                        tensor = tensors[name]
                    except (SafetensorError, RuntimeError, OSError) as error:
                        raise _damaged(file, error) from error
                    yield name, tensor, file


def _slices(wanted: dict[str, Entry], most: int) -> Iterator[list[str]]:
    part, size = [], 0
    for name, entry in wanted.items():
        part.append(name)
        size += torch.Size(entry.shape).numel() * entry.dtype.itemsize
        if size >= most:
            yield part
            part, size = [], 0
    if part:
        yield part


def _contents(file: Path) -> dict[str, Entry]:
    with _Opened(file) as tensors:
        found, firsts = {}, {}
        for name in tensors.keys():
            shape, dtype, place = tensors.describe(name)
            first = firsts.setdefault((place, shape, dtype), name) if place else None
            found[name] = Entry(shape, dtype, file, first)
        return found


class _Opened:
    """A weights' file of either format as a mapping of names to tensors, for the time of a `with`."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self):
        if not self.file.is_file():
            raise FileNotFoundError(f"there is no file {self.file}; check the path, or download it")
        with self.file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise ValueError(f"{self.file} is a pointer of git-lfs and no weights; fetch them with git lfs pull")
        try:
            self.handle = _open_safetensors(self.file) if self.file.suffix == ".safetensors" else _open_torch(self.file)
        except Exception as error:  # both readers raise types of their own, and many
            raise _damaged(self.file, error) from error
        return self

    def __exit__(self, *_):
        self.handle = None

    def keys(self):
        return self.handle.keys()

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.handle[name] if isinstance(self.handle, dict) else self.handle.get_tensor(name)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype, tuple | None]:
        """Shape, type, and where the values begin in memory with their strides; None where nothing can be shared."""
        if isinstance(self.handle, dict):
            tensor = self.handle[name]
            dense = tensor.layout is torch.strided and tensor.data_ptr() != 0  # 0: no values, or none here
            return tuple(tensor.shape), tensor.dtype, (tensor.data_ptr(), tensor.stride()) if dense else None
        view = self.handle.get_slice(name)
        return tuple(view.get_shape()), SAFETENSORS_TYPES[view.get_dtype()], None


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


def _open_safetensors(file: Path):
    return safe_open(file, framework="pt", device="cpu")


def _open_torch(file: Path) -> dict[str, torch.Tensor]:
    # Files older than torch 1.6 are no zip archives and cannot be mapped; they are read whole.
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(state, dict) or not all(isinstance(k, str) for k in state):
        raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
    odd = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise ValueError(f"{odd[0]!r} is a {type(state[odd[0]]).__name__} and no tensor; expected a plain state dict")
    return state


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ValueError(
        f"{file} is damaged, truncated or no file of weights ({reason[0][:200]}); copy or download it again"
    )
