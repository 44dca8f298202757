"""What a run holds, laid out over its processes, and the checkpoint `out/last` that it resumes from.

accelerate's `save_state` is used for DeepSpeed alone: it writes into place, so that a kill while it writes loses both
states, it pickles, and it stores frozen weights. Here `last` is replaced as a whole, after all of it is on disk.
"""

import json
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from glamm_mini.training.optimizer import build_optimizer
from glamm_mini.training.run_folder import LAST, MANIFEST
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.sharding import Sharded, check_shapes, load_shards, save_shards, shard_state

SHARDED, ENGINE = "sharded", "deepspeed"
"""Folders in a checkpoint that several processes wrote together: the shards of a model, or DeepSpeed's state."""

WEIGHTS, TRAINING = "model.safetensors", "training.pt"


class RunState:
    """Model and optimizer in one of three layouts: whole in every process, in shards (`shard="full"` and several
    processes), or DeepSpeed's.

    Args:
        model: whole, on the CPU; sharding changes it for good, see `finish`.
        accelerator: of the run.
        out: folder of a run to resume, whose checkpoint is loaded; None starts from the weights that `model` has.

    Raises:
        ValueError: settings that do not go together; a checkpoint that is damaged, or of another model or layout.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, accelerator: Accelerator, out: Path | None = None
    ) -> None:
        self.model, self.settings, self.accelerator = model, settings, accelerator
        self.engine = accelerator.distributed_type == DistributedType.DEEPSPEED
        shard = settings.shard == "full" and accelerator.num_processes > 1
        if shard and settings.muon_lr:
            raise ValueError("Muon needs whole matrices: set muon_lr=0, or shard=none")
        self.manifest = read_manifest(out) if out else None
        stored = shared_folder(out) if out else None
        if out and (stored == ENGINE) != self.engine:
            held, now = ("DeepSpeed's", "without") if stored else ("a plain one", "with")
            raise ValueError(f"the checkpoint in {out} is {held}, this run is {now} DeepSpeed; launch it as before")
        training = _load_whole(model, out, self.names()) if out and stored is None else None
        self.sharded = Sharded(model, accelerator.device.type, accelerator.mixed_precision) if shard else None
        optimizer = build_optimizer(model, settings)
        if shard:
            # Accelerate adds autocast; for its other work the model is one that only this process has.
            self.wrapped = accelerator.prepare_model(model, evaluation_mode=True)
            self.optimizer = accelerator.prepare_optimizer(optimizer)
        else:
            self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        if training is not None:
            moments = training["optimizer"]
            self.optimizer.load_state_dict(shard_state(self.optimizer, moments) if shard else moments)
            if accelerator.scaler is not None and training["scaler"]:
                accelerator.scaler.load_state_dict(training["scaler"])
        elif stored == SHARDED:
            load_shards(out / LAST / stored, model, self.names(), self.optimizer.optimizer)
        elif stored:
            accelerator.load_state(str(out / LAST / stored))

    def names(self) -> set[str]:
        """Names of the model's tensors in a checkpoint: all, or without frozen parameters if the settings say so."""
        frozen = {name for name, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return set(self.model.state_dict()) - (set() if self.settings.save_frozen else frozen)

    def is_finite(self) -> bool:
        """Whether all that is trained, and the optimizer's moments, are finite numbers, in every process."""
        tensors = [p for p in self.model.parameters() if p.requires_grad]
        if not self.engine:  # DeepSpeed's optimizer keeps its state in forms of its own
            tensors += [v for entry in self.optimizer.state.values() for v in entry.values() if torch.is_tensor(v)]
        here = [t.detach().to_local() if isinstance(t, DTensor) else t.detach() for t in tensors]
        odd = [(~torch.isfinite(t)).any().to(self.accelerator.device) for t in here]
        return not self._anywhere(torch.stack(odd).any())

    def _anywhere(self, flag: Any) -> bool:
        return bool(self.accelerator.reduce(torch.tensor([int(flag)], device=self.accelerator.device), "sum"))

    def save(self, out: Path, manifest: dict[str, Any]) -> None:
        """Replaces `out/last`; all processes call it together.

        Raises:
            OSError: in every process, if one could not write; the earlier checkpoint is untouched.
        """
        accelerator, shared, failure = self.accelerator, None, None
        if self.sharded or self.engine:
            shared = ENGINE if self.engine else SHARDED
            if accelerator.is_main_process:
                shutil.rmtree(out / shared, ignore_errors=True)  # what a kill while saving left behind
            accelerator.wait_for_everyone()
        try:
            if self.engine:
                accelerator.save_state(str(out / shared))
            elif self.sharded:
                self.sharded.reshard()
                save_shards(out / shared, self.model, self.names(), self.optimizer.optimizer)
            if accelerator.is_main_process:
                write(out, manifest, *([None, None] if shared else self._whole()), shared)
        except OSError as error:
            failure = error
        if self._anywhere(failure is not None):
            raise failure or OSError("another process could not save the checkpoint; its message says why")

    def _whole(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        names, scaler = self.names(), self.accelerator.scaler
        weights = {name: tensor for name, tensor in self.model.state_dict().items() if name in names}
        return weights, {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def for_validation(self) -> AbstractContextManager:
        """Inside, the model can be called in every way; shards need all processes for that."""
        return self.sharded.unsharded() if self.sharded else nullcontext()

    def finish(self) -> nn.Module:
        """The trained model by itself, in evaluation mode; after sharding another object, on the CPU, in every
        process. DeepSpeed's ZeRO-3 leaves its parameters divided."""
        model = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        return (self.sharded.whole() if self.sharded else model).eval()


def write(
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
    last, new, old = places(out)
    recover(out)
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        if shared is not None:
            shutil.move(out / shared, new / shared)
        else:
            write_tensors(new / WEIGHTS, weights)
            torch.save(training, new / TRAINING)
        files = {p.relative_to(new).as_posix(): p.stat().st_size for p in sorted(new.rglob("*")) if p.is_file()}
        (new / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1), encoding="utf-8")
        for path in new.rglob("*"):
            if path.is_file():
                shutil.copymode(new / MANIFEST, path)
            _to_disk(path)
    except Exception as error:
        shutil.rmtree(new, ignore_errors=True)
        raise OSError(
            f"could not save the checkpoint of step {manifest['step']} to {last}: {error}. {kept(out)}. "
            f"Is the disk full? {shutil.disk_usage(out).free / 2**20:.0f} MiB are free; make room, then resume"
        ) from error
    if last.exists():
        os.rename(last, old)
    os.rename(new, last)
    _to_disk(last.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file that others may read as they may read any file of the user's: safetensors itself takes
    that right from them. Tensors that share memory are written each in full."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    path.touch()
    mode = path.stat().st_mode
    save_file(own, str(path), metadata={"format": "pt"})
    path.chmod(mode)


def places(out: Path) -> tuple[Path, Path, Path]:
    """`out/last`, where it is written anew, and where the old one waits meanwhile. A link in its place stays one: what
    it points to is replaced."""
    last = Path(os.path.realpath(out / LAST))
    return last, last.with_name(f"{last.name}.new"), last.with_name(f"{last.name}.old")


def recover(out: Path) -> None:
    """Finishes a replacement that a kill cut short: between its two renames `last` is missing."""
    last, _, old = places(out)
    if not last.exists() and old.exists():
        os.rename(old, last)
    shutil.rmtree(old, ignore_errors=True)


def kept(out: Path) -> str:
    """What an error says of the checkpoint that is there."""
    if not (out / LAST).exists():
        return "No checkpoint was saved yet"
    return f"The checkpoint of step {read_manifest(out)['step']} is kept in {out / LAST}"


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


def _load_whole(model: nn.Module, out: Path, names: set[str]) -> dict[str, Any]:
    """Loads the weights of `out/last` into `model`, which must be `names`; returns the state stored beside them."""
    folder = out / LAST
    try:
        weights = load_file(str(folder / WEIGHTS))
        training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(_damaged(folder, f"it cannot be read ({error})")) from error
    current = model.state_dict()
    check_shapes(folder, weights, {name: current[name] for name in names})
    model.load_state_dict(weights, strict=False)
    return training


def _to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    # Windows syncs what is open for writing alone, other systems open folders for reading alone.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _damaged(folder: Path, what: str) -> str:
    return (
        f"the checkpoint {folder} is damaged: {what}. It was changed or cut short after it was saved (an incomplete "
        "copy?): copy it again in full, or delete the folder and train anew"
    )
