"""SAM's image encoder with our attention against segment-anything's own."""

import copy

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import nn

from glamm_mini.checks.bench.measure import Measured, Report, Setting, memory_of, paired
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.sam import GroundingImageEncoder

SIZE = "colab"
"""ViT-B at 1024 pixels; "7b" has ViT-H."""


def run(setting: Setting) -> Report:
    """Seconds to encode one picture, and the memory that it takes beyond weights and input."""
    config = GlammConfig.of_size(setting.size or SIZE)
    ours = random_encoder(config).to(device=setting.device, dtype=setting.dtype)
    plain = as_library(ours)
    side = config.grounding.image_size
    picture = torch.randn(1, 3, side, side).to(device=setting.device, dtype=setting.dtype)
    with torch.inference_mode():
        memory = [memory_of(lambda way=way: way(picture), setting.device) for way in (ours, plain.vit)]
        slow, fast, expected, got = paired("sam", lambda: plain.vit(picture), lambda: ours(picture), setting)
    g = config.grounding
    sizes = {"width": g.hidden, "depth": g.depth, "heads": g.heads, "pixels": side, "window": g.window}
    report = Report("sam", setting.as_dict() | sizes)
    report.rows["one picture"] = Measured("s", fast, slow, float((expected.float() - got.float()).abs().max()))
    if all(memory):  # both are known
        report.rows["memory beyond weights"] = Measured("MB", [memory[0] / 1e6], [memory[1] / 1e6])
    report.notes.append(f"embeddings reach from {float(expected.min()):.2f} to {float(expected.max()):.2f}")
    return report


def random_encoder(config: GlammConfig) -> GroundingImageEncoder:
    """An encoder with random weights, tables of positions too: they start at zero, which would test nothing."""
    torch.manual_seed(0)
    encoder = GroundingImageEncoder(config).eval().requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        if "pos" in name:
            nn.init.normal_(parameter, std=0.1)
    return encoder


def as_library(encoder: GroundingImageEncoder) -> GroundingImageEncoder:
    """The same weights with the library's attention; call its `vit` to pass images on as the library would."""
    plain = copy.deepcopy(encoder)
    for block in plain.vit.blocks:
        block.attn.__class__ = Attention
    return plain
