"""One trainer for all sizes: a tiny model on two CPU cores and a 7B model on many GPUs run the same loop."""

import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from glamm_mini.checkpoints.save import recover
from glamm_mini.paths import folder_path, write_whole
from glamm_mini.training import checkpoint
from glamm_mini.training.data_order import COUNTS, Batches, keyed_seed, micro_batches
from glamm_mini.training.logs import LossWindow, TrainingLog
from glamm_mini.training.optimizer import clip_gradients, learning_rate_factor, set_learning_rate
from glamm_mini.training.parallel import check_alike, make_accelerator
from glamm_mini.training.run_folder import LAST, SETTINGS, check_same_run, claimed
from glamm_mini.training.settings import TrainSettings

SMALLEST_LOSS_SCALE = 2.0**-10  # fp16: a gradient that overflows even at this scale will not come right


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped on request; its state is saved and its text says how to resume."""


@dataclass(eq=False, repr=False)
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
        out: folder for `last/`, `log.jsonl`, `settings.json`.
        validate: model in evaluation mode -> figures; runs on the first process, or, if the model is sharded, on all,
            which must do the same.
        about: what else the run is, JSON-ready: its start, its data ... A run that is resumed must agree in it, as it
            must in `len(data)`.
    """

    model: nn.Module
    data: Any
    collate: Callable[[list], dict]
    settings: TrainSettings
    out: Path | str
    validate: Callable[[nn.Module], dict[str, float]] | None = None
    about: Mapping[str, Any] | None = None

    def fit(self, resume: bool = False) -> dict[str, Any]:
        """Trains to `settings.steps`, from the last checkpoint if `resume` and there is one.

        Returns the last figures (`step`, `loss`, the parts of the loss, `validation`). `self.model` is then the trained
        model, in evaluation mode; after sharding it is another object than the one given, on the CPU.

        Raises:
            TypeError: an argument is of the wrong kind.
            ValueError: gradients are switched off around the call; `out` holds a run and `resume` is False, or files
                that no run wrote, or another training writes into it; settings or data differ from those of the run to
                resume; its checkpoint is damaged; a loss, gradient or weight is not finite (the last checkpoint is not
                replaced then).
            OSError: a checkpoint could not be written.
            TrainingInterrupted: Ctrl-C or SIGTERM; the state was saved.
        """
        settings, self.out = self.settings, folder_path(self.out, "out")
        if not isinstance(settings, TrainSettings):
            raise TypeError(f"settings is {settings!r}; expected TrainSettings")
        for name in ("collate", "validate"):
            if not callable(found := getattr(self, name)) and (name, found) != ("validate", None):
                raise TypeError(f"{name} is {found!r}; expected a function")
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            raise ValueError("training needs gradients: call fit outside of torch.no_grad() and torch.inference_mode()")
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self.accelerator = make_accelerator(settings)
        main = self.accelerator.is_main_process
        with ExitStack() as self.inside:
            if main:
                self.inside.enter_context(claimed(self.out, resume))
            self._start(resume)
            self.inside.enter_context(layers_recomputed(self.model, settings.gradient_checkpointing))
            self.stop = self.inside.enter_context(stop_request(announce=main))
            self._train()
        self.model = self.state.finish()
        return self.metrics

    def _start(self, resume: bool) -> None:
        accelerator, settings = self.accelerator, self.settings
        main = accelerator.is_main_process
        if main:
            recover(self.out / LAST)
        accelerator.wait_for_everyone()
        batches = Batches(self.data, self.collate, settings, accelerator.process_index, accelerator.num_processes)
        described = {**asdict(settings), "processes": accelerator.num_processes, "samples": batches.size}
        described |= self.about or {}
        found = any((self.out / LAST).glob("[!.]*"))
        if found:
            check_same_run(self.out, described)
        accelerator.wait_for_everyone()
        if main and not found:
            write_whole(self.out / SETTINGS, json.dumps(described, indent=1) + "\n")
            if resume:
                print(f"no checkpoint in {self.out} yet: starting from the first step", file=sys.stderr)
        self.step, self.metrics, self.window = 0, {}, LossWindow()
        self.state = checkpoint.RunState(self.model, settings, accelerator, self.out if found else None)
        self.wrapped, self.optimizer = self.state.wrapped, self.state.optimizer
        if manifest := self.state.manifest:
            self.step, self.metrics = manifest["step"], manifest["metrics"]
            self.window.load(manifest["window"], manifest["window_steps"], accelerator.device)
        self.batches = micro_batches(batches, settings, self.step, pin=accelerator.device.type == "cuda")
        self.inside.callback(delattr, self, "batches")  # and with them the processes that prepare them
        self.log = TrainingLog(self.out, self.step, enabled=main, tensorboard=settings.tensorboard)
        self.inside.callback(self.log.close)
        often = 0.5 if sys.stderr.isatty() else 30  # seconds; a log file needs fewer lines than a terminal
        look = {"unit": "step", "dynamic_ncols": True, "mininterval": often, "disable": not main}
        self.bar = self.inside.enter_context(tqdm(total=settings.steps, initial=self.step, **look))

    def _train(self) -> None:
        settings = self.settings
        self.wrapped.train()
        self.clock = time.perf_counter()
        if self.state.manifest and self._validates() and "validation" not in self.metrics:
            self._validate()  # the run was stopped while it measured
            self._save()
        while self.step < settings.steps:
            batches = [next(self.batches) for _ in range(settings.accumulation)]
            normalizers, stopping = self._agree(batches)
            if stopping:
                self._save()
                raise TrainingInterrupted(
                    f"stopped after step {self.step} of {settings.steps}; saved to {self.out / LAST}. "
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
            if self._validates():
                self._validate()
                if saving:
                    self._save()  # again, with the figures: an error in measuring has cost no step

    def _agree(self, batches: list[dict]) -> tuple[dict[str, float] | None, bool]:
        """Totals over micro-batches and processes, and whether any process was asked to stop."""
        if self.state.sharded:
            check_alike(batches, self.accelerator.device)
        counts = {name: [batch.pop(key, None) for batch in batches] for name, key in COUNTS.items()}
        counts = {name: sum(map(int, values)) for name, values in counts.items() if None not in values}
        totals, processes = [*counts.values(), int(self.stop.is_set())], self.accelerator.num_processes
        if processes > 1:
            totals = self.accelerator.reduce(torch.tensor(totals, device=self.accelerator.device), "sum").tolist()
        *totals, stopping = totals
        normalizers = {name: max(1, total) / processes for name, total in zip(counts, totals, strict=True)}
        return normalizers or None, bool(stopping)

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
            # Shards of gradients are averaged in every micro-batch: whole ones would take the memory that shards save.
            with nullcontext() if accelerator.sync_gradients else accelerator.no_sync(self.wrapped):
                output = self.wrapped(**batch)
                accelerator.backward(output.loss * scale)
            self.window.add({"loss": output.loss, **(getattr(output, "losses", None) or {})}, scale)
        self.window.steps += 1
        if self.state.sharded:
            self.state.sharded.drop_unused()
        norm = self._clip()
        scaler = accelerator.scaler
        if norm is not None and not math.isfinite(norm) and not self.state.engine:
            # Loss scaling in fp16, DeepSpeed's own too, leaves such a step out and scales less in the next.
            if scaler is None or scaler.get_scale() <= SMALLEST_LOSS_SCALE:
                raise self._not_finite(f"the norm of the gradient is {norm} at step {self.step + 1}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm, lr

    def _clip(self) -> float | None:
        """The norm of the gradient before clipping, equal in all processes; None where DeepSpeed does not tell."""
        clip, state = self.settings.clip, self.state
        if self.accelerator.device.type == "cpu" and not (state.sharded or state.engine):
            return float(clip_gradients(self.wrapped, clip))
        # On GPUs float32 sums are accurate; shards of gradients on CPUs are for tests, where they are small.
        norm = self.accelerator.clip_grad_norm_(self.wrapped.parameters(), clip or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        return None if norm is None else float(norm)

    def _not_finite(self, what: str) -> ValueError:
        return ValueError(
            f"{what}: use a lower lr (now {self.settings.lr:.2g}) or another precision (now "
            f"{self.settings.precision}), or look for samples that are not finite. {checkpoint.kept(self.out)}"
        )

    def _finite_means(self) -> dict[str, float]:
        losses = self.window.means(lambda values: self.accelerator.reduce(values, "mean"))
        if not math.isfinite(losses.get("loss", 0.0)):
            steps = f"{self.step - self.window.steps + 1} to {self.step}"
            raise self._not_finite(f"the mean loss of the steps {steps} is {losses['loss']}")
        return losses

    def _log(self, norm: float | None, lr: float) -> None:
        losses, steps = self._finite_means(), self.window.steps
        seconds = time.perf_counter() - self.clock
        samples = self.settings.batch_size * self.settings.accumulation * self.accelerator.num_processes * steps
        record = {"lr": lr, **losses, "grad_norm": norm, "seconds": round(seconds, 3)}
        self.log.write(self.step, {**record, "samples_per_second": round(samples / seconds, 2)})
        self.metrics = {"step": self.step, **losses}
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()}, refresh=False)
        self.window, self.clock = LossWindow(), time.perf_counter()

    def _validates(self) -> bool:
        """Whether this step is one that ends with a validation, and its figures are those of the log's last line."""
        every = self.settings.validate_every
        due = self.step == self.settings.steps or (every and self.step and self.step % every == 0)
        return bool(due) and self.validate is not None

    def _validate(self) -> None:
        started, sharded = time.perf_counter(), self.state.sharded
        if self.accelerator.is_main_process or sharded:
            model = self.accelerator.unwrap_model(self.wrapped).eval()
            # A model of several types (frozen parts in half precision, or gathered so) computes under autocast alone.
            several = sharded or len({parameter.dtype for parameter in model.parameters()}) > 1
            autocast = self.accelerator.autocast() if several else nullcontext()
            with torch.no_grad(), autocast, sharded.unsharded() if sharded else nullcontext():
                figures = self.metrics["validation"] = dict(self.validate(model))
            self.log.write(self.step, {"validation": figures})
            odd = [name for name, figure in figures.items() if isinstance(figure, float) and not math.isfinite(figure)]
            if odd and self.accelerator.is_main_process:
                words = ", ".join(f"{name} is {figures[name]}" for name in odd)
                print(f"validation at step {self.step}: {words}", file=sys.stderr)
        self.accelerator.wait_for_everyone()
        self.wrapped.train()
        self.clock += time.perf_counter() - started

    def _save(self) -> None:
        window, steps = self._finite_means(), self.window.steps
        if not self.state.is_finite():
            raise self._not_finite(f"weights or the optimizer's moments are not finite at step {self.step}")
        self.state.save(self.out, {"step": self.step, "metrics": self.metrics, "window": window, "window_steps": steps})
        # Go on from the same rounding of the sums as a resumed run will.
        self.window.load(window, steps, self.accelerator.device)


@contextmanager
def layers_recomputed(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, transformers models among the modules of `model` keep only their layers' inputs, if `wanted`, and compute
    layers again in the backward pass. A frozen encoder, through which no gradient flows, keeps nothing anyway.
    Raises ValueError if there is no model that can.
    """
    found = _outermost(model, "supports_gradient_checkpointing") if wanted else []
    if wanted and not found:
        raise ValueError("gradient_checkpointing needs a transformers model with supports_gradient_checkpointing")
    # transformers renames these methods; floors have the old names alone.
    kind = "activation" if all(hasattr(m, "activation_checkpointing_enable") for m in found) else "gradient"
    for module in found:
        getattr(module, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        if hasattr(module, "disable_input_require_grads"):  # else frozen encoders would run twice, for nothing
            module.disable_input_require_grads()
    try:
        yield
    finally:
        for module in found:
            getattr(module, f"{kind}_checkpointing_disable")()


def _outermost(module: nn.Module, flag: str) -> list[nn.Module]:
    """Modules that have the flag, without those inside of one."""
    return [module] if getattr(module, flag, False) else [m for c in module.children() for m in _outermost(c, flag)]


@contextmanager
def stop_request(announce: bool = True) -> Iterator[threading.Event]:
    """Inside, the first Ctrl-C or SIGTERM only sets the event; a second Ctrl-C interrupts at once. Outside the main
    thread, where Python allows no handlers, it changes nothing."""
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt("training stopped at once; the last checkpoint is kept")
        asked.set()
        if announce:
            print("\nstopping after this step and saving (Ctrl-C again stops at once)", file=sys.stderr, flush=True)

    able = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM) if able}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
