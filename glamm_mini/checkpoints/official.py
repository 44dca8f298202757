"""The official checkpoint beside ours: names of its tensors, and what its config.json says.

The names differ, the tensors do not: every weight is taken over as it is, without transposing, splitting or scaling.
An official config.json is a Llama's with a few settings more, `model_type` "llava". What it leaves out is that of the
released size, and said in the notes where no shape would tell. Its `max_length` and `use_cache: false` are of training,
and not taken over.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig
from transformers.activations import ACT2FN

from glamm_mini.model.config import GlammConfig

NAMES = (
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_tower.vision_model.", "global_encoder.clip."),
    ("model.mm_projector.", "vl_projector."),
    ("model.region_encoder.mlvl_fuse.input_conv.", "region_encoder.inputs."),
    ("model.region_encoder.mlvl_fuse.fuse_convs.", "region_encoder.mixers."),
    ("model.region_encoder.roi_align.pconvs.", "region_encoder.roi_convs."),
    ("model.region_encoder.roi_align.flatten_linear.", "region_encoder.flatten."),
    ("model.region_encoder.roi_align.pos_embedd.", "region_encoder.position."),
    ("model.region_encoder.roi_align.updims.", "region_encoder.out."),
    ("model.grounding_encoder.image_encoder.", "grounding_encoder.vit."),
    ("model.grounding_encoder.prompt_encoder.", "pixel_decoder.prompt_encoder."),
    ("model.grounding_encoder.mask_decoder.", "pixel_decoder.mask_decoder."),
    ("model.text_hidden_fcs.0.", "lp_projector."),
)
"""(official prefix, our prefix); no prefix of one column starts with another of the same column."""

COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids", "pixel_mean", "pixel_std")
"""Endings of official buffers that no current class stores: they follow from the configuration."""

VISION_TOWER = "global_encoder.clip."
CLIP = "openai/clip-vit-large-patch14-336"
OURS = "glamm_mini"
"""Key under which we store, in an official config.json, what that format has no place for."""

TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
UNSEEN = ("num_attention_heads", "rms_norm_eps")
"""Settings that decide what a model computes and that no shape tells."""

SEEN_BY_CLIP = ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
"""Settings of CLIP that decide what the language model sees; its width is held by the V-L projector's shape."""

TOWER_FOLDER = "clip"
"""Where `convert` puts an image encoder that the hub does not have, inside an official checkpoint."""


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _whole(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}"


def _list(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    each, expected = _whole(least, most)
    return lambda v: isinstance(v, (list, tuple)) and len(v) <= 1024 and all(map(each, v)), f"a list, each {expected}"


SIZES = {
    1024: "num_hidden_layers depth decoder_depth level_step num_channels patch_size roi_size box_image_size",
    4096: "num_attention_heads num_key_value_heads heads decoder_heads groups head_dim image_size",
    2**16: "hidden_size mm_hidden_size hidden channels prompt_dim position_hidden iou_hidden mask_in_channels",
    2**20: "intermediate_size decoder_hidden",
    2**24: "vocab_size max_position_embeddings max_length",
}
"""The most that settings may be, far beyond any model that there is."""

SECTIONS = "vision text region grounding losses prompt tokens glamm_mini vision_config rope_parameters".split()
NEVER_NULL = {
    *("mode", "seg_state", "feature_layer", "level_step", "prompt.system", "prompt.user", "prompt.assistant"),
    *("prompt.image_line", "prompt.max_length", "grounding.pixel_mean", "grounding.pixel_std"),
}
WORDS = "mode seg_state hidden_act size_name system user assistant image_line mm_vision_tower vision_tower model_type"
NUMBERS = (
    "rms_norm_eps layer_norm_eps initializer_range rope_theta cross_entropy mask_bce mask_dice dice_scale dice_eps"
)
RULES = {name: _whole(1, most) for most, names in SIZES.items() for name in names.split()}
RULES |= {"window": _whole(0, 4096), "rounds": _whole(0, 64), "sampling_ratio": _whole(-1, 64)}
RULES |= dict.fromkeys(("feature_layer", "mm_vision_select_layer"), _whole(-1024, 1024))
RULES |= {"scales": _list(1, 1024), "global_attention": _list(0, 1024)}
RULES |= dict.fromkeys(NUMBERS.split(), (lambda v: _number(v) and v >= 0, "a finite number that is not negative"))
RULES |= dict.fromkeys(WORDS.split(), (lambda v: isinstance(v, str), "text"))
RULES["hidden_act"] = (lambda v: v in ACT2FN if isinstance(v, str) else False, f"one of {', '.join(ACT2FN)}")
RULES |= dict.fromkeys(SECTIONS, (lambda v: isinstance(v, Mapping), "a table of settings"))
RULES |= dict.fromkeys(("relative_positions", "tie_word_embeddings"), (lambda v: isinstance(v, bool), "true or false"))
THREE = (lambda v: isinstance(v, (list, tuple)) and len(v) == 3 and all(map(_number, v)), "three finite numbers")
RULES |= {"pixel_mean": THREE, "pixel_std": (lambda v: THREE[0](v) and min(v) > 0, "three numbers above 0")}
"""Settings of any config.json -> what they may be, as a test and in words."""


def official_to_ours(name: str) -> str | None:
    """Our state-dict name of an official one; None for a buffer that we compute and do not store.

    Raises ValueError for a name that the official model does not have.
    """
    if name.endswith(COMPUTED):
        return None
    ours = _renamed(name, NAMES, "an official GLaMM checkpoint")
    return ours.replace(".gn.", ".norm.") if ours.startswith("region_encoder.mixers.") else ours


def ours_to_official(name: str) -> str:
    """The official state-dict name of one of ours. Raises ValueError for a name that our model does not have."""
    official = _renamed(name, [(b, a) for a, b in NAMES], "GlammForConditionalGeneration")
    return official.replace(".norm.", ".gn.") if name.startswith("region_encoder.mixers.") else official


def _renamed(name: str, pairs: Iterable[tuple[str, str]], owner: str) -> str:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old) :]
    raise ValueError(f"{name!r} is not the name of a weight of {owner}")


