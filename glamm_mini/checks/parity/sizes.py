"""The sizes of a case, as its meta.json writes them, to a GlammConfig in official mode."""

from glamm_mini.model.config import GlammConfig

BOX_SIZE = 224
"""Pixels that a box of the whole picture spans in the official code, whatever the encoder's image size."""
GROUPS = 64
IDS = {"p": "phrase_start", "ep": "phrase_end"}
"""Names of ids that a case writes in another way than TokenIds."""


def case_config(given: dict, vision: dict, region: dict, name: str) -> GlammConfig:
    """given: `config` of meta.json. vision: its `vision`, which says what hidden states are read. region: settings of
    RegionConfig that meta.json leaves out, read off the shapes. name: what errors call the case."""
    levels = vision["region_levels"]
    own = given.get("region")
    own = own if isinstance(own, dict) else {}
    return GlammConfig(
        vision=given["clip"],
        text=dict(given["llm"], bos_token_id=1, eos_token_id=2, pad_token_id=0),
        region=dict(groups=own.get("gn_groups", GROUPS), box_image_size=own.get("box_image_size", BOX_SIZE), **region),
        grounding=_grounding(given.get("sam")),
        losses=dict(cross_entropy=1.0, mask_bce=2.0, mask_dice=0.5),
        tokens={IDS.get(key, key): value for key, value in given["ids"].items()},
        feature_layer=vision["feature_level"] - vision["n_hidden_states"],
        level_step=levels[1] - levels[0] if len(levels) > 1 else 3,
        mode="official",
        size_name=name,
    )


def region_of_manifest(manifest: dict) -> dict:
    """Settings of the region encoder that show in the shapes of its tensors."""
    encoder = "model.region_encoder."

    def width(name: str) -> int:
        return manifest[encoder + name]["shape"][0]

    own = [name.removeprefix(encoder) for name in manifest if name.startswith(encoder)]
    levels = sum(name.startswith("mlvl_fuse.input_conv.") and name.endswith(".weight") for name in own)
    return dict(
        channels=width("mlvl_fuse.input_conv.0.weight"),
        scales=tuple(2**k for k in reversed(range(levels))),
        rounds=sum(name.endswith(".gn.weight") for name in own),
        position_hidden=width("roi_align.pos_embedd.0.weight"),
        hidden=width("roi_align.flatten_linear.weight"),
    )


def _grounding(given) -> dict:
    if not isinstance(given, dict):  # a word, such as "build_sam_vit_b": the library's own ViT-B
        return dict(hidden=768, depth=12, heads=12, global_attention=(2, 5, 8, 11))
    return dict(
        image_size=given["img_size"],
        patch_size=given["patch_size"],
        hidden=given["embed_dim"],
        depth=given["depth"],
        heads=given["num_heads"],
        global_attention=tuple(given["global_attn_indexes"]),
        window=given["window_size"],
        prompt_dim=given["prompt_dim"],
        mask_in_channels=given["mask_in_chans"],
        decoder_depth=given["dec_depth"],
        decoder_hidden=given["dec_mlp"],
        decoder_heads=given["dec_heads"],
        iou_hidden=given["iou_hidden"],
    )
