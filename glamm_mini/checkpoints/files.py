"""The weights' files of a checkpoint, found and read tensor by tensor, with one error for whatever is wrong with them.

transformers reads them as well, but from one folder (an official checkpoint lies in two), without telling which file a
wrong name stands in or which names share their values, and it holds what `torch.save` wrote in memory twice.
"""

import json
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from glamm_mini import paths
from glamm_mini.checkpoints.save import recover

SINGLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SLICES = 8
"""A file of `torch.save` is mapped anew after each such part of it: pages once read count as used until then."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
LFS_POINTER = b"version https://git-lfs"
SAFETENSORS_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SAFETENSORS_TYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8}
SAFETENSORS_TYPES |= {"U8": torch.uint8, "BOOL": torch.bool}


def find_folder(name: str | Path, weights: bool = True, subfolder: str = "", **hub: Any) -> Path:
    """The folder of a checkpoint: a folder itself, a bundled name such as "tiny", or "owner/name" on the hub.

    weights: whether those of a repository are wanted. hub: revision, token, cache_dir ... of it.
    Raises ValueError for no name, FileNotFoundError that says where was looked.
    """
    if not isinstance(name, str | os.PathLike) or not str(name).strip():
        raise ValueError(f"no model was named, but {name!r}; give a bundled name such as 'tiny', a folder or a hub id")
    if not isinstance(subfolder, str | os.PathLike):
        raise ValueError(f"subfolder is {subfolder!r}; expected the name of a folder")
    path = Path(name)
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file; give the folder that holds config.json and the weights")
    if not path.is_dir():
        on_hub = isinstance(name, str) and HUB_ID.fullmatch(name)
        path = _from_hub(name, weights, subfolder, hub) if on_hub else paths.checkpoint_folder(str(name))
    folder = path / subfolder if subfolder else path
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {subfolder} in {path}; it holds {listed_in(path)}")
    recover(folder)
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        return folder / "model"  # what a training leaves: its run around the model
    return folder


def _from_hub(name: str, weights: bool, subfolder: str, hub: Mapping[str, Any]) -> Path:
    """A repository, downloaded or from the cache: only files that run no code, torch's where there are no others."""
    from huggingface_hub import snapshot_download

    owner = Path(name).parent
    if owner.is_dir():
        raise FileNotFoundError(
            f"there is no folder {name}, although {owner} is a folder here; check the name. The hub was not asked: if "
            "a model of the hub was meant, download it elsewhere and give its folder"
        )
    kinds = ("*.json", "tokenizer.model", "*.safetensors", "pytorch_model*.bin")
    wanted = [f"{subfolder}/{kind}" if subfolder else kind for kind in kinds]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted[: 3 if weights else 2], **hub))
        if weights and not any((folder / subfolder).glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=wanted, **hub))
        return folder
    except Exception as error:  # of the network, of the hub and of its cache, each of its own type
        raise FileNotFoundError(
            f"there is no folder {name} here, and the hub gave no model of that name ({first_line(error)}); check the "
            "name or the network, or download it elsewhere and give the folder"
        ) from error


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, its shape and type known before its values are read: `stored[...]` reads them to the CPU.

    shape: None where the hub tells names alone. first: the first name in the file that stands for the same values, of
    the same shape: `torch.save` stores what several names share once.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: torch.dtype
    file: Path
    read: Callable[[], torch.Tensor] | None = field(default=None, repr=False, compare=False)
    first: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its values in the file; 0 where the shape is not known."""
        return 0 if self.shape is None else torch.Size(self.shape).numel() * self.dtype.itemsize

    def __getitem__(self, _: Any) -> torch.Tensor:
        """The tensor, in memory of its own. Raises ValueError that names a file that is cut short."""
        try:
            return self.read()
        except Exception as error:  # both readers raise types of their own, and many
            raise damaged(self.file, error) from error


def _of_safetensors(file: Path) -> Iterator[Stored]:
    handle = safe_open(file, framework="pt", backend="pread")  # not mapped: it may be replaced while its tensors live
    for name in handle.keys():
        view = handle.get_slice(name)
        if view.get_dtype() not in SAFETENSORS_TYPES:
            raise ValueError(f"numbers of the type {view.get_dtype()} are unknown here")
        shape, kind = tuple(view.get_shape()), SAFETENSORS_TYPES[view.get_dtype()]
        yield Stored(name, shape, kind, file, partial(handle.get_tensor, name))


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

    def __iter__(self) -> Iterator[Stored]:
        firsts: dict[tuple, str] = {}
        for name, tensor in self.state.items():
            shape, first = tuple(tensor.shape), None
            if tensor.layout is torch.strided and tensor.data_ptr() != 0:  # 0: no values, or none here
                first = firsts.setdefault((tensor.data_ptr(), tensor.stride(), shape, tensor.dtype), name)
            yield Stored(name, shape, tensor.dtype, self.file, partial(self.read, name), first)

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
    raise FileNotFoundError(
        f"{folder} holds no weights; expected one of {', '.join(SINGLE + INDICES)}, "
        f"found {listed_in(folder)}; copy or download the folder whole"
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
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; check the path, or download it")
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ValueError(f"{file} is a pointer of git-lfs, not weights; fetch them with git lfs pull")
        try:
            entries = list(_of_safetensors(file) if file.suffix == ".safetensors" else _TorchFile(file))
        except Exception as error:  # both readers raise types of their own, and many
            raise damaged(file, error) from error
        for entry in entries:
            if entry.name in found:
                both = f"{found[entry.name].file} and in {file}"
                raise ValueError(f"{entry.name} stands in {both}; remove the file that is too much")
            found[entry.name] = entry
    return found


def mismatch(
    wanted: Mapping[str, tuple], given: Mapping[str, Any], extra: Iterable[Stored] = (), named: Callable = str
) -> str:
    """What is missing, unexpected or of another shape, in words with its files; "" where all fits.

    wanted: name -> shape. given: name -> what is stored. extra: what no name was found for. named: a missing name as
    its reader knows it.
    """
    odd = [*extra, *(entry for name, entry in given.items() if name not in wanted)]
    shapes = [(e, wanted[n]) for n, e in given.items() if n in wanted and e.shape not in (None, wanted[n])]
    kinds = {
        "missing": [named(name) for name in wanted if name not in given],
        "unexpected": [f"{entry.name} in {entry.file.name}" for entry in odd],
        "of another shape": [f"{e.name} in {e.file.name} is {e.shape}, the model has {s}" for e, s in shapes],
    }
    return ", ".join(
        f"{len(names)} {kind} ({'; '.join(names[:5])}{' ...' if len(names) > 5 else ''})"
        for kind, names in kinds.items()
        if names
    )


def damaged(file: Path, error: Exception) -> ValueError:
    """What is said of a file that cannot be read as weights, such as a pickle under a safetensors name."""
    reason = first_line(error)[:200]
    if reason.startswith("Weights only load failed"):  # what follows is advice to run the code in it
        reason = "it holds more than tensors, and none of it was run"
    return ValueError(f"{file} is damaged, truncated or not a file of weights ({reason}); copy or download it again")


def stamps(folder: Path) -> dict[str, tuple]:
    """What tells whether any file of a checkpoint was replaced: its file numbers, sizes and times."""
    kinds = (".json", ".safetensors", ".bin", ".model")
    return {path.name: _stamp(path) for path in sorted(folder.iterdir()) if path.suffix in kinds and path.is_file()}


def _stamp(file: Path) -> tuple[int, int, int]:
    found = os.stat(file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def listed_in(folder: Path) -> str:
    """The first few names in a folder, for an error."""
    return (", ".join(sorted(path.name for path in folder.iterdir())[:8]) if folder.is_dir() else "") or "nothing"


def first_line(error: Exception) -> str:
    """What an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
