"""Graders of notebook 08: choose what is trained, merge LoRA, average losses, find the samples of a step."""

import random
from collections.abc import Callable, Iterator

import torch

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.training.data_order import Batches
from glamm_mini.training.settings import TrainSettings

_LAYERS = ("input_layernorm", "self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def grade_trained(function: Callable[[list[str]], list[str]]) -> Grade:
    """`function(names)`: of the parameters' names those that the official fine-tuning trains, in the order given."""
    return grade(function, _names(20), fault=_names_fault)


def grade_merged(function: Callable[..., torch.Tensor]) -> Grade:
    """`function(weight, a, b, alpha)`: (out, in), (rank, in) and (out, rank) to the merged (out, in)."""
    return grade(function, _factors(20), fault=array_fault)


def grade_averages(function: Callable[[list[float], list[int]], tuple[float, float]]) -> Grade:
    """`function(sums, counts)`: the loss of one step, averaged as official training does, and as `fixed` does."""
    return grade(function, _micro_batches(40), fault=_averages_fault)


def grade_positions(function: Callable[..., list[int]]) -> Grade:
    """`function(step, process, processes, batch_size, accumulation)`: places in the sequence of samples that one
    process reads at a step (all from 0), in order."""
    return grade(function, _places(40), fault=_positions_fault)


# ---- cases ----


def _all_names() -> list[tuple[str, bool]]:
    """Names of parameters as they stand in the model of the notebook, and whether they are trained."""
    frozen = [
        "global_encoder.clip.encoder.layers.0.self_attn.q_proj.weight",
        "global_encoder.clip.encoder.layers.3.self_attn.v_proj.bias",
        "vl_projector.0.weight",
        "vl_projector.2.bias",
        "grounding_encoder.vit.blocks.1.attn.qkv.weight",
        "pixel_decoder.prompt_encoder.no_mask_embed.weight",
        "language_model.model.norm.weight",
    ]
    trained = [
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
        "region_encoder.flatten.weight",
        "region_encoder.position.0.bias",
        "lp_projector.0.weight",
        "lp_projector.2.bias",
        "pixel_decoder.mask_decoder.mask_tokens.weight",
        "pixel_decoder.mask_decoder.transformer.layers.0.self_attn.q_proj.weight",
    ]
    for layer in range(3):
        start = f"language_model.model.layers.{layer}"
        frozen += [f"{start}.{name}.weight" for name in _LAYERS]
        for projection in ("q_proj", "v_proj"):
            frozen.append(f"{start}.self_attn.{projection}.base.weight")
            trained += [f"{start}.self_attn.{projection}.lora_{factor}.weight" for factor in "AB"]
    return [(name, False) for name in frozen] + [(name, True) for name in trained]


def _names(count: int) -> Iterator[tuple]:
    rng, names = random.Random(81), _all_names()
    for _ in range(count):
        drawn = rng.sample(names, rng.randint(4, len(names)))
        yield ([name for name, _ in drawn],), [name for name, trained in drawn if trained]


def _factors(count: int) -> Iterator[tuple]:
    generator, rng = torch.Generator().manual_seed(82), random.Random(82)
    for _ in range(count):
        out, inside, rank = rng.randint(3, 9), rng.randint(3, 9), rng.randint(1, 3)
        weight, a, b = (
            torch.randn(*shape, generator=generator) for shape in ((out, inside), (rank, inside), (out, rank))
        )
        alpha = float(rng.choice((1, 4, 16)))
        yield (weight, a, b, alpha), weight + alpha / rank * (b @ a)


def _micro_batches(count: int) -> Iterator[tuple]:
    rng = random.Random(83)
    for _ in range(count):
        counts = [rng.randint(1, 60) for _ in range(rng.randint(1, 6))]
        sums = [round(n * rng.uniform(0.1, 3), 3) for n in counts]
        means = [total / n for total, n in zip(sums, counts, strict=True)]
        yield (sums, counts), (sum(means) / len(means), sum(sums) / sum(counts))


def _places(count: int) -> Iterator[tuple]:
    rng = random.Random(84)
    for _ in range(count):
        step, processes = rng.randint(0, 50), rng.randint(1, 4)
        process, size, accumulation = rng.randrange(processes), rng.randint(1, 5), rng.randint(1, 3)
        # Data without a length is read straight through: an index is a place.
        batches = Batches(_Endless(), list, TrainSettings(batch_size=size), process, processes)
        places = [i for k in range(step * accumulation, (step + 1) * accumulation) for i in batches.indices(k)]
        yield (step, process, processes, size, accumulation), places


class _Endless:
    """Data that has no length."""


# ---- what is wrong ----


def _names_fault(value, expected: list[str]) -> str:
    value = list(value)
    for name in value:
        if name not in expected:
            return f"{name} is in your list, and the official fine-tuning does not train it (or the name is not given)"
    for name in expected:
        if name not in value:
            return f"{name} is missing"
    return "" if value == expected else "the names are right, but not in the order in which they were given"


def _averages_fault(value, expected: tuple[float, float]) -> str:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return f"expected two numbers, official and fixed, got {value!r}"
    for name, mine, right in zip(("official", "fixed"), value, expected, strict=True):
        if abs(float(mine) - right) > 1e-6:
            return f"the {name} average is {float(mine):.6g}, expected {right:.6g}"
    return ""


def _positions_fault(value, expected: list[int]) -> str:
    value = [int(place) for place in value]
    if len(value) != len(expected):
        return f"expected {len(expected)} places, got {len(value)}"
    for number, (mine, right) in enumerate(zip(value, expected, strict=True)):
        if mine != right:
            return f"place number {number} is {mine}, expected {right}"
    return ""
