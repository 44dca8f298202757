"""Settings: each field is a key of a recipe file and of `--set KEY=VALUE`, with its meaning and limits beside it.

A recipe has several tables of them, each a dataclass: the trainer's (TrainSettings), and its own.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field
from typing import Any, get_args

EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text",
    tuple[str, ...]: "names such as q_proj,v_proj",
    tuple[float, float]: "two numbers such as 0.9,0.95",
    dict[str, float]: 'numbers by name, such as {"decoder": 0.1}',
}
"""Types of settings, in words."""

Tables = list[tuple[str, Any]]
"""Tables of settings with what their keys begin with on the command line: ("lora.", Lora(...)) has `lora.rank`."""


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a table of settings. limits: `choices`, or `least`, `most`, `above`, `below` of a number."""
    made = {"default_factory": lambda: dict(default)} if isinstance(default, dict) else {"default": default}
    meaning += f"; one of {', '.join(limits['choices'])}" if "choices" in limits else ""
    return field(**made, metadata={"meaning": meaning, **limits})


class Table:
    """Base of a dataclass of settings, whose lists become tuples. Raises ValueError, which names the field, for a value
    of the wrong type or out of its limits."""

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, limits = getattr(self, f.name), f.metadata
            if isinstance(value, list):
                object.__setattr__(self, f.name, value := tuple(value))
            if f.type in EXPECTED and not _fits(value, f.type):
                raise ValueError(f"{f.name} is {value!r}; expected {EXPECTED[f.type]}")
            rules = [
                ("choices", f"one of {', '.join(limits.get('choices', ()))}", lambda x, a: x in a),
                ("least", f"{limits.get('least')} or more", lambda x, a: x >= a),
                ("most", f"{limits.get('most')} or less", lambda x, a: x <= a),
                ("above", f"a number above {limits.get('above')}", lambda x, a: x > a),
                ("below", f"a number below {limits.get('below')}", lambda x, a: x < a),
            ]
            for limit, words, holds in rules:
                each = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else [value]
                if limit in limits and not all(holds(number, limits[limit]) for number in each):
                    raise ValueError(f"{f.name} is {value!r}; expected {words}")


def _fits(value: Any, kind: Any) -> bool:
    inner = get_args(kind)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool) and abs(value) < math.inf
    if not inner:
        return isinstance(value, kind)
    if kind == dict[str, float]:
        return isinstance(value, dict) and all(_fits(number, float) for number in value.values())
    fixed = ... not in inner and len(inner)
    return isinstance(value, tuple) and all(_fits(x, inner[0]) for x in value) and fixed in (False, len(value))


