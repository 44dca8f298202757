"""Small random checkpoints in the formats that CLIP, Llama and segment-anything are published in."""

import shutil
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from small_models import small_config
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from glamm_mini import paths
from glamm_mini.model.config import GlammConfig

ROWS = 512
"""Pieces of the toy SentencePiece model; GLaMM's seven tokens come behind them."""


def parts_config(**changes) -> GlammConfig:
    """The small configuration with a vocabulary that holds the toy tokenizer's pieces and GLaMM's tokens."""
    base = small_config()
    text = {"vocab_size": ROWS + 7, "max_position_embeddings": 77, "rms_norm_eps": 3e-5}
    text = {**base.text.to_dict(), **text, "num_key_value_heads": 2}
    return small_config(text=text, prompt=dict(image_line="The <image> shows this.\n"), **changes)


def randomized(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter another number, so that two tensors taken for one another cannot be equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


def save_clip(folder: Path, config: GlammConfig, whole: bool = True):
    """A whole CLIP, as the hub has it, or its vision half; returns the vision tower."""
    if not whole:
        tower = randomized(CLIPVisionModel(config.vision), 1)
        tower.save_pretrained(folder)
        return tower
    reader = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    reader |= dict(bos_token_id=1, eos_token_id=2)
    clip = randomized(CLIPModel(CLIPConfig(vision_config=config.vision.to_dict(), text_config=reader)), 1)
    clip.save_pretrained(folder)
    return clip.vision_model


def save_llama(folder: Path, config: GlammConfig, shard: str = "20KB", **changes) -> LlamaForCausalLM:
    """A Llama of ROWS pieces in shards of at most `shard`, with the toy tokenizer beside it."""
    text = config.text.to_dict() | {"vocab_size": ROWS} | changes
    model = randomized(LlamaForCausalLM(LlamaConfig(**text)), 2)
    model.save_pretrained(folder, max_shard_size=shard)
    for file in (paths.parity_folder() / "tokenizer").iterdir():
        shutil.copy(file, folder / file.name)
    return model


def sam_of(config: GlammConfig, **changes) -> Sam:
    """segment-anything's own model at the configuration's sizes."""
    c = config.grounding
    size = changes.get("image_size", c.image_size)
    grid = size // c.patch_size
    vit = ImageEncoderViT(
        img_size=size,
        patch_size=c.patch_size,
        embed_dim=changes.get("hidden", c.hidden),
        depth=c.depth,
        num_heads=c.heads,
        out_chans=c.prompt_dim,
        use_rel_pos=c.relative_positions,
        window_size=c.window,
        global_attn_indexes=c.global_attention,
    )
    prompts = PromptEncoder(c.prompt_dim, (grid, grid), (size, size), c.mask_in_channels)
    two_way = TwoWayTransformer(c.decoder_depth, c.prompt_dim, c.decoder_heads, c.decoder_hidden)
    decoder = MaskDecoder(transformer_dim=c.prompt_dim, transformer=two_way, iou_head_hidden_dim=c.iou_hidden)
    return randomized(Sam(vit, prompts, decoder), 3)


def save_sam(file: Path, config: GlammConfig, **changes) -> Sam:
    """A .pth as segment-anything publishes them: a plain state dict."""
    sam = sam_of(config, **changes)
    torch.save(sam.state_dict(), file)
    return sam
