"""Writing checkpoints: whole or not at all, beside whatever else lies in the folder, and readable for everybody."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import extract_model_from_parallel
from filelock import FileLock
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging

from glamm_mini import paths

if TYPE_CHECKING:  # a run saves by `whole_folder` as well, and every process of it would import this for nothing
    from glamm_mini.processing.processor import GlammProcessor

MAX_SHARD_SIZE = "4GB"
FRESH, DONE, LOCK = ".saving", "complete.json", ".saving.lock"
OURS = ".of-glamm-mini"
"""Stands in a folder FRESH that a save has made; one without it is the user's. A folder, since files are moved."""
OLD_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
"""Weights of an earlier save; what of them is not written anew would be read in place of the new ones."""


def save_model(
    folder: str | Path,
    model: torch.nn.Module,
    processor: "GlammProcessor",
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write weights, configuration and tokenizer; a kill while saving leaves the old ones, or the new ones whole.

    Other files of the folder stay; a folder that holds another kind of model is refused. A model wrapped by
    `torch.compile` or for several devices is saved as it is inside.

    dtype: store weights in this type (torch.bfloat16 halves the file); they are loaded as float32 all the same.
    max_shard_size: bytes, or such as "4GB"; more weights are written in several files with an index.
    Raises OSError if the disk is full or the place cannot be written; what lay in `folder` is untouched then.
    ValueError for a model whose weights are not finite, not all there (quantized, offloaded) or stand beside LoRA, and
    for the processor of another model.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1):
        raise ValueError(f"dtype is {dtype!r}; expected a torch.dtype of weights, such as torch.bfloat16")
    shard_plan({}, "model{suffix}.safetensors", max_shard_size)  # a size that cannot be read
    wrapped = None
    while isinstance(model, torch.nn.Module) and model is not wrapped:  # one wrapper may stand in another
        model, wrapped = extract_model_from_parallel(model, keep_fp32_wrapper=False, keep_torch_compile=False), model
    check_pair(model, processor)
    state = model.state_dict()
    if is_quantized(model) or any(tensor.is_meta for tensor in state.values()):
        raise ValueError("a quantized or offloaded model cannot be saved; load it whole, then save it")
    broken = next((n for n, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())), None)
    if broken is not None:
        raise ValueError(f"{broken} holds values that are not finite; nothing was written: go back to an earlier model")
    if dtype is not None:
        state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    with whole_folder(folder) as fresh:
        processor.save_pretrained(fresh)
        with quiet(sum(tensor.nbytes for tensor in state.values())):
            model.save_pretrained(fresh, state_dict=state, max_shard_size=max_shard_size)
    return Path(folder)


def check_pair(model: torch.nn.Module, processor: "GlammProcessor") -> None:
    """ValueError for what is no GLaMM, no processor of one, or that of another: it would read and ask otherwise."""
    kinds = ("model", model, "GlammForConditionalGeneration"), ("processor", processor, "GlammProcessor")
    for name, given, kind in kinds:  # by name: a run, which saves by this module too, imports neither for it
        if not any(base.__name__ == kind for base in type(given).__mro__):
            raise ValueError(f"{name} is a {type(given).__name__}; expected a {kind}")
    words, rows = len(processor.tokenizer), model.get_input_embeddings().num_embeddings
    if words > rows:
        raise ValueError(f"the tokenizer knows {words} tokens, the model {rows}; give the model's own processor")
    for name in ("mode", "tokens", "prompt", "vision.image_size", "grounding.image_size"):
        own, other = (attrgetter(name)(part.config) for part in (model, processor))
        if own != other:
            raise ValueError(f"the processor is of another model: its {name} is {other}, the model's {own}")


@contextmanager
def quiet(size: int) -> Iterator[None]:
    """No progress bar of transformers for what takes a second: a model of fewer bytes than a gigabyte."""
    hidden = size < 2**30 and logging.is_progress_bar_enabled()
    if hidden:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if hidden:
            logging.enable_progress_bar()


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether any of the model's layers are bitsandbytes'."""
    return any(type(module).__module__.startswith("bitsandbytes") for module in model.modules())


@contextmanager
def whole_folder(folder: str | Path, mine: bool | None = None) -> Iterator[Path]:
    """A fresh folder to write into, whose files are moved into `folder` at the end, all of them or none.

    Files of other names stay, and so does `folder` itself where it is a link. A kill before the end leaves the old
    files; one between the moves is mended by whoever opens the folder next (`recover`).
    mine: whether files of the same names may be replaced; default: if the folder holds a model of ours.
    Raises OSError if the place cannot be written, FileExistsError for files in the way that are of something else.
    """
    folder = paths.folder_path(folder, "the place to save to").resolve()
    if folder.is_file():
        raise OSError(f"{folder} is a file; a checkpoint is a folder: give another name")
    mine, fresh = paths.holds_our_model(folder) if mine is None else mine, folder / FRESH
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            _finish(folder)
            _claim(fresh)
            try:
                yield fresh
                _complete(folder, fresh, mine)
            except BaseException:
                # Half a checkpoint helps nobody, and on a full disk its room is needed.
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            _finish(folder)
    except BaseException as error:
        for path in new:
            with suppress(OSError):  # not made, or not empty
                path.rmdir()
        if not isinstance(error, (OSError, SafetensorError)) or isinstance(error, FileExistsError):
            raise
        kept = "what lay there before is untouched; free some room or choose another folder, then save again"
        raise OSError(f"the checkpoint {folder} could not be written ({error}); {kept}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process, and no other thread, writes here meanwhile; waits for one that does."""
    with suppress(FileNotFoundError):  # whoever holds the lock may remove it now
        if (folder / LOCK).stat().st_size and (folder / LOCK).is_file():  # a lock holds nothing
            raise FileExistsError(f"{folder / LOCK} is in the way: saving needs a file of that name; move it elsewhere")
    with FileLock(folder / LOCK):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes it by itself
                (folder / LOCK).unlink()