@dataclass(frozen=True)
class TrainSettings(Table):
    """Settings of one training run: the trainer reads nothing else."""

    steps: int = setting(1000, "optimizer steps of the whole run", least=1, most=10**9)
    batch_size: int = setting(8, "samples per micro-batch and process", least=1, most=10**5)
    accumulation: int = setting(1, "micro-batches per optimizer step", least=1, most=10**5)
    lr: float = setting(1e-3, "peak learning rate of AdamW", least=0)
    muon_lr: float = setting(0.0, "peak learning rate of Muon for hidden matrices; 0 gives them to AdamW", least=0)
    weight_decay: float = setting(0.0, "decoupled decay of matrices and kernels, not of vectors, embeddings", least=0)
    betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's two decay rates", least=0, below=1)
    warmup: float = setting(0.03, "below 1 a fraction of steps, from 1 on a number of steps", least=0)
    schedule: str = setting("cosine", "after the warm-up", choices=("cosine", "linear", "constant"))
    final_lr: float = setting(0.0, "where the schedule ends, as a fraction of the peak", least=0, most=1)
    clip: float = setting(1.0, "largest norm of the gradient; 0 does not clip", least=0)
    precision: str = setting(
        "no",
        "no is float32, bf16 and fp16 autocast; auto: bf16 where the device computes it, else no (CPU) or fp16 (GPU)",
        choices=("no", "bf16", "fp16", "auto"),
    )
    seed: int = setting(0, "of the order of samples and of dropout", least=0, most=2**64 - 1)
    lr_scales: dict[str, float] = setting({}, "factor on lr where a name starts so; the longest key wins", least=0)
    save_every: int = setting(200, "steps", least=1)
    validate_every: int = setting(0, "steps; 0 validates at the end only", least=0)
    log_every: int = setting(10, "steps", least=1)
    save_frozen: bool = setting(True, "false leaves parameters that are not trained out of the checkpoint")
    workers: int = setting(1, "processes that prepare batches; 0: the training process does", least=0, most=1024)
    threads: int = setting(0, "CPU threads for torch; 0 leaves torch's choice", least=0, most=1024)
    tensorboard: bool = setting(True, "also write TensorBoard events when it is installed")
    cpu: bool = setting(False, "stay on the CPU even where there is an accelerator")
    shard: str = setting(
        "none",
        "none: every process has the whole model; full: a shard of each parameter, gradient and optimizer state",
        choices=("none", "full"),
    )
    gradient_checkpointing: bool = setting(False, "compute layers again in the backward pass: less memory, more time")
    timeout_minutes: float = setting(30.0, "to wait for other processes; longer than a validation", above=0, most=10**6)

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak learning rate."""
        return round(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    def with_overrides(self, overrides: Sequence[str] | None) -> "TrainSettings":
        """A copy with `KEY=VALUE` texts applied, such as `["steps=200", "betas=0.9,0.99"]`; see `override`."""
        return override([("", self)], overrides)[0][1]


def override(tables: Tables, overrides: Sequence[str] | None) -> Tables:
    """The tables with `KEY=VALUE` texts applied; of a key given twice the later value holds. A trainer's setting
    without the beginning of a stage, such as `steps=100`, is meant for every stage.

    Raises ValueError for a key that no table has, a text without `=`, a value of the wrong type or out of range,
    and a warm-up that is longer than the run.
    """
    changes: list[dict[str, Any]] = [{} for _ in tables]
    known = [
        (key, f, change)
        for (prefix, table), change in zip(tables, changes, strict=True)
        for f in dataclasses.fields(table)
        for key in {prefix + f.name, f.name if isinstance(table, TrainSettings) else prefix + f.name}
    ]
    names = [name for name, _, _ in known]
    for text in overrides or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals):
            raise ValueError(f"cannot read the setting {text!r}; expected KEY=VALUE, such as steps=200")
        check_keys("--set", [key], names, "`glamm-mini train RECIPE --show` lists all with their meaning")
        for name, f, change in known:
            if name == key:
                change[f.name] = _read(key, value, f.type)
    changed = []
    for (prefix, table), change in zip(tables, changes, strict=True):
        try:
            changed.append((prefix, table := dataclasses.replace(table, **change)))
            if "warmup" in change and table.warmup_steps > table.steps:
                raise ValueError(f"warmup is {table.warmup:g}; expected at most the {table.steps} steps of the run")
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from None
    return changed


def read_table(where: str, kind: type, values: Any) -> Any:
    """A dataclass from a table of a recipe file. Raises ValueError, which begins with `where`, for a key that is
    unknown or missing and for a value that is wrong."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} is {values!r}; expected a table")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    check_keys(where, values, fields)
    missing = [n for n, f in fields.items() if f.default is MISSING is f.default_factory and n not in values]
    if missing:
        raise ValueError(f"{where} does not say {', '.join(missing)}")
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def check_keys(where: str, keys: Iterable[str], known: Iterable[str], more: str = "") -> None:
    """Raises ValueError for the first key that is not known; it names the nearest that is."""
    for key in keys:
        if key not in known:
            near = "".join(f" Did you mean {word}?" for word in difflib.get_close_matches(key, known, n=1))
            raise ValueError(f"{where}: {key!r} is unknown.{near} {more or 'Known: ' + ', '.join(known)}")


def _read(key: str, text: str, kind: Any) -> Any:
    """`text` as a value of the field's type."""
    value = None
    with suppress(ValueError):
        if kind is bool:
            words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            value = words.get(text.lower())
        elif kind == dict[str, float]:
            value = json.loads(text)
        elif inner := get_args(kind):
            parts = [part.strip(" '\"") for part in text.strip("()[] ").split(",")]
            value = tuple(inner[0](part) for part in parts) if all(parts) else None
        else:
            value = kind(text)
    if not _fits(value, kind):
        raise ValueError(f"{key} is {text!r}; expected {EXPECTED[kind]}")
    return value
