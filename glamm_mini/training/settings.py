"""Settings: each field is a key of a recipe file and of `--set KEY=VALUE`, with its meaning and limits beside it.

A recipe has several tables of them, each a dataclass: those of the trainer (TrainSettings), and its own. One mechanism
reads, checks and shows them all.
"""

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

FREE_ON_RESUME = frozenset(
    "save_every validate_every log_every workers prefetch threads tensorboard cpu shard "
    "gradient_checkpointing timeout_minutes".split()
)
"""Settings that a resumed run may change: they do not touch what is learned (sharding: beyond the last digits)."""

SAMPLES_PER_STEP = ("batch_size", "accumulation", "processes")
"""May change on resume too, as long as their product stays: the same samples make up each step."""

Tables = Sequence[tuple[str, Any]]
"""Tables of settings with what their keys begin with on the command line: ("lora.", Lora(...)) has `lora.rank`."""


def setting(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a table of settings. limits: `choices`, or `least`, `most`, `above`, `below` of a number."""
    made = {"default_factory": lambda: dict(default)} if isinstance(default, dict) else {"default": default}
    return field(**made, metadata={"meaning": meaning, **limits})


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training run: the trainer reads nothing else. Each field says what it means.

    Raises ValueError, which names the field and its limits, for a value out of range.
    """

    steps: int = setting(1000, "optimizer steps of the whole run", least=1)
    batch_size: int = setting(8, "samples per micro-batch and process", least=1)
    accumulation: int = setting(1, "micro-batches per optimizer step", least=1)
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
    seed: int = setting(0, "of the order of samples and of dropout")
    lr_scales: dict[str, float] = setting({}, "factor on lr where a parameter's name starts so; the longest key wins")
    save_every: int = setting(200, "steps", least=1)
    validate_every: int = setting(0, "steps; 0 validates at the end only", least=0)
    log_every: int = setting(10, "steps", least=1)
    save_frozen: bool = setting(True, "false leaves parameters that are not trained out of the checkpoint")
    workers: int = setting(1, "processes that prepare batches; 0 prepares them in the training process", least=0)
    prefetch: int = setting(4, "batches each worker prepares ahead", least=1)
    threads: int = setting(0, "CPU threads for torch; 0 leaves torch's choice", least=0)
    tensorboard: bool = setting(True, "also write TensorBoard events when it is installed")
    cpu: bool = setting(False, "stay on the CPU even where there is an accelerator")
    shard: str = setting(
        "none",
        "none: every process has the whole model; full: a shard of each parameter, gradient and optimizer state",
        choices=("none", "full"),
    )
    gradient_checkpointing: bool = setting(False, "compute layers again in the backward pass: less memory, more time")
    timeout_minutes: float = setting(30.0, "how long a process waits for the others; longer than a validation", above=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2:
            raise ValueError(f"betas is {self.betas}; expected two numbers, such as 0.9,0.95")
        check(self)

    @property
    def warmup_steps(self) -> int:
        """Steps until the peak learning rate."""
        return round(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    def with_overrides(self, overrides: Sequence[str] | None) -> "TrainSettings":
        """A copy with `KEY=VALUE` texts applied, such as `["steps=200", "betas=0.9,0.99"]`; see `override`."""
        return override([("", self)], overrides)[0]

    def to_dict(self) -> dict[str, Any]:
        """All settings as JSON-ready values."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}


def check(table: Any) -> None:
    """Raises ValueError that names the first field of a table of settings whose value is out of its limits."""
    for f in dataclasses.fields(table):
        value, limits = getattr(table, f.name), f.metadata
        numbers = value if isinstance(value, tuple) else [value]
        rules = [
            ("choices", f"expected one of {', '.join(limits.get('choices', ()))}", lambda x, a: x in a),
            ("least", f"expected {limits.get('least')} or more", lambda x, a: x >= a),
            ("most", f"expected {limits.get('most')} or less", lambda x, a: x <= a),
            ("above", f"expected a number above {limits.get('above')}", lambda x, a: x > a),
            ("below", f"expected a number below {limits.get('below')}", lambda x, a: x < a),
        ]
        for limit, words, holds in rules:
            if limit in limits and not all(holds(number, limits[limit]) for number in numbers):
                raise ValueError(f"{f.name} is {value!r}; {words}")


def override(tables: Tables, overrides: Sequence[str] | None) -> list[Any]:
    """The tables with `KEY=VALUE` texts applied, in the same order; of a key given twice the later value holds.

    Raises ValueError for a key that no table has (it names the nearest), a text without `=`, a value of the wrong type
    or out of range.
    """
    known = {prefix + f.name: (i, f) for i, (prefix, table) in enumerate(tables) for f in dataclasses.fields(table)}
    changes: list[dict[str, Any]] = [{} for _ in tables]
    for text in overrides or ():
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise ValueError(f"cannot read the setting {text!r}; expected KEY=VALUE, such as steps=200")
        if key not in known:
            raise ValueError(f"unknown setting {key!r}.{did_you_mean(key, known)} {_known(known)}")
        i, f = known[key]
        changes[i][f.name] = _read(key, value, f.type)
    changed = []
    for (prefix, table), change in zip(tables, changes, strict=True):
        try:
            changed.append(dataclasses.replace(table, **change))
        except ValueError as error:
            raise ValueError(f"{prefix}{error}") from None
    return changed


def did_you_mean(word: str, known: Any) -> str:
    """The question of that kind, with a space before it; empty where no known word is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def _known(known: dict[str, Any]) -> str:
    listed = f"Known: {', '.join(sorted(known))}." if len(known) < 50 else ""
    return f"{listed} `glamm-mini train RECIPE --show` lists all with their meaning".strip()


def _read(key: str, text: str, kind: Any) -> Any:
    """`text` as a value of the field's type."""
    expected = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "")
    try:
        if kind is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        if kind is int:
            return int(text.replace("_", ""))
        if kind is float or kind is str:
            return kind(text)
        parts = [part.strip(" '\"") for part in text.strip("()[] ").split(",")]
        if kind == tuple[str, ...]:
            expected = "names such as q_proj,v_proj"
            return tuple(parts) if all(parts) else {}[text]
        if kind == tuple[float, float]:
            expected = "two numbers such as 0.9,0.95"
            return tuple(float(part) for part in parts)
        expected = 'JSON such as {"decoder": 0.1}'
        return {str(name): float(scale) for name, scale in json.loads(text).items()}
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ValueError(f"the setting {key} is {text!r}; expected {expected}") from None


def toml_table(table: Any) -> str:
    """A table in the format of the recipe files, each value under its meaning."""
    lines = []
    for f in dataclasses.fields(table):
        words = [f.metadata["meaning"]]
        words += [f"one of {', '.join(f.metadata['choices'])}"] if "choices" in f.metadata else []
        lines += [f"# {'; '.join(words)}", f"{f.name} = {toml(getattr(table, f.name))}"]
    return "\n".join(lines)


def toml(value: Any) -> str:
    """A value as TOML writes it; for strings, numbers, truth values and lists that is how JSON does."""
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    return json.dumps(value)


def differing(stored: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of settings that keep a run from being resumed; both are as `settings.json` holds them."""
    names = [
        name
        for name in sorted(set(stored) | set(wanted))
        if stored.get(name) != wanted.get(name) and name not in FREE_ON_RESUME and name not in SAMPLES_PER_STEP
    ]
    products = [[int(settings.get(name, 1)) for name in SAMPLES_PER_STEP] for settings in (stored, wanted)]
    if products[0][0] * products[0][1] * products[0][2] != products[1][0] * products[1][1] * products[1][2]:
        names += [name for name in SAMPLES_PER_STEP if stored.get(name, 1) != wanted.get(name, 1)]
    return names
