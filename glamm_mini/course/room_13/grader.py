"""Graders of notebook 13: rename tensors, read bfloat16 by hand, find the first difference, merge LoRA."""

import json
from collections.abc import Callable, Iterator

import numpy as np
import torch

from glamm_mini.checkpoints.official import NAMES
from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.paths import parity_folder


def grade_rename(function: Callable) -> Grade:
    """`function(name, pairs)`: the name with the first fitting beginning replaced; None where no beginning fits."""
    return grade(function, _names(60))


def grade_widen(function: Callable) -> Grade:
    """`function(raw, shape)`: bytes of bfloat16 numbers, little-endian, to a float32 array of that shape."""
    return grade(function, _halves(30), fault=lambda value, expected: array_fault(value, expected, tolerance=0.0))


def grade_first_difference(function: Callable) -> Grade:
    """`function(theirs, ours, tolerance)`: the first name, in the order of `theirs`, whose arrays do not agree: not
    there, of another shape, or any |theirs - ours| not within tolerance * (1 + |theirs|); None if all agree."""
    return grade(function, _flows(60))


def grade_merge(function: Callable) -> Grade:
    """`function(state, alpha)`: a state dict with all LoRA matrices multiplied out and added to their weights."""
    return grade(function, _adapted(12), fault=_state_fault)


def _names(count: int) -> Iterator[tuple]:
    yield ("lm_head.weight", NAMES), "language_model.lm_head.weight"
    yield ("optimizer.step", NAMES), None
    yield ("model.text_hidden_fcs.0.0.bias", NAMES), "lp_projector.0.bias"
    yield ("old.lm_head.weight", NAMES), None  # in the middle, and not at the beginning
    yield ("a.a.weight", [("a.", "b.")]), "b.a.weight"
    yield ("model.norm.weight", [("model.norm.weight", "x"), ("model.", "y.")]), "x"
    tensors = json.loads((parity_folder() / "manifest_7b.json").read_text("utf-8"))["tensors"]
    for name in np.random.default_rng(51).choice(sorted(tensors), count):
        yield (str(name), NAMES), _renamed(str(name), NAMES)


def _renamed(name: str, pairs) -> str | None:
    return next((new + name[len(old) :] for old, new in pairs if name.startswith(old)), None)


def _halves(count: int) -> Iterator[tuple]:
    yield (b"\x80\x3f\x00\xc0", (2,)), np.array([1.0, -2.0], np.float32)
    rng = np.random.default_rng(52)
    for _ in range(count):
        shape = tuple(int(side) for side in rng.integers(1, 6, rng.integers(1, 4)))
        values = torch.from_numpy((rng.standard_normal(shape) * 10.0 ** rng.integers(-20, 20)).astype(np.float32))
        half = values.to(torch.bfloat16)
        yield (half.contiguous().view(torch.int16).numpy().astype("<i2").tobytes(), shape), half.float().numpy()


def _flows(count: int) -> Iterator[tuple]:
    """Four stages of a flow; something is wrong from one of them on, or nowhere. A stage behind it is wrong too."""
    rng, names = np.random.default_rng(53), ("seen", "read", "spoken", "drawn")
    yield ({"a": np.ones(2)}, {"a": np.full(2, np.nan)}, 1e-3), "a"  # nan is larger than nothing
    yield ({"a": np.ones((2, 1))}, {"a": np.ones((1, 2))}, 1e-3), "a"  # these would broadcast
    yield ({"a": np.ones(2), "b": np.ones(2)}, {"a": np.ones(2)}, 1e-3), "b"
    yield ({"a": np.array([1000.0])}, {"a": np.array([1000.5])}, 1e-3), None
    yield ({"a": np.array([1000.0])}, {"a": np.array([1001.0015])}, 1e-3), "a"  # would pass by 1 + |ours|
    for number in range(count):
        theirs = {name: rng.standard_normal(tuple(rng.integers(1, 5, 2))) for name in names}
        ours = {name: array + 1e-6 * rng.standard_normal(array.shape) for name, array in theirs.items()}
        first = int(rng.integers(0, 5))
        for name in names[first:]:
            place = tuple(int(rng.integers(0, side)) for side in ours[name].shape)
            ours[name][place] += (-1) ** number * (3e-3 + abs(theirs[name][place]))
        mixed = {name: ours[name] for name in sorted(ours, reverse=bool(number % 2))}  # an order of their own
        yield (theirs, mixed, 1e-3), names[first] if first < 4 else None


def _adapted(count: int) -> Iterator[tuple]:
    generator = torch.Generator().manual_seed(54)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    for number in range(count):
        wide, deep, rank = 6 + number, 4 + number % 3, 1 + number % 4
        layers = [f"model.layers.{k}.self_attn" for k in range(1 + number % 2)]
        state = {"model.norm.weight": random(wide)}
        for layer in layers:
            state |= {f"{layer}.{name}.weight": random(deep, wide) for name in ("q_proj", "k_proj", "v_proj")}
        expected = {name: tensor.clone() for name, tensor in state.items()}
        alpha = float(rank * (1 + number % 3))
        for layer in layers:
            for name in ("q_proj", "v_proj"):
                narrow, widen = random(rank, wide), random(deep, rank)
                state[f"{layer}.{name}.lora_A.default.weight"] = narrow
                state[f"{layer}.{name}.lora_B.default.weight"] = widen
                expected[f"{layer}.{name}.weight"] += alpha / rank * widen @ narrow
        yield (state, alpha), expected


def _state_fault(value, expected: dict) -> str:
    if not isinstance(value, dict):
        return f"expected a dict, got a {type(value).__name__}"
    absent, surplus = sorted(expected.keys() - value.keys()), sorted(value.keys() - expected.keys())
    if absent or surplus:
        what = f"{absent[0]} is missing" if absent else f"{surplus[0]} is still there"
        return f"expected {len(expected)} names, got {len(value)}: {what}"
    for name, tensor in expected.items():
        wrong = array_fault(value[name], tensor)
        if wrong:
            return f"{name}: {wrong}"
    return ""
