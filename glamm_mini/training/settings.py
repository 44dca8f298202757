"""What a training run is made of, in one dataclass: the trainer reads nothing else."""

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from typing import Any

FREE_ON_RESUME = frozenset(
    "save_every validate_every log_every workers prefetch threads find_unused tensorboard cpu shard "
    "gradient_checkpointing timeout_minutes".split()
)
"""Settings that a resumed run may change: they do not touch what is learned (sharding: beyond the last digits)."""

SAMPLES_PER_STEP = ("batch_size", "accumulation", "processes")
"""May change on resume too, as long as their product stays: the same samples make up each step."""

CHOICES = {
    "schedule": ("cosine", "linear", "constant"),
    "precision": ("no", "bf16", "fp16", "auto"),
    "shard": ("none", "full"),
}
AT_LEAST_ONE = ("steps", "batch_size", "accumulation", "log_every", "save_every", "prefetch")
AT_LEAST_ZERO = ("lr", "muon_lr", "weight_decay", "warmup", "clip", "workers", "threads", "validate_every")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run.

    Attributes:
        steps: optimizer steps of the whole run.
        batch_size: samples per micro-batch and process.
        accumulation: micro-batches per optimizer step.
        lr: peak learning rate of AdamW.
        muon_lr: peak learning rate of Muon for hidden matrices; 0 gives them to AdamW.
        weight_decay: decoupled decay of matrices and kernels (never of vectors and embeddings).
        betas: AdamW's two decay rates.
        warmup: below 1 a fraction of `steps`, from 1 on a number of steps.
        schedule: cosine, linear or constant after the warm-up.
        final_lr: where the schedule ends, as a fraction of the peak.
        clip: largest norm of the gradient; 0 does not clip.
        precision: no (float32), bf16 or fp16 autocast; auto is bf16 where the processor or the
            GPU computes it itself, else float32 on a CPU and fp16 on a GPU.
        ema: decay of the moving average of the weights, such as 0.999; 0 keeps none.
        seed: of the order of samples and of dropout.
        lr_scales: factor on the learning rate for parameters whose name starts with the key (longest key wins).
        save_every, validate_every, log_every: in steps; `validate_every` 0 validates at the end only.
        save_frozen: False leaves parameters that are not trained out of the checkpoint.
        workers: processes that prepare batches; 0 prepares them in the training process.
        prefetch: batches each worker prepares ahead.
        threads: CPU threads for torch; 0 leaves torch's choice.
        find_unused: let DistributedDataParallel look for parameters that a step did not use.
        tensorboard: also write TensorBoard events when it is installed.
        cpu: stay on the CPU even where there is an accelerator.
        shard: none gives every process the whole model (DistributedDataParallel); full a slice of every parameter,
            gradient and optimizer state (see sharding.py). One process has nothing to share.
        gradient_checkpointing: keep only the input of each transformer layer and compute the layer again in the
            backward pass: less memory, about a third more time.
        timeout_minutes: how long a process waits for the others before it ends with an error; longer than a
            validation, which the first process may make alone.
    """

    steps: int = 1000
    batch_size: int = 8
    accumulation: int = 1
    lr: float = 1e-3
    muon_lr: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.03
    schedule: str = "cosine"
    final_lr: float = 0.0
    clip: float = 1.0
    precision: str = "no"
    ema: float = 0.0
    seed: int = 0
    lr_scales: dict[str, float] = field(default_factory=dict)
    save_every: int = 200
    validate_every: int = 0
    log_every: int = 10
    save_frozen: bool = True
    workers: int = 1
    prefetch: int = 4
    threads: int = 0
    find_unused: bool = True
    tensorboard: bool = True
    cpu: bool = False
    shard: str = "none"
    gradient_checkpointing: bool = False
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}")
        for names, least in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
            for name in names:
                if not getattr(self, name) >= least:
                    raise ValueError(f"{name} is {getattr(self, name)}; expected {least} or more")
        if not self.timeout_minutes > 0:
            raise ValueError(f"timeout_minutes is {self.timeout_minutes}; expected a number above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {self.betas}; expected two numbers from 0 to below 1, such as 0.9,0.95")
        for name in ("ema", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number from 0 to 1")

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak learning rate."""
        return round(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    def with_overrides(self, overrides: list[str] | tuple[str, ...] | None) -> "TrainSettings":
        """A copy with `KEY=VALUE` texts applied, such as `["steps=200", "betas=0.9,0.99"]`.

        Raises:
            ValueError: an unknown key, a text without `=`, a value of the wrong type, or one out of range.
        """
        fields = {f.name: f.type for f in dataclasses.fields(self)}
        changes: dict[str, Any] = {}
        for text in overrides or ():
            key, equals, value = text.partition("=")
            key = key.strip()
            if not equals:
                raise ValueError(f"cannot read the setting {text!r}; expected KEY=VALUE, such as steps=200")
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise ValueError(f"unknown setting {key!r}.{hint} Known: {', '.join(sorted(fields))}")
            changes[key] = _read(key, value.strip(), fields[key])
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON-ready values."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}


def _read(key: str, text: str, kind: Any) -> Any:
    """`text` as a value of the field's type."""
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind is int:
            return int(text.replace("_", ""))
        if kind is float:
            return float(text)
        if kind is str:
            return text
        if key == "betas":
            return tuple(float(part) for part in text.strip("()[] ").split(","))
        return {str(name): float(scale) for name, scale in json.loads(text).items()}
    except (ValueError, KeyError, AttributeError, TypeError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind)
        expected = expected or ("two numbers such as 0.9,0.95" if key == "betas" else 'JSON such as {"decoder": 0.1}')
        raise ValueError(f"the setting {key} is {text!r}; expected {expected}") from None


def differing(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of settings that keep a run from being resumed; both are `to_dict()` plus `processes`."""
    names = [
        name
        for name in sorted(set(stored) | set(wanted))
        if stored.get(name) != wanted.get(name) and name not in FREE_ON_RESUME and name not in SAMPLES_PER_STEP
    ]
    products = [[int(settings.get(name, 1)) for name in SAMPLES_PER_STEP] for settings in (stored, wanted)]
    if products[0][0] * products[0][1] * products[0][2] != products[1][0] * products[1][1] * products[1][2]:
        names += [name for name in SAMPLES_PER_STEP if stored.get(name, 1) != wanted.get(name, 1)]
    return names


def split(overrides: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The overrides that set one of `names`, as a dict, and all others, for TrainSettings."""
    own = dict(o.split("=", 1) for o in overrides if o.split("=", 1)[0] in names and "=" in o)
    return own, [o for o in overrides if o.split("=", 1)[0] not in own]


def whole(own: dict[str, str], name: str, default: int) -> int:
    """The option as a whole number. Raises ValueError that names it for anything else."""
    text = own.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; expected a whole number, 0 or more")
    return int(text)


def number(own: dict[str, str], name: str, default: float) -> float:
    """The option as a number. Raises ValueError that names it for anything else."""
    text = own.get(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; expected a number") from None


def truth(own: dict[str, str], name: str, default: bool) -> bool:
    """The option as true or false. Raises ValueError that names it for anything else."""
    text = own.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name} is {text!r}; expected true or false")
    return text == "true"
