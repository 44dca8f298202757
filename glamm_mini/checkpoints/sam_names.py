"""Names of SAM's weights: as its authors publish them, and as transformers' SamModel does (`facebook/sam-vit-base`)."""

import re

MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

RULES = (
    # One matrix under two names, of which a file may hold either or both.
    (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", MATRIX),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder\.patch_embed)\.projection\.", r"\1.proj."),
    (r"^(image_encoder)\.layers\.", r"\1.blocks."),
    (r"^(image_encoder\.neck)\.conv1\.", r"\1.0."),
    (r"^(image_encoder\.neck)\.layer_norm1\.", r"\1.1."),
    (r"^(image_encoder\.neck)\.conv2\.", r"\1.2."),
    (r"^(image_encoder\.neck)\.layer_norm2\.", r"\1.3."),
    (r"^(prompt_encoder)\.point_embed\.", r"\1.point_embeddings."),
    (r"^(prompt_encoder)\.mask_embed\.conv1\.", r"\1.mask_downscaling.0."),
    (r"^(prompt_encoder)\.mask_embed\.layer_norm1\.", r"\1.mask_downscaling.1."),
    (r"^(prompt_encoder)\.mask_embed\.conv2\.", r"\1.mask_downscaling.3."),
    (r"^(prompt_encoder)\.mask_embed\.layer_norm2\.", r"\1.mask_downscaling.4."),
    (r"^(prompt_encoder)\.mask_embed\.conv3\.", r"\1.mask_downscaling.6."),
    (r"^(mask_decoder)\.upscale_conv1\.", r"\1.output_upscaling.0."),
    (r"^(mask_decoder)\.upscale_layer_norm\.", r"\1.output_upscaling.1."),
    (r"^(mask_decoder)\.upscale_conv2\.", r"\1.output_upscaling.3."),
    # Three-layer heads: first, one in the middle, last.
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)
"""From transformers' name to the published one, in this order."""


def published_name(name: str) -> str:
    """The published name of a weight as transformers calls it."""
    for pattern, new in RULES:
        name = re.sub(pattern, new, name)
    return name
