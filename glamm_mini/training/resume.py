"""The checkpoint a run resumes from: `out/last`, replaced as a whole, so that a kill while saving loses nothing."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from glamm_mini.training.settings import differing

LAST, NEW, OLD = "last", "last.new", "last.old"
SHARDED, ENGINE = "sharded", "deepspeed"
"""Folders in a checkpoint that several processes wrote together: the slices of a sharded run, or DeepSpeed's state."""

WEIGHTS, TRAINING, MANIFEST, SETTINGS = "model.safetensors", "training.pt", "checkpoint.json", "settings.json"


def save(
    out: Path,
    manifest: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
    training: dict[str, Any] | None = None,
    shared: str | None = None,
) -> None:
    """Writes `out/last` through a folder beside it, which takes its place when all is on disk.

    Args:
        out: folder of the run.
        manifest: what the checkpoint is (`step`, `metrics`); the sizes of the files are added.
        weights: the model's tensors.
        training: everything else, of types that `torch.load(weights_only=True)` reads.
        shared: instead of both, the folder in `out` that all processes have written; it is moved in.

    Raises:
        OSError: the files could not be written; the earlier checkpoint is untouched.
    """
    new, last, old = out / NEW, out / LAST, out / OLD
    recover(out)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        if shared is not None:
            os.rename(out / shared, new / shared)
        else:
            save_file(_unshared(weights), str(new / WEIGHTS), metadata={"format": "pt"})
            torch.save(training, new / TRAINING)
        files = {str(p.relative_to(new)): p.stat().st_size for p in sorted(new.rglob("*")) if p.is_file()}
        (new / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1), encoding="utf-8")
        for path in new.rglob("*"):
            _to_disk(path)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        kept = f"the checkpoint of step {read_manifest(out)['step']} is kept" if last.exists() else "none was saved yet"
        raise OSError(
            f"could not save the checkpoint of step {manifest['step']} to {last}: {error}. {kept}. "
            f"Is the disk full? {_free(out)} are free; make room, then resume"
        ) from error
    if last.exists():
        os.rename(last, old)
    os.rename(new, last)
    _to_disk(out)
    shutil.rmtree(old, ignore_errors=True)


def recover(out: Path) -> None:
    """Finishes a replacement that a kill cut short: between its two renames `last` is missing."""
    if not (out / LAST).exists() and (out / OLD).exists():
        os.rename(out / OLD, out / LAST)
    shutil.rmtree(out / OLD, ignore_errors=True)


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of `out/last`, its files checked to be there in full.

    Raises:
        ValueError: a file is missing, cut short or unreadable; the text says what to do.
    """
    folder = out / LAST
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(_damaged(folder, f"{MANIFEST} cannot be read ({error})")) from None
    for name, size in files.items():
        path = folder / name
        if not path.exists():
            raise ValueError(_damaged(folder, f"{name} is missing"))
        if path.stat().st_size != size:
            raise ValueError(_damaged(folder, f"{name} has {path.stat().st_size} bytes, expected {size}"))
    return manifest


def shared_folder(out: Path) -> str | None:
    """SHARDED or ENGINE if `out/last` was written by several processes together, None if by the first alone."""
    return next((name for name in (SHARDED, ENGINE) if (out / LAST / name).is_dir()), None)


def load_weights(model: nn.Module, out: Path, names: set[str]) -> dict[str, Any]:
    """Loads the weights of `out/last` into `model` and returns the training state stored beside them.

    Args:
        names: the tensors that the checkpoint must hold.

    Raises:
        ValueError: a file is damaged, or the checkpoint is of another model.
    """
    folder = out / LAST
    try:
        weights = load_file(str(folder / WEIGHTS))
        state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(_damaged(folder, f"it cannot be read ({error})")) from error
    current = model.state_dict()
    odd = names.symmetric_difference(weights) | {
        name for name in names & set(weights) if current[name].shape != weights[name].shape
    }
    if odd:
        listed = ", ".join(sorted(odd)[:5])
        raise ValueError(f"the checkpoint {folder} is of another model: {len(odd)} tensors differ, such as {listed}")
    model.load_state_dict(weights, strict=False)
    return state


def check_settings(out: Path, wanted: dict[str, Any]) -> None:
    """Compares with the settings that the run in `out` started with.

    Raises:
        ValueError: settings differ that change what is learned; the text names each with both values.
    """
    path = out / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot resume: {path} cannot be read ({error})") from None
    names = differing(stored, wanted)
    if names:
        listed = "; ".join(f"{name} was {stored.get(name)!r}, now {wanted.get(name)!r}" for name in names)
        raise ValueError(
            f"cannot resume {out} with other settings: {listed}. "
            "Resume with the same settings, or start anew in another folder"
        )


def write_settings(out: Path, settings: dict[str, Any]) -> None:
    """Writes `out/settings.json` as a whole."""
    temporary = out / (SETTINGS + ".new")
    temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, out / SETTINGS)


def _unshared(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each with memory of its own: safetensors stores no shared ones."""
    seen: set[int] = set()
    result = {}
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    # Windows syncs nothing that was not opened for writing.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _free(out: Path) -> str:
    return f"{shutil.disk_usage(out).free / 2**20:.0f} MiB"


def _damaged(folder: Path, what: str) -> str:
    return (
        f"the checkpoint {folder} is damaged: {what}. It was changed or cut short after it was saved (an incomplete "
        "copy?): copy it again in full, or delete the folder and train anew"
    )
