"""What a run holds, laid out over its processes, and the checkpoint `out/last` that it resumes from.

accelerate's `save_state` is used for DeepSpeed alone: it writes into place, so that a kill while it writes loses both
states, it pickles, and it stores frozen weights.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, recursively_apply
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from glamm_mini.checkpoints.save import open_to_all, whole_folder
from glamm_mini.training.optimizer import build_optimizer
from glamm_mini.training.parallel import Sharded, shard_state
from glamm_mini.training.run_folder import LAST, MANIFEST, damaged, read_manifest
from glamm_mini.training.settings import TrainSettings

WEIGHTS, TRAINING = "model.safetensors", "training.pt"
ENGINE = "deepspeed"  # in place of both files, the folder of what DeepSpeed's processes wrote together


class RunState:
    """Model and optimizer in one of three layouts: whole in every process, in shards (`shard="full"` and several
    processes), or DeepSpeed's. The first two have the same checkpoints.

    model: whole, on the CPU; sharding changes it for good, see `finish`. out: folder of a run to resume; None starts
    from the weights that `model` has. Raises ValueError for settings that do not go together, and for a checkpoint
    that is damaged, of another model, or of DeepSpeed where this run is not.
    """

    def __init__(self, model: nn.Module, settings: TrainSettings, accelerator: Accelerator, out: Path | None = None):
        self.model, self.accelerator = model, accelerator
        self.engine = accelerator.distributed_type == DistributedType.DEEPSPEED
        shard = settings.shard == "full" and accelerator.num_processes > 1
        if shard and settings.muon_lr:
            raise ValueError("Muon needs whole matrices: set muon_lr=0, or shard=none")
        frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        self.left_out = set() if settings.save_frozen else frozen
        self.manifest = read_manifest(out) if out else None
        if out and (out / LAST / ENGINE).is_dir() != self.engine:
            held, now = ("a plain one", "with") if self.engine else ("DeepSpeed's", "without")
            raise ValueError(f"the checkpoint in {out} is {held}, this run is {now} DeepSpeed; launch it as before")
        training = self._load(out / LAST, shard) if out and not self.engine else None
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
        elif out:
            accelerator.load_state(str(out / LAST / ENGINE))

    def _load(self, folder: Path, shard: bool) -> dict[str, Any]:
        """Loads the stored weights, which must be those of the model; returns the state stored beside them."""
        try:
            weights = load_file(str(folder / WEIGHTS))
            # Of moments that will be cut, a process needs no copy of its own.
            training = torch.load(folder / TRAINING, map_location="cpu", weights_only=True, mmap=shard)
        except Exception as error:
            raise ValueError(damaged(folder, f"it cannot be read ({error})")) from error
        found, wanted = ({name: tensor.shape for name, tensor in t.items()} for t in (weights, self._stored()))
        if odd := sorted({name for name, _ in found.items() ^ wanted.items()}):
            raise ValueError(f"{folder} is of another model: {len(odd)} tensors differ, such as {', '.join(odd[:5])}")
        self.model.load_state_dict(weights, strict=False)
        return training

    def _stored(self) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.model.state_dict().items() if name not in self.left_out}

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
        """Replaces `out/last`; all processes call it together. manifest: what the checkpoint is (`step`, `metrics`).
        Raises OSError in every process if one could not write; the earlier checkpoint is untouched then."""
        main, failure = self.accelerator.is_main_process, None
        if self.engine and main:
            shutil.rmtree(out / ENGINE, ignore_errors=True)  # what a kill while saving left behind
        self.accelerator.wait_for_everyone()
        try:
            if self.engine:
                self.accelerator.save_state(str(out / ENGINE))
            else:
                weights, training = self._gathered()
            if main:
                with whole_folder(out / LAST, mine=True) as new:
                    if self.engine:
                        shutil.move(out / ENGINE, new / ENGINE)
                    else:
                        write_tensors(new / WEIGHTS, weights)
                        torch.save(training, new / TRAINING)
                    files = {p.relative_to(new).as_posix(): p.stat().st_size for p in new.rglob("[!.]*") if p.is_file()}
                    (new / MANIFEST).write_text(json.dumps({**manifest, "files": files}, indent=1), encoding="utf-8")
        except Exception as error:  # torch and safetensors have words of their own for a full disk
            failure = error
        if self._anywhere(failure is not None):
            why = failure or "the message of another process says why"
            raise OSError(f"no checkpoint of step {manifest['step']} was saved: {why}. {kept(out)}") from failure

    def _gathered(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What the two files hold, whole in the first process; the others only bring their shards."""
        if self.sharded:
            self.sharded.reshard()
        scaler = self.accelerator.scaler

        def whole(tensor: torch.Tensor) -> torch.Tensor | None:
            if not isinstance(tensor, DTensor):
                return tensor
            tensor = tensor.full_tensor()
            return tensor.cpu() if self.accelerator.is_main_process else None

        training = {"optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler else {}}
        return recursively_apply(whole, self._stored()), recursively_apply(whole, training)

    def finish(self) -> nn.Module:
        """The trained model by itself, in evaluation mode; after sharding another object, on the CPU."""
        model = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        return (self.sharded.whole() if self.sharded else model).eval()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file with the rights of the user's other files; tensors that share memory each in full."""
    seen: set[int] = set()
    own = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    save_file(own, str(path), metadata={"format": "pt"})
    open_to_all(path.parent)


def kept(out: Path) -> str:
    """What an error says of the checkpoint that is there."""
    if not (out / LAST).exists():
        return "No checkpoint was saved yet"
    return f"The checkpoint of step {read_manifest(out)['step']} is kept in {out / LAST}"
