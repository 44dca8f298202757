"""The pixel side: grounding image encoder and pixel decoder of segment-anything, and the L-P projector before them."""

import math
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from segment_anything.modeling.image_encoder import Block as SamBlock
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from glamm_mini.dtypes import no_autocast
from glamm_mini.model.config import GlammConfig

SCORES_AT_ONCE = 2**20  # that the CPU works on: 4 MB in float32, which stay in its cache between the steps
KERNEL_WIDTH = 8  # fused kernels on GPUs want queries, keys and values of one width, a multiple of this
NUMBERS_AT_ONCE = 2**25  # of image embeddings decoded together: 32 masks at SAM's sizes, about 1.1 GB in float32


class FusedAttention(Attention):
    """The library's attention, parameters and all, without its (P x P) tensors in memory.

    Decomposed relative positions add rel_h[query, row of key] + rel_w[query, column of key] to each score, which the
    library does in several passes over all scores (ViT-B at 1024 px: 805 MB each). Two ways go around them:
    `in_one_kernel` for GPUs and `in_blocks` for CPUs, where the kernel's wider queries and keys cost more than that.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, h, w, C), the same shape comes back."""
        b, h, w, c = x.shape
        # (B, P, 3C) -> (B, P, 3, heads, d) -> (3, B, heads, P, d)
        q, k, v = self.qkv(x).reshape(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        if not self.use_rel_pos:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            attend = self.in_blocks if x.device.type == "cpu" else self.in_one_kernel
            out = attend(q, k, v, *self._positions(q, h, w))
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))  # (B, heads, P, d) -> (B, h, w, C)

    def _positions(self, q: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """What each query adds to the scores of a row (B, heads, P, h), and of a column (B, heads, P, w)."""
        grid = q.unflatten(2, (h, w))  # (B, heads, h, w, d)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(h, h, self.rel_pos_h))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(w, w, self.rel_pos_w))
        return rel_h.flatten(2, 3), rel_w.flatten(2, 3)

    def in_blocks(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        """A few heads, or a few queries of one head, at a time: positions first, dot products added to them in place.

        q, k, v: (B, heads, P, d); rel_h (B, heads, P, h) and rel_w (B, heads, P, w). Returns (B, heads, P, d).
        """
        batch, patches = q.shape[:2], q.shape[2]
        heads = max(1, SCORES_AT_ONCE // patches**2)
        queries = max(1, SCORES_AT_ONCE // (heads * patches))
        # Each (B, heads, P, ...) -> (B * heads, P, ...) -> chunks (N, P, ...)
        groups, out = zip(*(x.flatten(0, 1).split(heads) for x in (q, k, v, rel_h, rel_w)), strict=True), []
        for q, k, v, rel_h, rel_w in groups:
            blocks = zip(*(x.split(queries, dim=1) for x in (q, rel_h, rel_w)), strict=True)
            out.append(torch.cat([self._block(*block, k, v) for block in blocks], dim=1))
        return torch.cat(out).unflatten(0, batch)

    def _block(self, q: Tensor, rel_h: Tensor, rel_w: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)  # (N, Q, h, w) -> (N, Q, P)
        scores.baddbmm_(q, k.transpose(1, 2), alpha=self.scale)
        return scores.softmax(dim=-1) @ v

    def in_one_kernel(self, q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        """Positions inside the dot product: rel_h and rel_w behind the query, one-hot rows and columns behind the key.

        Shapes as in `in_blocks`. Values are filled up to the same width, since flash kernels take one width only.
        """
        h, w, width = rel_h.shape[-1], rel_w.shape[-1], v.shape[-1]
        index = torch.arange(h * w, device=q.device)
        one_hot = torch.cat([F.one_hot(index // w, h), F.one_hot(index % w, w)], dim=-1).to(k.dtype)  # (P, h + w)
        # The kernel multiplies scores by the scale, which the position terms must not see.
        q = torch.cat([q, torch.cat([rel_h, rel_w], dim=-1) / self.scale], dim=-1)
        k = torch.cat([k, one_hot.expand(*k.shape[:2], -1, -1)], dim=-1)
        full = -(-q.shape[-1] // KERNEL_WIDTH) * KERNEL_WIDTH  # rounded up
        q, k, v = (F.pad(x, (0, full - x.shape[-1])) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)[..., :width]


class Block(GradientCheckpointingLayer, SamBlock):
    """The library's block, parameters and all, which `gradient_checkpointing_enable` reaches."""


class GroundingImageEncoder(nn.Module):
    """Images (B, 3, S, S) to embeddings (B, C, h, w) for the pixel decoder (paper section 3.1)."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        c = config.grounding
        vit = dict(img_size=c.image_size, patch_size=c.patch_size, embed_dim=c.hidden, depth=c.depth, num_heads=c.heads)
        ways = dict(use_rel_pos=c.relative_positions, window_size=c.window, global_attn_indexes=c.global_attention)
        self.vit = ImageEncoderViT(**vit, **ways, out_chans=c.prompt_dim, norm_layer=partial(nn.LayerNorm, eps=1e-6))
        for block in self.vit.blocks:
            block.__class__, block.attn.__class__ = Block, FusedAttention  # same parameters and names, another forward

    def forward(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S), normalized, zeros where the picture was padded."""
        # The library sees the grid of patches with channels last; laid out so in memory, no norm has to copy it.
        return self.vit(images.to(memory_format=torch.channels_last))


class PromptedMaskDecoder(MaskDecoder):
    """The library's decoder for masks of several images in one call: each prompt brings its own image embedding.

    Only the first mask token is read out, since GLaMM never asks for several proposals.
    """

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As the library's, with image_embeddings (N, C, h, w), one for each of N prompts. Returns (N, 1, 4h, 4w)."""
        n, c, h, w = image_embeddings.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(n, -1, -1)
        tokens = torch.cat([own, sparse_prompt_embeddings], dim=1)
        positions = image_pe.expand(n, -1, -1, -1)
        states, source = self.transformer(image_embeddings + dense_prompt_embeddings, positions, tokens)
        source = source.transpose(1, 2).reshape(n, c, h, w)  # (N, h * w, C) -> (N, C, h, w)
        upscaled = self.output_upscaling(source)  # (N, C / 8, 4h, 4w)
        kernel = self.output_hypernetworks_mlps[0](states[:, 1])  # (N, C / 8); state 0 belongs to the IoU token
        masks = torch.einsum("nc,nchw->nhw", kernel, upscaled).unsqueeze(1)
        return masks, self.iou_prediction_head(states[:, 0])


class PixelDecoder(nn.Module):
    """Image embeddings and prompts to mask logits (paper section 3.1, pixel decoder)."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        c = config.grounding
        self.position_dtype = None if config.mode == "official" else torch.float32
        self.masks_at_once = max(1, NUMBERS_AT_ONCE // (c.prompt_dim * c.grid**2))
        self.prompt_encoder = PromptEncoder(c.prompt_dim, (c.grid,) * 2, (c.image_size,) * 2, c.mask_in_channels)
        transformer = TwoWayTransformer(c.decoder_depth, c.prompt_dim, c.decoder_heads, c.decoder_hidden)
        widths = dict(transformer_dim=c.prompt_dim, iou_head_hidden_dim=c.iou_hidden)
        self.mask_decoder = PromptedMaskDecoder(transformer=transformer, **widths)

    def forward(self, embeddings: Tensor, prompts: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
        """One mask per prompt, many prompts in one call; more than fit in memory are taken in turns.

        embeddings: (I, C, h, w). prompts: (N, K, C), K vectors a mask (one [SEG], or points and boxes of the library).
        image_index: (N,). Returns mask logits (N, 4h, 4w) and the predicted quality (N,), which GLaMM does not use.
        """
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)  # (1, C) -> (1, C, 1, 1)
        turns = zip(*(x.split(self.masks_at_once) for x in (prompts, image_index)), strict=True)
        place = self.positions()
        done = (self.mask_decoder(embeddings[images], place, own, dense, False) for own, images in turns)
        masks, quality = map(torch.cat, zip(*done, strict=True))
        return masks[:, 0], quality[:, 0]

    def positions(self) -> Tensor:
        """The position code of the grid (1, C, h, w): sines and cosines of random mixtures of x and y.

        In mode "fixed" it is computed in float32, as the library does, and then rounded; officially in the weights' own
        precision, up to 0.1 away from that in bfloat16.
        """
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
        h, w = self.prompt_encoder.image_embedding_size
        # The type is said: torch's default is another one while a model is loaded in half precision by another thread.
        y, x = (torch.arange(n, device=matrix.device, dtype=torch.float32) for n in (h, w))
        y, x = (y + 0.5) / h, (x + 0.5) / w  # middles of patches, 0..1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # (h, w, 2), x first
        dtype = self.position_dtype or matrix.dtype
        with no_autocast(matrix.device.type):
            angles = 2 * math.pi * ((2 * grid - 1).to(dtype) @ matrix.to(dtype))  # (h, w, C / 2)
        code = torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)  # (h, w, C) -> (C, h, w)
        return code[None].to(matrix.dtype)


def upscale_logits(logits: Tensor, image_size: int, resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Mask logits (N, m, m) of the padded square to (N, H, W) of the picture: a mask is where they are above 0.

    By the official two steps: bilinear to the square, cut to `resized` (height, width), then bilinear to `original`.
    """
    x = F.interpolate(logits[:, None].float(), size=(image_size, image_size), mode="bilinear", align_corners=False)
    x = x[..., : resized[0], : resized[1]]
    if tuple(original) != tuple(x.shape[-2:]):
        x = F.interpolate(x, size=tuple(original), mode="bilinear", align_corners=False)
    return x[:, 0]


class LPProjector(nn.Sequential):
    """Language to prompt: the state of a [SEG] becomes a prompt. Released with ReLU, where the paper writes GELU."""

    def __init__(self, language_width: int, prompt_width: int):
        super().__init__(nn.Linear(language_width, language_width), nn.ReLU(), nn.Linear(language_width, prompt_width))
