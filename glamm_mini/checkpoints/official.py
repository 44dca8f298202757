"""The official checkpoint beside ours: names of its tensors, and what its config.json says.

The names differ, the tensors do not: every weight is taken over as it is, without transposing, splitting or scaling.
An official config.json is a Llama's with a few settings more, `model_type` "llava". What it leaves out is that of the
released size, and said in the notes where no shape would tell. Its `max_length` and `use_cache: false` are of training,
and not taken over.
"""

from collections.abc import Iterable, Mapping

import torch
from transformers import CLIPVisionConfig

from glamm_mini.model.config import RIGHT, GlammConfig
from glamm_mini.ranges import check_ranges, flat

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
TOWER_FOLDER = "clip"
"""Where `convert` puts an image encoder that the hub does not have, inside an official checkpoint."""

OURS = "glamm_mini"
OWN = "region grounding losses prompt feature_layer level_step mode seg_state size_name".split()
"""What an official config.json has no place for: we store it there under the key OURS."""

UNSEEN = ("num_attention_heads", "rms_norm_eps")
"""Settings that decide what a model computes and that no shape tells."""

TEXT = [*UNSEEN, *"vocab_size hidden_size intermediate_size num_hidden_layers num_key_value_heads hidden_act".split()]
TEXT += "max_position_embeddings initializer_range bos_token_id eos_token_id tie_word_embeddings".split()
SEEN_BY_CLIP = ("image_size", "patch_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
"""Settings of CLIP that decide what the language model sees; its width is held by the V-L projector's shape."""

STORED = (*OWN, "tokens", *(f"text.{name}" for name in (*TEXT, "rope_parameters")))
STORED += tuple(f"vision.{name}" for name in (*SEEN_BY_CLIP, "hidden_size", "intermediate_size", "layer_norm_eps"))
"""What every config.json of ours holds: left out, a setting would silently be the default one."""


def official_to_ours(name: str) -> str | None:
    """Our state-dict name of an official one; None for a buffer that we compute; ValueError for an unknown name."""
    if name.endswith(COMPUTED):
        return None
    ours = _renamed(name, NAMES, "an official GLaMM checkpoint")
    return ours.replace(".gn.", ".norm.") if ours.startswith("region_encoder.mixers.") else ours


def ours_to_official(name: str) -> str:
    """The official state-dict name of one of ours; ValueError for a name that our model does not have."""
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
    steps = torch.arange(0, text.head_dim, 2, dtype=torch.float32) / text.head_dim
    frequencies = 1.0 / text.rope_parameters["rope_theta"] ** steps  # (head / 2,)
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
    base = GlammConfig.of_size("7b")
    text = {name: given[name] for name in TEXT if given.get(name) is not None}
    notes = [
        f"config.json does not name {name}: {getattr(base.text, name)} of the released size is assumed"
        for name in UNSEEN
        if name not in text
    ]
    if rows and text.setdefault("vocab_size", rows[0]) != rows[0]:
        notes.append(f"config.json says {text['vocab_size']} words, the weights have {rows[0]}: taken so")
        text["vocab_size"] = rows[0]
    text = {name: getattr(base.text, name) for name in TEXT if name != "num_key_value_heads"} | text
    rope = {"rope_type" if name == "type" else name: value for name, value in (given.get("rope_scaling") or {}).items()}
    rope = {"rope_theta": given.get("rope_theta") or 10000.0, "rope_type": "default", **rope}
    text["rope_parameters"] = given.get("rope_parameters") or rope
    wide = {} if vision or not given.get("mm_hidden_size") else {"hidden_size": given["mm_hidden_size"]}
    own = {name: getattr(base, name) for name in OWN}
    own["feature_layer"] = given.get("mm_vision_select_layer", base.feature_layer)
    own["size_name"] = "7b" if text["hidden_size"] == base.text.hidden_size else "custom"
    own |= {name: value for name, value in (given.get(OURS) or {}).items() if name in OWN and value}
    return GlammConfig((vision or base.vision).to_dict() | wide, text | {"pad_token_id": 0}, **own), notes


DEFAULTS = {name: value for name, value in flat(GlammConfig().to_dict()) if name.startswith(STORED)}
OF_CHECKPOINTS = RIGHT | {OURS: {}, "vision_config": {}, "mm_vision_tower": CLIP, "vision_tower": CLIP}
OF_CHECKPOINTS |= {"mm_hidden_size": 1024, "mm_vision_select_layer": -2}
"""A right value of every setting whose kind is checked, by its last name."""


def check_settings(given: Mapping) -> None:
    """Raises ValueError for a setting of a config.json, of ours, an official one or CLIP's, that has another kind or
    range than it should, before anything is built of it. Null stands for "left out", which in ours nothing may be."""
    found = check_ranges(given, OF_CHECKPOINTS)
    for name, default in DEFAULTS.items() if given.get("model_type") == GlammConfig.model_type else ():
        if found.get(name) is None and (default is not None or name not in found):
            raise ValueError(f"{name} is {'null' if name in found else 'missing'}; expected a value")


def unlike_clip(vision: CLIPVisionConfig) -> dict[str, str]:
    """Settings in which an image encoder is not the released checkpoints' CLIP, in words."""
    known = GlammConfig.of_size("7b").vision
    pairs = {name: (getattr(vision, name), getattr(known, name)) for name in ("hidden_size", *SEEN_BY_CLIP)}
    return {name: f"{name} {a} (expected {b})" for name, (a, b) in pairs.items() if a != b}


def write_official_config(config: GlammConfig, vision_tower: str = CLIP, dtype: str = "bfloat16") -> dict:
    """An official config.json for a model of ours; what the format has no place for stands under `glamm_mini`."""
    text, plain = config.text, config.to_dict()
    rope = dict(text.rope_parameters)
    theta, scaled = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
    return {name: getattr(text, name) for name in TEXT} | {
        "rope_theta": theta,
        "rope_scaling": None if scaled == "default" else {"type": scaled, **rope},
        "architectures": ["GLaMMForCausalLM"],
        "model_type": "llava",
        "pad_token_id": text.pad_token_id or 0,
        "torch_dtype": dtype,
        "use_cache": False,
        **dict.fromkeys(("mm_vision_tower", "vision_tower"), vision_tower),
        "mm_hidden_size": config.vision.hidden_size,
        "mm_vision_select_layer": config.feature_layer,
        **dict.fromkeys(("mm_use_im_start_end", "mm_use_image_start_end"), True),
        **dict.fromkeys(("num_level_reg_features", "num_reg_features"), len(config.region.scales)),
        "bbox_token_idx": config.tokens.bbox,
        "out_dim": config.grounding.prompt_dim,
        OURS: {name: plain[name] for name in OWN},
    }