def computed_buffers(config) -> dict[str, torch.Tensor]:
    """Rotary frequencies (head / 2,) of every layer, which old code saves with the weights, under official names."""
    text = config.text
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    theta = text.rope_parameters["rope_theta"]
    frequencies = 1.0 / theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)  # (head / 2,)
    names = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(text.num_hidden_layers))
    return {name: frequencies.clone() for name in names}


def saved_officially(name: str) -> bool:
    """Whether official checkpoints hold a tensor of this official name: all but CLIP's, which is never trained."""
    return "vision_tower" not in name


def merged_dtype(name: str) -> torch.dtype:
    """The type that the official merge script stores a tensor of this official name in (by reading it): the parts
    that it builds anew stay float32, and so do the rotary frequencies."""
    whole = name.startswith(("model.grounding_encoder.", "model.text_hidden_fcs.")) or name.endswith("inv_freq")
    return torch.float32 if whole else torch.bfloat16


def read_official_config(
    given: Mapping, rows: tuple[int, ...] | None = None, vision: CLIPVisionConfig | None = None
) -> tuple[GlammConfig, list[str]]:
    """Our configuration, in official mode, and notes on what was assumed.

    given: the official config.json, which names the language model's sizes; of the region encoder and SAM it says
    nothing, so they are the released ones unless we wrote the file (`glamm_mini`). rows: shape of the embedding, whose
    first number is believed before `vocab_size`. vision: of the CLIP that belongs to it; default the released one's.
    Raises ValueError for settings that contradict each other.
    """
    base, notes = GlammConfig.of_size("7b"), []
    own = given.get(OURS) or {}
    text = {name: given[name] for name in TEXT if given.get(name) is not None}
    if rows and text.setdefault("vocab_size", rows[0]) != rows[0]:
        notes.append(f"config.json says {text['vocab_size']} words, the weights have {rows[0]}: taken so")
        text["vocab_size"] = rows[0]
    for name in set(TEXT) - text.keys() - {"num_key_value_heads"}:
        text[name] = getattr(base.text, name)
    notes += [
        f"config.json does not name {name}: {text[name]} of the released size is assumed"
        for name in UNSEEN
        if given.get(name) is None
    ]
    scaling = dict(given.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    theta = given.get("rope_theta") or 10000.0
    text["rope_parameters"] = given.get("rope_parameters") or {"rope_theta": theta, "rope_type": kind, **scaling}
    wide = {} if vision or not given.get("mm_hidden_size") else {"hidden_size": given["mm_hidden_size"]}
    config = GlammConfig(
        vision=(vision or base.vision).to_dict() | wide,
        text=text | {"pad_token_id": 0},
        region=own.get("region") or vars(base.region),
        grounding=own.get("grounding") or vars(base.grounding),
        losses=own.get("losses"),
        prompt=own.get("prompt") or vars(base.prompt),
        feature_layer=own.get("feature_layer", given.get("mm_vision_select_layer", base.feature_layer)),
        level_step=own.get("level_step", base.level_step),
        mode=own.get("mode", "official"),
        seg_state=own.get("seg_state", "before"),
        size_name=own.get("size_name", "7b" if text["hidden_size"] == base.text.hidden_size else "custom"),
    )
    if config.text.hidden_size % config.text.num_attention_heads or config.region.channels % 4:
        raise ValueError("config.json contradicts itself: widths do not divide into the heads or quarters it names")
    return config, notes


def check_settings(given: Mapping, path: Path, inside: str = "") -> None:
    """Types and ranges of what a config.json says, of ours, an official one or CLIP's, before anything is built of it.

    Raises ValueError that names the file and the setting. Null stands for "left out".
    """
    for name, value in given.items():
        accepts, expected = _whole(0, 2**24) if inside.endswith("tokens.") else RULES.get(name, (lambda _: True, ""))
        if value is None and f"{inside}{name}" in NEVER_NULL:
            raise ValueError(f"{path}: {inside}{name} is null; expected a value")
        if value is not None and not accepts(value):
            raise ValueError(f"{path}: {inside}{name} is {shortened(value)}; expected {expected}")
        if value is not None and name in SECTIONS:
            check_settings(value, path, f"{inside}{name}.")


def shortened(value: Any) -> str:
    """A value as it is written, cut where it is long."""
    shown = repr(value)
    return shown if len(shown) < 60 else shown[:60] + " ..."


def is_released_clip(vision: CLIPVisionConfig) -> bool:
    """Whether an image encoder has the settings of the released checkpoints' CLIP."""
    known = GlammConfig.of_size("7b").vision
    return all(getattr(vision, name) == getattr(known, name) for name in ("hidden_size", *SEEN_BY_CLIP))


def check_tower(given: Mapping, vision: CLIPVisionConfig, place: str) -> None:
    """Raises ValueError if an image encoder computes otherwise than the CLIP that an official config.json names.

    Only the released CLIP's settings are known, and only a model of its width can mean it.
    """
    known = GlammConfig.of_size("7b").vision
    if Path(vision_tower_of(given)).name != Path(CLIP).name or given.get("mm_hidden_size") != known.hidden_size:
        return
    odd = [name for name in SEEN_BY_CLIP if getattr(vision, name) != getattr(known, name)]
    if odd and vision.hidden_size == known.hidden_size:
        pairs = ", ".join(f"{name} {getattr(vision, name)} (expected {getattr(known, name)})" for name in odd)
        raise ValueError(f"the weights were trained with {CLIP}, but {place} has {pairs}; give the named one")


def write_official_config(config: GlammConfig, vision_tower: str = CLIP, dtype: str = "bfloat16") -> dict:
    """An official config.json for a model of ours; what the format has no place for stands under `glamm_mini`."""
    text, plain = config.text, config.to_dict()
    given = {name: getattr(text, name) for name in TEXT}
    rope = dict(text.rope_parameters or {})
    given["rope_theta"] = rope.pop("rope_theta", 10000.0)
    scaled = rope.pop("rope_type", "default")
    return given | {
        "rope_scaling": None if scaled == "default" else {"type": scaled, **rope},
        "architectures": ["GLaMMForCausalLM"],
        "model_type": "llava",
        "pad_token_id": text.pad_token_id or 0,
        "torch_dtype": dtype,
        "use_cache": False,
        "mm_vision_tower": vision_tower,
        "vision_tower": vision_tower,
        "mm_hidden_size": config.vision.hidden_size,
        "mm_vision_select_layer": config.feature_layer,
        "mm_use_im_start_end": True,
        "mm_use_image_start_end": True,
        "num_level_reg_features": len(config.region.scales),
        "num_reg_features": len(config.region.scales),
        "bbox_token_idx": config.tokens.bbox,
        "out_dim": config.grounding.prompt_dim,
        OURS: {
            name: plain[name]
            for name in ("region", "grounding", "losses", "prompt", "feature_layer", "level_step")
            + ("mode", "seg_state", "size_name")
        },
    }


def vision_tower_of(given: Mapping) -> str:
    """The hub id or folder of the CLIP that an official config.json names; the released one's if it names none."""
    return str(given.get("mm_vision_tower") or given.get("vision_tower") or CLIP)
