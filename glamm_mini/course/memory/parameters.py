"""Every parameter of a configuration, and what its weights, gradients and optimizer state take on one device.

Counted on shapes alone: a model on the meta device says which parameters there are.
"""

import json
import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from glamm_mini.model.config import GlammConfig

OFFICIAL_TRAINED = ("lm_head", "embed_tokens", "mask_decoder", "lp_projector", "region_encoder")
ADAPTED = ("q_proj", "v_proj")
FULL_PRECISION = "prompt_encoder."
"""Frozen, it stays float32 in a training: a few thousand numbers, too few for rounding them to save anything."""

LAYERS = (".layers.", ".blocks.")
"""Stand in the names of parameters that belong to a transformer layer, the unit that sharding gathers."""

BLOCK, NESTED = 64, 256
"""4 bits: weights that share a scale, and scales that share one of their own (bitsandbytes, nf4)."""


@dataclass(frozen=True)
class Weight:
    """One parameter: its name and shape, and what is done with it."""

    name: str
    shape: tuple[int, ...]
    trained: bool
    quantized: bool

    @property
    def count(self) -> int:
        """Values in it."""
        return math.prod(self.shape)

    @property
    def part(self) -> str:
        """The child of the model that holds it."""
        return self.name.partition(".")[0]

    @property
    def unit(self) -> str | None:
        """The transformer layer that it belongs to, None outside of any (the pixel decoder's are no units)."""
        for mark in LAYERS:
            if mark in self.name and self.part != "pixel_decoder":
                before, _, after = self.name.partition(mark)
                return before + mark + after.partition(".")[0]
        return None


@lru_cache(maxsize=8)
def _shapes(config: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    from glamm_mini.model.glamm import GlammForConditionalGeneration

    with torch.device("meta"):
        model = GlammForConditionalGeneration(GlammConfig.from_dict(json.loads(config)))
    return tuple((name, tuple(p.shape)) for name, p in model.named_parameters())


def list_weights(config: GlammConfig, trained, rank: int = 0, quantize: str | None = None) -> list[Weight]:
    """Every parameter, LoRA's among them, and whether it trains and is quantized. ValueError for pieces of no name."""
    shapes = _shapes(json.dumps(config.to_dict(), sort_keys=True, default=str))
    pieces = {"all": ("",), "none": (), "official": OFFICIAL_TRAINED}.get(trained, trained)
    lost = [piece for piece in pieces if not any(piece in name for name, _ in shapes)]
    if lost:
        raise ValueError(f"trained names {lost}, but no parameter's name contains it")
    weights = []
    for name, shape in shapes:
        linear = name.startswith("language_model.model.layers.") and name.endswith("_proj.weight")
        small = quantize is not None and linear and shape[1] % BLOCK == 0
        weights.append(Weight(name, shape, any(piece in name for piece in pieces), small))
        if rank and linear and name.split(".")[-2] in ADAPTED:
            path = name.removesuffix("weight")
            weights.append(Weight(path + "lora_A", (rank, shape[1]), True, False))
            weights.append(Weight(path + "lora_B", (shape[0], rank), True, False))
    return weights


def _stored(weight: Weight, size: float, quantize: str | None) -> float:
    """Bytes of a frozen weight. 8 bits: a byte each and a float32 scale a row. 4 bits: half a byte, a byte a block of
    64, a float32 for 256 of those, and two tables of a layer's own (16 and 256 float32) with an offset."""
    if not weight.quantized:
        return weight.count * size
    if quantize == "8bit":
        return weight.count + 4 * weight.shape[0]
    blocks = math.ceil(weight.count / BLOCK)
    return weight.count / 2 + blocks + 4 * math.ceil(blocks / NESTED) + 4 * (16 + 256 + 1)


def _frozen(weight: Weight, size: int, quantize: str | None, learns: bool, full: bool) -> float:
    whole = full or (learns and FULL_PRECISION in weight.name)
    return _stored(weight, 4 if whole else size, quantize)


def state_bytes(weights: list[Weight], size: int, quantize, sharding, devices: int, learns: bool) -> dict[str, float]:
    """Counts of these weights, and bytes of what belongs to them on one device (counts in the "millions" too)."""
    trained = sum(weight.count for weight in weights if weight.trained)
    zero, full = sharding.startswith("zero"), sharding == "full" and devices > 1
    kept = size if zero else 4
    frozen = sum(_frozen(w, size, quantize, learns and not zero, full) for w in weights if not w.trained)
    master = 4 if zero and size < 4 else 0
    share = devices if sharding in ("zero2", "zero3", "full") else 1
    count = sum(weight.count for weight in weights if ".lora_" not in weight.name)
    return {
        "millions": count,
        "megabytes": sum(_stored(w, size, quantize) for w in weights if ".lora_" not in w.name),
        "trained_millions": trained,
        "weights": (frozen + trained * kept) / (1 if sharding == "zero2" else share),
        "gradients": trained * kept / share,
        "optimizer": trained * (8 + master) / share,
    }


def gathered_bytes(weights: list[Weight], size: int, sharding: str, devices: int) -> dict[str, float]:
    """Bytes per part that a device holds for a while besides its own share."""
    held: dict[str, float] = {}
    if devices == 1 or sharding in ("none", "zero2"):
        return held
    if sharding == "ddp":
        for weight in weights:
            held[weight.part] = held.get(weight.part, 0) + 4 * weight.count * weight.trained
        return held
    units: dict[str, int] = {}
    for weight in weights:
        if weight.unit is None:
            held[weight.part] = held.get(weight.part, 0) + size * weight.count
        else:
            units[weight.unit] = units.get(weight.unit, 0) + weight.count
    largest = max(units, key=units.get)
    part = largest.partition(".")[0]
    held[part] = held.get(part, 0) + 2 * size * units[largest]  # the one that computes, and the next on its way
    return held
