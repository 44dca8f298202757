"""What a run holds: model, optimizer and moving average, laid out over its processes, saved and loaded together."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from glamm_mini.training import resume as checkpoint
from glamm_mini.training.averaging import MovingAverage
from glamm_mini.training.optimizer import build_optimizer
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.sharding import Sharded, slice_like, slice_state
from glamm_mini.training.slices import load_slices, save_slices


class RunState:
    """One of three layouts: whole in every process, in slices (`shard="full"` and several processes), DeepSpeed's.

    Args:
        model: whole, on the CPU; sharding changes it in place until `finish`.
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
        manifest = checkpoint.read_manifest(out) if out else None
        stored = checkpoint.shared_folder(out) if out else None
        if out and (stored == checkpoint.ENGINE) != self.engine:
            held, now = ("DeepSpeed's", "without") if stored else ("a plain one", "with")
            raise ValueError(f"the checkpoint in {out} is {held}, this run is {now} DeepSpeed; launch it as before")
        whole = checkpoint.load_weights(model, out, self.names()) if out and stored is None else None
        precision = accelerator.mixed_precision
        self.sharded = Sharded(model, accelerator.device.type, precision) if shard else None
        optimizer = build_optimizer(model, settings)
        if shard:
            # Accelerate adds autocast; for its other work the model is one that only this process has.
            self.wrapped = accelerator.prepare_model(model, evaluation_mode=True)
            self.optimizer = accelerator.prepare_optimizer(optimizer)
        else:
            self.wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = MovingAverage(model, settings.ema) if settings.ema else None
        self.manifest = manifest
        if whole is not None:
            self._take(whole)
        elif stored == checkpoint.SHARDED:
            folder = out / checkpoint.LAST / stored
            load_slices(folder, model, self.names(), self.optimizer.optimizer, self._averages())
        elif stored:
            accelerator.load_state(str(out / checkpoint.LAST / stored))

    def names(self) -> set[str]:
        """Names of the model's tensors in a checkpoint: all, or without frozen parameters if the settings say so."""
        frozen = {name for name, p in self.model.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return set(self.model.state_dict()) - (set() if self.settings.save_frozen else frozen)

    def _take(self, state: dict[str, Any]) -> None:
        """The training state of a checkpoint that one process wrote; its weights are in the model already."""
        moments = state["optimizer"]
        self.optimizer.load_state_dict(slice_state(self.optimizer, moments) if self.sharded else moments)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average:
            own = self.average.state_dict()
            self.average.load_state_dict({name: slice_like(t, own[name]) for name, t in state["average"].items()})

    def _averages(self) -> dict[str, torch.Tensor] | None:
        return self.average.state_dict() if self.average else None

    def save(self, out: Path, manifest: dict[str, Any]) -> None:
        """Replaces `out/last`; all processes call it together.

        Raises:
            OSError: in every process, if one could not write; the earlier checkpoint is untouched.
        """
        accelerator, shared, failure = self.accelerator, None, None
        if self.sharded or self.engine:
            shared = checkpoint.ENGINE if self.engine else checkpoint.SHARDED
            if accelerator.is_main_process:
                shutil.rmtree(out / shared, ignore_errors=True)  # what a kill while saving left behind
            accelerator.wait_for_everyone()
        try:
            if self.engine:
                accelerator.save_state(str(out / shared))
            elif self.sharded:
                self.sharded.slices()
                save_slices(out / shared, self.model, self.names(), self.optimizer.optimizer, self._averages())
            if accelerator.is_main_process:
                weights, training = (None, None) if shared else (self._weights(), self._training_state())
                checkpoint.save(out, manifest, weights, training, shared)
        except OSError as error:
            failure = error
        failed = torch.tensor([int(failure is not None)], device=accelerator.device)
        if int(accelerator.reduce(failed, "sum")):
            raise failure or OSError("another process could not save the checkpoint; its message says why")

    def _weights(self) -> dict[str, torch.Tensor]:
        names = self.names()
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in names}

    def _training_state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "average": self.average.state_dict() if self.average else {},
        }

    def for_validation(self) -> AbstractContextManager:
        """Inside, the model can be called in every way; slices need all processes for that."""
        return self.sharded.gathered() if self.sharded else nullcontext()

    def finish(self) -> nn.Module:
        """The trained model by itself, in evaluation mode, with the moving average if there is one.

        After sharding it is on the CPU, in every process. DeepSpeed's ZeRO-3 leaves its parameters divided.
        """
        if self.average:
            self.average.swap()
        model = self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if self.sharded:
            self.sharded.undo()
        return model.eval()
