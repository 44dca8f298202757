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
from contextlib import contextmanager
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
BROKEN = " is damaged, truncated or not a file of weights"


def find_folder(name: str | Path, weights: bool = True, subfolder: str = "", **hub: Any) -> Path:
    """The folder of a checkpoint: a folder itself, a bundled name such as "tiny", or "owner/name" on the hub.

    weights: whether those of a repository are wanted. hub: revision, token, cache_dir ... of it.
    Raises ValueError for no name and for a revision of a folder, FileNotFoundError that says where was looked.
    """
    if not isinstance(name, str | os.PathLike) or not str(name).strip():
        raise ValueError(f"no model was named, but {name!r}; give a bundled name such as 'tiny', a folder or a hub id")
    inner = Path(subfolder) if isinstance(subfolder, str | os.PathLike) else Path("..")
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(f"subfolder is {subfolder!r}; expected the name of a folder inside")
    path, revision = Path(name), hub.get("revision")
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file; give the folder that holds config.json and the weights")
    if not path.is_dir() and isinstance(name, str) and HUB_ID.fullmatch(name):
        path = _from_hub(name, weights, subfolder, hub)
    elif revision not in (None, "main"):  # transformers' own default
        raise ValueError(f"revision is {revision!r}, but {name} is no repository of the hub; leave revision out")
    elif not path.is_dir():
        path = paths.checkpoint_folder(str(name))
    folder = path / subfolder
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {subfolder} in {path}; it holds {listed_in(path)}")
    recover(folder)
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        return folder / "model"  # what a training leaves: its run around the model
    return folder


def _from_hub(name: str, weights: bool, subfolder: str, hub: Mapping[str, Any]) -> Path:
    """A repository, downloaded or from the cache: only files that run no code, torch's where there are no others."""
    from huggingface_hub import snapshot_download

    owner, hint = Path(name).parent, "download it elsewhere and give its folder"
    if owner.is_dir():
        found = f"although {owner} is a folder here; check the name. The hub was not asked"
        raise FileNotFoundError(f"there is no folder {name}, {found}: for one of its models, {hint}")
    kinds = ("*.json", "tokenizer.model", "*.safetensors", "pytorch_model*.bin")
    wanted = [f"{subfolder}/{kind}" if subfolder else kind for kind in kinds]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted[: 3 if weights else 2], **hub))
        if weights and not any((folder / subfolder).glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=wanted, **hub))
        return folder
    except Exception as error:  # of the network, of the hub and of its cache, each of its own type
        found = f"and the hub gave no model of that name ({first_line(error)}); check the name or the network"
        raise FileNotFoundError(f"there is no folder {name} here, {found}, or {hint}") from error


@contextmanager
def reading(path: Path, what: str = BROKEN) -> Iterator[None]:
    """Whatever the readers of a file or folder raise inside, of many types, becomes one ValueError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:300]
        if words.startswith("Weights only load failed"):  # what follows is advice to run the code in it
            words = "it holds more than tensors, and none of it was run"
        elif not isinstance(error, ValueError):  # of a KeyError or a TypeError, the words alone say little
            words = f"{type(error).__name__}: {words}"
        raise ValueError(f"{path}{what} ({words}); copy or download it again") from error


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
        with reading(self.file):
            return self.read()


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
        pairs = state.items() if isinstance(state, dict) else [(None, state)]
        odd = [(k, v) for k, v in pairs if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
        if odd:
            raise ValueError(f"{odd[0][0]!r} is a {type(odd[0][1]).__name__}; expected names and their tensors")
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
    Raises FileNotFoundError that names what is missing, ValueError for an index that cannot be read."""
    folder = Path(folder)
    there = [name for pair in zip(SINGLE, INDICES, strict=True) for name in pair if (folder / name).is_file()]
    if not there:
        expected = f"expected one of {', '.join(SINGLE + INDICES)}, found {listed_in(folder)}"
        raise FileNotFoundError(f"{folder} holds no weights; {expected}; copy or download the folder whole")
    index = folder / there[0]
    if there[0] in SINGLE:
        return [index]
    with reading(index, " is not an index of shards"):
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        for name in names:
            if Path(name).name != name or "\\" in name:
                raise ValueError(f"it names {name!r}, which lies outside its folder; expected plain file names")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        lacks = f"lacks {len(missing)} of the {len(names)} shards that {index.name} names ({', '.join(missing[:3])})"
        raise FileNotFoundError(f"{folder} {lacks}; copy or download the folder whole")
    return [folder / name for name in names]


def list_tensors(files: Iterable[str | Path]) -> dict[str, Stored]:
    """Every tensor's name with its shape, type and file, no values read. ValueError for a damaged or foreign file, or
    for a name that stands in two files; FileNotFoundError for a file that is not there."""
    found: dict[str, Stored] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {file}; check the path, or download it")
        with reading(file):
            with file.open("rb") as opened:
                if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise ValueError("it is a pointer of git-lfs: fetch the weights with git lfs pull")
            entries = list(_of_safetensors(file) if file.suffix == ".safetensors" else _TorchFile(file))
        for entry in entries:
            if entry.name in found:
                both = f"{found[entry.name].file} and in {file}"
                raise ValueError(f"{entry.name} stands in {both}; remove the file that is too much")
            found[entry.name] = entry
    return found


def mismatch(
    wanted: Mapping[str, tuple], given: Mapping[str, Any], extra: Iterable[Stored] = (), named: Callable = str
) -> str:
    """What is missing (as `named` gives its name), unexpected (`extra` too), of another shape than `wanted` or of whole
    numbers, in words with its files; "" where all fits."""
    odd = [*extra, *(entry for name, entry in given.items() if name not in wanted)]
    whole = [entry for name, entry in given.items() if name in wanted and not entry.dtype.is_floating_point]
    shapes = [(e, wanted[n]) for n, e in given.items() if n in wanted and e.shape not in (None, wanted[n])]
    kinds = {
        "missing": [named(name) for name in wanted if name not in given],
        "unexpected": [f"{entry.name} in {entry.file.name}" for entry in odd],
        "no floating-point numbers": [f"{e.name} in {e.file.name} is {e.dtype}" for e in whole],
        "of another shape": [f"{e.name} in {e.file.name} is {e.shape}, the model has {s}" for e, s in shapes],
    }
    listed = {kind: "; ".join(names[:5]) + (" ..." if len(names) > 5 else "") for kind, names in kinds.items()}
    return ", ".join(f"{len(kinds[kind])} {kind} ({names})" for kind, names in listed.items() if names)


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
