"""What a setting may be: its kind and its range, wherever it comes from, before anything is built of it."""

from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from operator import attrgetter
from typing import Any

from transformers.activations import ACT2FN

MOST = {
    1024: "num_hidden_layers depth decoder_depth level_step num_channels patch_size roi_size box_image_size scales",
    4096: "num_attention_heads num_key_value_heads heads decoder_heads groups head_dim image_size",
    2**16: "hidden_size mm_hidden_size hidden channels prompt_dim position_hidden iou_hidden mask_in_channels",
    2**20: "intermediate_size decoder_hidden",
    2**24: "vocab_size max_position_embeddings max_length",
    2**40: "rope_theta",
}
RANGES = {name: (1, most) for most, names in MOST.items() for name in names.split()}
RANGES |= {"window": (0, 4096), "rounds": (0, 64), "sampling_ratio": (-1, 64), "global_attention": (0, 1024)}
RANGES |= {"pixel_mean": (-1000, 1000), "pixel_std": (1e-6, 1000), "dice_scale": (1e-6, 2**24)}
RANGES |= dict.fromkeys(("feature_layer", "mm_vision_select_layer"), (-1024, 1024))
"""The least and the most that a setting may be, far beyond any model that there is; of others, 0 and 2**24."""

KINDS = {bool: "true or false", str: "text", dict: "a table of settings", int: "a whole number", float: "a number"}

MULTIPLES = {
    ("region.channels", "region.groups"): 1,
    ("region.channels", None): 4,
    ("grounding.hidden", "grounding.heads"): 1,
    ("grounding.image_size", "grounding.patch_size"): 1,
    ("grounding.prompt_dim", "grounding.decoder_heads"): 2,
    ("grounding.prompt_dim", None): 8,
    ("text.num_attention_heads", "text.num_key_value_heads"): 1,
}
"""The first setting is a multiple of the second, that many times: what is built of them would not fit together."""


def flat(table: Mapping, inside: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name, tables and what is in them."""
    for name, value in table.items():
        yield f"{inside}{name}", value
        if isinstance(value, Mapping):
            yield from flat(value, f"{inside}{name}.")


def check_ranges(given: Mapping, right: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by their dotted names; ValueError for one that has another kind or range than it should.

    right: a right value of every setting whose kind is checked, by its last name. None stands for "left out".
    """
    found = dict(flat(given))
    for name, value in found.items():
        expected = "" if value is None else _expected(name.rpartition(".")[2], value, right)
        if expected:
            shown = repr(value)
            raise ValueError(f"{name} is {shown[:60]}{' ...' * (len(shown) > 60)}; expected {expected}")
    return found


def check_together(config: Any) -> None:
    """Raises ValueError for settings of a configuration of which each can be, but not all at once."""
    v, text, g, prompt = config.vision, config.text, config.grounding, config.prompt
    depth, layers = v.num_hidden_layers, config.region_layers
    needs = f"less: the region encoder needs hidden states {layers}, but the vision tower has only {depth} layers"
    faults = [
        ("region.scales", not layers, "one number for each feature level"),
        ("feature_layer", config.feature_layer >= 0, "one below 0, counted from the end"),
        ("feature_layer", config.feature_layer < -depth - 1, f"{-depth - 1} or more: there are {depth} layers"),
        ("level_step", min(layers, default=0) < 0, needs),
        ("vision.image_size", v.image_size < v.patch_size, f"a patch of {v.patch_size} or more"),
        ("text.pad_token_id", (text.pad_token_id or 0) >= text.vocab_size, f"one of {text.vocab_size} words"),
        ("grounding.global_attention", max(g.global_attention, default=-1) >= g.depth, f"layers, below {g.depth}"),
        ("grounding.pixel_mean", len(g.pixel_mean) != 3, "3 numbers, one for each color"),
        ("grounding.pixel_std", len(g.pixel_std) != 3, "3 numbers, one for each color"),
        ("prompt.max_length", prompt.max_length <= (t := config.image_tokens), f"more than a picture's {t} tokens"),
        ("prompt.image_line", prompt.image_line.count("<image>") != 1, "one <image> in it"),
        ("prompt.system", "<image>" in prompt.system, "no <image>, which the image_line holds"),
    ]
    for (name, part), times in MULTIPLES.items():
        unit = times * (1 if part is None else attrgetter(part)(config))
        whole, of = attrgetter(name)(config), "" if part is None else f", for {part}"
        faults.append((name, whole % unit or whole < unit, f"a multiple of {unit}{of}"))
    for name, bad, expected in faults:
        if bad:
            raise ValueError(f"{name} is {attrgetter(name)(config)!r}; expected {expected}")


def _expected(name: str, value: Any, right: Mapping[str, Any]) -> str:
    """What a setting has to be, in words; "" if it is that, or if its name is none that we know."""
    known, (least, most) = right.get(name), RANGES.get(name, (0, 2**24))
    several = isinstance(known, list | tuple)
    kind, values = type(known[0] if several else known), value if several else [value]
    if name == "hidden_act":
        return "" if value in list(ACT2FN) else f"one of {', '.join(ACT2FN)}"
    if kind in (int, float):
        number = Integral if kind is int else Real
        good = isinstance(values, list | tuple) and len(values) <= 1024
        good = good and all(isinstance(x, number) and type(x) is not bool and least <= x <= most for x in values)
        return "" if good else f"{'a list, each ' if several else ''}{KINDS[kind]} from {least} to {most}"
    return "" if kind not in KINDS or isinstance(value, kind) else KINDS[kind]
