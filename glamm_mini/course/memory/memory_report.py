"""How much memory a configuration needs on one device, to run and to train, counted on shapes alone.

Weights, gradients, optimizer and cache follow from shapes exactly; activations from the formulas of `activations`. Not
counted: what the GPU's driver and libraries take (about 0.5 GB), fragmentation, kernels' workspaces.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from glamm_mini.course.memory.activations import Flow, Load, cache_bytes, handed_on, stored_activations, working_memory
from glamm_mini.course.memory.parameters import ADAPTED, Weight, gathered_bytes, list_weights, state_bytes
from glamm_mini.model.config import GlammConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTISED = ("8bit", "4bit")
SHARDING = ("none", "ddp", "zero2", "zero3", "full")
KINDS = ("weights", "gradients", "optimizer", "gathered", "activations", "cache")
OFFICIAL_RANK = 8
EMBEDDINGS = "embed_tokens"
LEAST = {"devices": 1, "batch": 1, "text_tokens": 1, "new_tokens": 1}
LEAST |= {"supervised": 0, "boxes": 0, "masks": 0, "lora": 0}
"""Counts of a plan, and the least that each may be."""


@dataclass(frozen=True)
class Plan:
    """What is counted.

    dtype: of frozen weights and of computing; "8bit" and "4bit" mean float16 with `quantize`.
    trained: "all"; "none" (to answer); "official": LoRA of rank 8 on q and v of the language model, with its head and
        embeddings, the mask decoder, the L-P projector and the region encoder; or pieces of parameters' names.
    lora: rank; None is 8 for "official", else no LoRA. quantize: None, "8bit", "4bit": linear layers of the language
        model, its head and embeddings left out.
    sharding, devices: "none"; "ddp" (a copy a device); "zero2" (gradients and optimizer divided), "zero3" (weights
        too), as DeepSpeed does; "full", torch's fully_shard. checkpointing: of transformer layers and of the region
        encoder's rounds of mixing.
    batch: rows of one device, a picture each. text_tokens, supervised, boxes, masks: of one row; an image adds
        `config.image_tokens`; supervised is half of the text if not given. picture: height and width.
    new_tokens: of an answer; the cache ends with it.
    """

    dtype: str = "float32"
    trained: str | tuple[str, ...] = "all"
    lora: int | None = None
    quantize: str | None = None
    sharding: str = "none"
    devices: int = 1
    checkpointing: bool = False
    batch: int = 1
    text_tokens: int = 192
    supervised: int | None = None
    boxes: int = 1
    masks: int = 3
    picture: tuple[int, int] = (480, 640)
    new_tokens: int = 100

    def __post_init__(self):
        if self.dtype in QUANTISED:
            object.__setattr__(self, "quantize", self.dtype)
            object.__setattr__(self, "dtype", "float16")
        if self.lora is None:
            object.__setattr__(self, "lora", OFFICIAL_RANK if self.trained == "official" else 0)
        if isinstance(self.trained, list):
            object.__setattr__(self, "trained", tuple(self.trained))
        self._check_words()
        for name, least in LEAST.items():
            value = getattr(self, name)
            if name == "supervised" and value is None:
                continue
            if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
                raise ValueError(f"{name} is {value!r}; expected {least} or more, a whole number")
        if self.supervised is not None and self.supervised > self.text_tokens:
            raise ValueError(f"supervised is {self.supervised}; expected at most the {self.text_tokens} text_tokens")
        sides = tuple(self.picture) if isinstance(self.picture, Iterable) else ()
        if len(sides) != 2 or not all(hasattr(side, "__index__") and side > 0 for side in sides):
            raise ValueError(f"picture is {self.picture!r}; expected (height, width) in pixels, each above 0")

    def _check_words(self) -> None:
        trained = self.trained
        if self.dtype not in tuple(BYTES):
            raise ValueError(f"dtype {self.dtype!r} is unknown; expected one of {', '.join((*BYTES, *QUANTISED))}")
        pieces = isinstance(trained, tuple) and all(isinstance(piece, str) and piece for piece in trained)
        if not pieces and trained not in ("all", "none", "official"):
            raise ValueError(f"trained is {trained!r}; expected 'all', 'none', 'official', or a tuple of names' pieces")
        if self.checkpointing not in (True, False):
            raise ValueError(f"checkpointing is {self.checkpointing!r}; expected True or False")
        if self.quantize not in (None, *QUANTISED):
            raise ValueError(f"quantize is {self.quantize!r}; expected None, {' or '.join(map(repr, QUANTISED))}")
        if self.sharding not in SHARDING:
            raise ValueError(f"sharding is {self.sharding!r}; expected one of {', '.join(SHARDING)}")
        if trained == "all" and (self.lora or self.quantize):
            raise ValueError("trained='all' trains every weight: leave lora and quantize out, or train 'official'")
        if trained == "none" and self.lora:
            raise ValueError(f"lora {self.lora} with trained='none'; say what else is trained, or () for LoRA alone")

    @property
    def size(self) -> int:
        """Bytes of a number in the compute type."""
        return BYTES[self.dtype]

    @property
    def load(self) -> Load:
        """What one device works on."""
        learned = self.text_tokens // 2 if self.supervised is None else self.supervised
        counts = dict(batch=self.batch, text=self.text_tokens, supervised=learned, boxes=self.boxes, masks=self.masks)
        return Load(**counts, picture=tuple(self.picture), size=self.size, checkpointing=self.checkpointing)

    @property
    def words(self) -> dict:
        """The choices that matter, for people."""
        words = {"dtype": self.dtype, "trained": self.trained, "batch": self.batch, "lora": self.lora}
        words |= {"quantize": self.quantize, "checkpointing": self.checkpointing or None}
        words |= {"sharding": self.sharding, "devices": self.devices} if self.devices > 1 else {}
        return {name: value for name, value in words.items() if value}


class MemoryReport(dict):
    """part -> {"millions", "megabytes" (weights in the wished type, whole), "trained_millions", and per device, in
    megabytes of 10^6 bytes, each of KINDS and their sum "device"}. The row "total" sums the parts; a row "training",
    where something is trained, has the weights, gradients and optimizer state of the whole model on one device.
    `settings` says what was counted; `str()` draws a table."""

    settings: dict

    @property
    def gigabytes(self) -> float:
        """What one device needs, in 10^9 bytes."""
        return self["total"]["device"] / 1000

    def __str__(self) -> str:
        used = [kind for kind in KINDS if self["total"][kind]]
        lines = [", ".join(f"{name} {value}" for name, value in self.settings.items())]
        lines.append(f"{'MB':<18}" + "".join(f"{name:>12}" for name in ("millions", *used, "device")))
        for part, row in self.items():
            if part != "training":
                lines.append(f"{part:<18}" + "".join(_cell(row[kind]) for kind in ("millions", *used, "device")))
        return "\n".join(lines + [f"{self.gigabytes:.2f} GB a device (MB and GB are powers of ten)"])


def _cell(value: float) -> str:
    return f"{value:12,.1f}" if value else f"{'-':>12}"


def memory_report(config: GlammConfig, dtype: str = "float32", trained="all", **more) -> MemoryReport:
    """Memory of each part on one device, by kind; `more` are the other settings of `Plan`.

    Rules, with n trained numbers, N devices, B bytes of `dtype`:
    - Trained weights are float32 (4n) while autocast computes in half precision, so AdamW's small steps are not lost;
      gradients 4n, two moments 8n. LoRA's matrices alike. Frozen weights B each, or float32 slices under "full",
      where a layer has one type.
    - DeepSpeed keeps weights and gradients in `dtype` (B) and, in half precision, float32 masters with the moments.
    - Divided by N: what `sharding` says. "gathered" is what a device holds besides its share: under "full" and "zero3"
      whatever is in no transformer layer, whole, and two layers; under "ddp" the buckets gradients travel in (4n).
    - Autocast keeps a cast copy of every trained weight but embeddings until the backward pass; it counts as
      activation, as do tensors kept for the backward pass. DeepSpeed and "full" compute with weights in `dtype`
      already. Without training, activations are the largest working memory of a part and what parts hand on.

    Raises ValueError for an unknown or impossible choice.
    """
    plan = Plan(dtype, trained, **more)
    weights = list_weights(config, plan.trained, plan.lora, plan.quantize)
    learns = any(weight.trained for weight in weights)
    held = gathered_bytes(weights, plan.size, plan.sharding, plan.devices)
    active = _activations(config, plan, weights, learns)
    report = MemoryReport()
    report.settings = {"size": config.size_name} | plan.words
    for part in active:
        own = [weight for weight in weights if weight.part == part]
        row = state_bytes(own, plan.size, plan.quantize, plan.sharding, plan.devices, learns)
        row |= {"gathered": held.get(part, 0), "activations": active[part], "cache": 0}
        if part == "language_model" and not learns:
            row["cache"] = cache_bytes(config, plan.load, plan.new_tokens)
        row["device"] = sum(row[kind] for kind in KINDS)
        report[part] = {name: value / 1e6 for name, value in row.items()}
    names = list(next(iter(report.values())))
    report["total"] = {name: sum(row[name] for row in report.values()) for name in names}
    if learns:
        alone = state_bytes(weights, plan.size, plan.quantize, "none", 1, learns)
        whole = sum(alone[kind] for kind in ("weights", "gradients", "optimizer")) / 1e6
        report["training"] = {"millions": report["total"]["trained_millions"], "megabytes": whole}
    return report


def _activations(config: GlammConfig, plan: Plan, weights: list[Weight], learns: bool) -> dict[str, float]:
    """Bytes per part, in the model's order of parts; see `memory_report`."""
    parts = dict.fromkeys((weight.part for weight in weights), 0.0)
    if not learns:
        work = working_memory(config, plan.load)
        most = max(work, key=work.get)
        return parts | handed_on(config, plan.load) | {most: work[most] + handed_on(config, plan.load).get(most, 0)}
    trained = {_learning(weight) for weight in weights if weight.trained}
    kept = parts | stored_activations(config, plan.load, Flow(frozenset(trained), len(ADAPTED) if plan.lora else 0))
    if plan.size < 4 and plan.sharding in ("none", "ddp"):
        for weight in weights:
            idle = EMBEDDINGS in weight.name or weight.part == "region_encoder" and not plan.boxes
            if weight.trained and not idle:
                kept[weight.part] += plan.size * weight.count
    return kept


def _learning(weight: Weight) -> str:
    """What learns where a weight does: a part, the embeddings alone, LoRA or the head alone."""
    if weight.part != "language_model":
        return weight.part
    if EMBEDDINGS in weight.name:
        return "embeddings"
    return "lora" if ".lora_" in weight.name else "head" if "lm_head" in weight.name else "language_model"
