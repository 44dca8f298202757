"""One trainer for all sizes: a tiny model on two CPU cores and a 7B model on many GPUs run the same loop."""

import math
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from glamm_mini.training import resume as checkpoint
from glamm_mini.training.data_order import COUNTS, Batches, keyed_seed, micro_batches
from glamm_mini.training.held_out import held_out_loss
from glamm_mini.training.launch import check_whole_model, claim_folder, make_accelerator
from glamm_mini.training.logs import LossWindow, TrainingLog
from glamm_mini.training.optimizer import learning_rate_factor, set_learning_rate
from glamm_mini.training.recompute import recomputed
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.sharding import check_alike
from glamm_mini.training.states import RunState
from glamm_mini.training.stopping import StopRequest, TrainingInterrupted


class Trainer:
    """Trains `model` on `data`; killed at any moment, it goes on from `out/last` with the same losses.

    Args:
        model: `model(**batch)` returns a dataclass (a transformers ModelOutput is one; DistributedDataParallel looks
            for tensors in no other object) with `loss`, a scalar, and, if it has several, `losses`, a dict.
        data: `data[i]` is a sample, the same for the same i; `len(data)` may be absent (endless data).
        collate: list of samples -> the batch, a dict. The ints `num_tokens` and `num_masks` in it are taken out; the
            model then gets `normalizers={"tokens": ..., "masks": ...}`, the totals of the whole optimizer step
            divided by the number of processes (whose gradients are averaged), and losses of micro-batches are summed.
            Without them, the mean over micro-batches is taken.
        settings: see TrainSettings.
        out: folder for `last/`, `log.jsonl`, `settings.json`.
        validate: model in evaluation mode -> figures; runs on the first process, or, if the model is sharded, on all,
            which must do the same.
        evaluation_loss_data: samples whose mean loss is logged with the validation.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        collate: Callable[[list], dict],
        settings: TrainSettings,
        out: Path | str,
        validate: Callable[[nn.Module], dict[str, float]] | None = None,
        evaluation_loss_data: Any = None,
    ) -> None:
        self.model, self.data, self.collate, self.settings = model, data, collate, settings
        self.out, self.validate, self.evaluation_loss_data = Path(out), validate, evaluation_loss_data

    def fit(self, resume: bool = False, whole: bool = True) -> dict[str, Any]:
        """Trains to `settings.steps`, from the last checkpoint if `resume` and there is one.

        whole: the model is needed afterwards. Without that, and without validation, DeepSpeed's ZeRO-3 may divide it.

        Returns:
            The last figures (`step`, `loss`, the parts of the loss, `validation`). The model holds the trained
            weights (their moving average if `settings.ema`), in evaluation mode; after sharding it is on the CPU.

        Raises:
            ValueError: `out` holds a run and `resume` is False; settings differ from those of the run to resume; its
                checkpoint is damaged; the loss is not finite; ZeRO-3 with a model to validate or to keep.
            OSError: a checkpoint could not be written.
            TrainingInterrupted: Ctrl-C or SIGTERM; the state was saved.
        """
        self._start(resume, whole)
        recompute = recomputed(self.model, self.settings.gradient_checkpointing)
        try:
            with recompute, StopRequest(announce=self.accelerator.is_main_process) as self.stop:
                self._train()
        finally:
            self.log.close()
            self.bar.close()
            self.batches = None
        self.model = self.state.finish()
        return self.metrics

    # ---- start ----

    def _start(self, resume: bool, whole: bool) -> None:
        settings = self.settings
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.accelerator = make_accelerator(settings)
        if whole or self.validate is not None or self.evaluation_loss_data is not None:
            check_whole_model(self.accelerator)
        resume = claim_folder(self.accelerator, self.out, settings, resume)
        self.step, self.metrics, self.window = 0, {}, LossWindow()
        self.state = RunState(self.model, settings, self.accelerator, self.out if resume else None)
        self.wrapped, self.optimizer, self.average = self.state.wrapped, self.state.optimizer, self.state.average
        if manifest := self.state.manifest:
            self.step, self.metrics = manifest["step"], manifest["metrics"]
            self.window.load(manifest["window"], manifest["window_steps"], self.accelerator.device)
        self._open_outputs()

    def _open_outputs(self) -> None:
        accelerator, settings = self.accelerator, self.settings
        main = accelerator.is_main_process
        batches = Batches(self.data, self.collate, settings, accelerator.process_index, accelerator.num_processes)
        self.batches = micro_batches(batches, settings, self.step, pin=accelerator.device.type == "cuda")
        self.log = TrainingLog(self.out, self.step, enabled=main, tensorboard=settings.tensorboard)
        often = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file needs fewer lines than a terminal
        look = {"unit": "step", "dynamic_ncols": True, "mininterval": often}
        self.bar = tqdm(total=settings.steps, initial=self.step, disable=not main, **look)

    # ---- the loop ----

    def _train(self) -> None:
        settings = self.settings
        self.wrapped.train()
        self.clock = time.perf_counter()
        while self.step < settings.steps:
            batches = [next(self.batches) for _ in range(settings.accumulation)]
            normalizers, stopping = self._agree(batches)
            if stopping:
                self._save()
                raise TrainingInterrupted(
                    f"stopped after step {self.step} of {settings.steps}; saved to {self.out / checkpoint.LAST}. "
                    "Run the same again with resume=True (--resume on the command line) to go on"
                )
            norm, lr = self._optimize(batches, normalizers)
            self.step += 1
            self.bar.update()
            finished = self.step == settings.steps
            if self.step % settings.log_every == 0 or finished:
                self._log(norm, lr)
            saving = finished or self.step % settings.save_every == 0
            if saving:
                self._save()
            if finished or (settings.validate_every and self.step % settings.validate_every == 0):
                self._validate()
                if saving:
                    self._save()  # again, with the figures: an error in measuring has cost no step

    def _agree(self, batches: list[dict]) -> tuple[dict[str, float] | None, bool]:
        """Totals over micro-batches and processes, and whether any process was asked to stop."""
        if self.state.sharded:
            check_alike(batches, self.accelerator.device)
        counts = {name: [batch.pop(key, None) for batch in batches] for name, key in COUNTS.items()}
        counts = {name: values for name, values in counts.items() if None not in values}
        totals = [sum(int(v) for v in values) for values in counts.values()] + [int(self.stop.asked)]
        processes = self.accelerator.num_processes
        if processes > 1:
            vector = torch.tensor(totals, dtype=torch.int64, device=self.accelerator.device)
            totals = self.accelerator.reduce(vector, "sum").tolist()
        normalizers = {name: max(1, total) / processes for name, total in zip(counts, totals[:-1], strict=True)}
        return normalizers or None, bool(totals[-1])

    def _optimize(self, batches: list[dict], normalizers: dict[str, float] | None) -> tuple[Any, float]:
        """One optimizer step; returns the norm of the gradient before clipping, and the learning rate."""
        accelerator, settings = self.accelerator, self.settings
        lr = set_learning_rate(self.optimizer, learning_rate_factor(self.step, settings))
        # Dropout depends on the step alone, so that a resumed run repeats it without a stored random state.
        set_seed(keyed_seed("dropout", settings.seed, self.step, accelerator.process_index) % 2**32)
        scale = 1.0 if normalizers else 1.0 / len(batches)
        for i, batch in enumerate(batches):
            batch = send_to_device(batch, accelerator.device, non_blocking=True)
            if normalizers:
                batch["normalizers"] = normalizers
            accelerator.sync_gradients = i == len(batches) - 1  # DeepSpeed asks for it
            # Slices of gradients are averaged in every micro-batch: whole ones would take the memory that slices save.
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(self.wrapped):
                output = self.wrapped(**batch)
                accelerator.backward(output.loss * scale)
            self.window.add({"loss": output.loss, **(getattr(output, "losses", None) or {})}, scale)
        self.window.steps += 1
        if self.state.sharded:
            self.state.sharded.drop_unused()
        norm = accelerator.clip_grad_norm_(self.wrapped.parameters(), settings.clip or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.step)
        return norm, lr

    def _means(self) -> dict[str, float]:
        return self.window.means(lambda values: self.accelerator.reduce(values, "mean"))

    def _log(self, norm: Any, lr: float) -> None:
        losses, steps = self._means(), self.window.steps
        if not math.isfinite(losses["loss"]):
            raise ValueError(
                f"the loss is {losses['loss']} at step {self.step}: use a lower lr (now {lr:.2g}) or another precision "
                f"(now {self.settings.precision}). The last checkpoint in {self.out} is kept"
            )
        seconds = time.perf_counter() - self.clock
        samples = self.settings.batch_size * self.settings.accumulation * self.accelerator.num_processes * steps
        record = {"lr": lr, **losses, "grad_norm": None if norm is None else float(norm), "seconds": round(seconds, 3)}
        self.log.write(self.step, {**record, "samples_per_second": round(samples / seconds, 2)})
        self.metrics = {"step": self.step, **losses}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
        self.window, self.clock = LossWindow(), time.perf_counter()

    # ---- validation and saving ----

    def _validate(self) -> None:
        if self.validate is None and self.evaluation_loss_data is None:
            return
        started = time.perf_counter()
        if self.average:
            self.average.swap()
        if self.accelerator.is_main_process or self.state.sharded:
            model = self.accelerator.unwrap_model(self.wrapped)
            model.eval()
            with torch.no_grad(), self._precision_of(model), self.state.for_validation():
                self.metrics["validation"] = self._figures(model)
            self.log.write(self.step, {"validation": self.metrics["validation"]})
        self.accelerator.wait_for_everyone()
        if self.average:
            self.average.swap()
        self.wrapped.train()
        self.clock += time.perf_counter() - started

    def _precision_of(self, model: nn.Module) -> AbstractContextManager:
        """A model of several types (frozen parts in half precision, or gathered so) computes under autocast alone."""
        several = self.state.sharded or len({parameter.dtype for parameter in model.parameters()}) > 1
        return self.accelerator.autocast() if several else nullcontext()

    def _figures(self, model: nn.Module) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.evaluation_loss_data is not None:
            data, size = self.evaluation_loss_data, self.settings.batch_size
            figures["loss"] = held_out_loss(model, data, self.collate, size, self.accelerator.device)
        if self.validate is not None:
            figures.update(self.validate(model))
        return figures

    def _save(self) -> None:
        window, steps = self._means(), self.window.steps
        self.state.save(self.out, {"step": self.step, "metrics": self.metrics, "window": window, "window_steps": steps})
        # Go on from the same rounding of the sums as a resumed run will.
        self.window.load(window, steps, self.accelerator.device)