def _claim(fresh: Path) -> None:
    """A new folder to write into. What a killed save left is cleared; FileExistsError for what the user put there."""
    if (fresh / OURS).exists():
        shutil.rmtree(fresh)
    elif fresh.is_symlink() or fresh.exists() and (not fresh.is_dir() or any(fresh.iterdir())):
        raise FileExistsError(f"{fresh} is in the way: saving needs a folder of that name; move it elsewhere")
    fresh.mkdir(exist_ok=True)
    (fresh / OURS).mkdir()


def _complete(folder: Path, fresh: Path, mine: bool) -> None:
    """Bring the files of a save to the disk, with the usual rights, and mark them as ready to be moved."""
    names = sorted(path.relative_to(fresh).as_posix() for path in fresh.rglob("*") if path.is_file())
    taken = [n for n in names if (folder / n).is_symlink() or (folder / n).exists() and not mine]
    if taken:
        what = ", ".join(taken[:3])
        raise FileExistsError(f"{folder} holds {what} of something else, or as links; choose another folder")
    open_to_all(fresh)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        to_disk(fresh / name)
    (fresh / DONE).write_text(json.dumps(names), "utf-8")
    to_disk(fresh / DONE)


def _finish(folder: Path) -> None:
    """Move the files of a complete save to their places; whatever was moved already is passed over."""
    fresh = folder / FRESH
    if not (fresh / DONE).is_file():
        return
    names = json.loads((fresh / DONE).read_text("utf-8"))
    for name in names:
        if (fresh / name).exists():
            os.replace(fresh / name, folder / name)
    if any(name.startswith("model") for name in names):
        for old in (path for pattern in OLD_WEIGHTS for path in folder.glob(pattern)):
            if old.name not in names:
                old.unlink()
    shutil.rmtree(fresh)


def recover(folder: Path) -> None:
    """Finish a save that was killed between two moves; waits for one that is at work. OSError where it cannot."""
    if (folder / FRESH / DONE).is_file():
        with _alone(folder):
            _finish(folder)


def open_to_all(folder: Path) -> None:
    """Give safetensors files the rights of a file that this process makes; safetensors leaves them to the owner."""
    probe = folder / ".rights"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def to_disk(path: Path) -> None:
    """Wait until a file has reached the disk. It is opened for writing, as Windows demands."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_weights(
    folder: Path,
    stored: Mapping[str, Any],
    types: Mapping[str, torch.dtype],
    max_shard_size: int | str = MAX_SHARD_SIZE,
    torch_files: bool = False,
    advance: Callable[[int], None] = lambda size: None,
) -> None:
    """Write tensors or `Stored` ones, one shard in memory at a time, with an index where there are several. types: the
    new type of each. torch_files: torch's zip files, as official checkpoints are, in place of safetensors. advance:
    told the bytes of each tensor. Raises ValueError for a size that cannot be read."""
    stem, ending = ("pytorch_model", "bin") if torch_files else ("model", "safetensors")
    sizes = {name: torch.Size(t.shape).numel() * types[name].itemsize for name, t in stored.items()}
    plan = shard_plan(sizes, f"{stem}{{suffix}}.{ending}", max_shard_size)
    for file, names in plan.filename_to_tensors.items():
        state = {}
        for name in names:
            state[name] = stored[name][...].to("cpu", types[name]).contiguous()
            advance(state[name].nbytes)
        torch.save(state, folder / file) if torch_files else save_file(state, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def shard_plan(sizes: Mapping[str, int], pattern: str, max_shard_size: int | str) -> Any:
    """Which tensor goes into which file. Raises ValueError for a size such as "much"."""
    size = int(max_shard_size) if str(max_shard_size).isdigit() else max_shard_size
    try:
        if isinstance(size, bool | float) or not re.match(r"[\d.]*[1-9]", str(size)):
            raise ValueError("no room for anything")
        return split_state_dict_into_shards_factory(
            dict(sizes), get_storage_size=lambda bytes_: bytes_, filename_pattern=pattern, max_shard_size=size
        )
    except (ValueError, AttributeError) as error:
        expected = "expected such as '4GB', '500MB' or a number of bytes"
        raise ValueError(f"max_shard_size is {max_shard_size!r} ({error}); {expected}") from error
