"""The official config.json and ours: which official setting means which of ours, and what weights tell about sizes.

An official config.json is a Llama's with a few settings more. What it leaves out is read off the weights' shapes; what
shapes do not tell is taken from the released size, and said in the notes. No released config.json was at hand: names
beside Llama's own are those of the code that reads them.
"""

import re
from collections.abc import Mapping

from transformers import CLIPVisionConfig

from glamm_mini.model.config import GlammConfig

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

_SAM, _REGION = "model.grounding_encoder.", "model.region_encoder."


def read_official_config(
    given: Mapping, shapes: Mapping[str, tuple], vision: CLIPVisionConfig | None = None
) -> tuple[GlammConfig, list[str]]:
    """Our configuration, in official mode, and notes on what was assumed.

    given: the official config.json. shapes: the checkpoint's tensors by their official names. vision: of the CLIP
    that belongs to it; default the released one's, as wide as the projector wants.
    Raises ValueError for settings that contradict each other.
    """
    base, notes, unknown = GlammConfig.of_size("7b"), [], vision is None
    own = given.get(OURS) or {}
    text = _text(given, shapes, base, notes)
    select = given.get("mm_vision_select_layer", base.feature_layer)
    vision = (vision or base.vision).to_dict()
    if unknown and "model.mm_projector.0.weight" in shapes:
        vision["hidden_size"] = shapes["model.mm_projector.0.weight"][1]
    config = GlammConfig(
        vision=vision,
        text=text,
        region=own.get("region") or _region(shapes, base),
        grounding=own.get("grounding") or _grounding(shapes, base),
        losses=own.get("losses"),
        prompt=own.get("prompt") or vars(base.prompt),
        feature_layer=own.get("feature_layer", select),
        level_step=own.get("level_step", base.level_step),
        mode=own.get("mode", "official"),
        seg_state=own.get("seg_state", "before"),
        size_name=own.get("size_name", "7b" if text["hidden_size"] == base.text.hidden_size else "custom"),
    )
    for part in config.text.hidden_size % config.text.num_attention_heads, config.region.channels % 4:
        if part:
            raise ValueError("config.json contradicts itself: widths do not divide into the heads or quarters it names")
    return config, notes


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


def _text(given: Mapping, shapes: Mapping, base: GlammConfig, notes: list[str]) -> dict:
    text = {name: given[name] for name in TEXT if given.get(name) is not None}
    seen = _text_sizes(shapes)
    for name, value in seen.items():
        text.setdefault(name, value)
    if "vocab_size" in seen and seen["vocab_size"] != text["vocab_size"]:
        notes.append(f"config.json says {text['vocab_size']} words, the weights have {seen['vocab_size']}: taken so")
        text["vocab_size"] = seen["vocab_size"]
    for name in TEXT:
        if name in text or name == "num_key_value_heads":
            continue
        text[name] = getattr(base.text, name)
        if name in UNSEEN:
            notes.append(f"config.json does not name {name}: {text[name]} of the released size is assumed")
    scaling = dict(given.get("rope_scaling") or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    rope = given.get("rope_parameters") or {
        "rope_theta": given.get("rope_theta", 10000.0),
        "rope_type": kind,
        **scaling,
    }
    return text | {"rope_parameters": rope, "pad_token_id": 0}


def _text_sizes(shapes: Mapping) -> dict[str, int]:
    sizes = {}
    if "model.embed_tokens.weight" in shapes:
        sizes["vocab_size"], sizes["hidden_size"] = shapes["model.embed_tokens.weight"]
    if "model.layers.0.mlp.gate_proj.weight" in shapes:
        sizes["intermediate_size"] = shapes["model.layers.0.mlp.gate_proj.weight"][0]
        sizes["num_hidden_layers"] = _count(shapes, r"model\.layers\.(\d+)\.mlp\.gate_proj\.weight")
    return sizes


def _region(shapes: Mapping, base: GlammConfig) -> dict:
    region = vars(base.region).copy()
    fuse, roi = _REGION + "mlvl_fuse.", _REGION + "roi_align."
    if fuse + "input_conv.0.weight" in shapes:
        levels = _count(shapes, re.escape(fuse) + r"input_conv\.(\d+)\.weight")
        region["channels"] = shapes[fuse + "input_conv.0.weight"][0]
        region["scales"] = tuple(2**k for k in reversed(range(levels)))
        region["rounds"] = _count(shapes, re.escape(fuse) + r"fuse_convs\.(\d+)\.conv\.weight")
        region["groups"] = min(region["groups"], region["channels"])
    if roi + "pos_embedd.0.weight" in shapes:
        region["position_hidden"] = shapes[roi + "pos_embedd.0.weight"][0]
        region["hidden"] = shapes[roi + "flatten_linear.weight"][0]
        region["roi_size"] = round((shapes[roi + "flatten_linear.weight"][1] / region["channels"]) ** 0.5)
    return region


def _grounding(shapes: Mapping, base: GlammConfig) -> dict:
    grounding = vars(base.grounding).copy()
    vit, prompts, decoder = (_SAM + name for name in ("image_encoder.", "prompt_encoder.", "mask_decoder."))
    if vit + "patch_embed.proj.weight" in shapes and vit + "pos_embed" in shapes:
        width, _, patch, _ = shapes[vit + "patch_embed.proj.weight"]
        grid = shapes[vit + "pos_embed"][1]
        depth = _count(shapes, re.escape(vit) + r"blocks\.(\d+)\.norm1\.weight")
        grounding |= {"hidden": width, "patch_size": patch, "image_size": grid * patch, "depth": depth}
        # A block's table of relative rows has 2 n - 1 entries: n is the window, or the grid where it sees all.
        tables = [shapes.get(f"{vit}blocks.{k}.attn.rel_pos_h") for k in range(depth)]
        grounding["relative_positions"] = None not in tables
        if grounding["relative_positions"]:
            sides = [(table[0] + 1) // 2 for table in tables]
            grounding["heads"] = width // tables[0][1]
            grounding["global_attention"] = tuple(k for k, side in enumerate(sides) if side == grid)
            grounding["window"] = next((side for side in sides if side != grid), 0)
    if prompts + "no_mask_embed.weight" in shapes:
        grounding["prompt_dim"] = shapes[prompts + "no_mask_embed.weight"][1]
        grounding["mask_in_channels"] = shapes[prompts + "mask_downscaling.3.weight"][0]
    if decoder + "transformer.layers.0.mlp.lin1.weight" in shapes:
        grounding["decoder_hidden"] = shapes[decoder + "transformer.layers.0.mlp.lin1.weight"][0]
        grounding["decoder_depth"] = _count(shapes, re.escape(decoder) + r"transformer\.layers\.(\d+)\.norm1\.weight")
        grounding["iou_hidden"] = shapes[decoder + "iou_prediction_head.layers.0.weight"][0]
    return grounding


def _count(shapes: Mapping, pattern: str) -> int:
    """How many numbered names fit the pattern."""
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)
