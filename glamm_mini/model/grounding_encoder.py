"""Grounding image encoder: segment-anything's ViT at any size, with its attention on fused kernels."""

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn import functional as F

from glamm_mini.config import GlammConfig


class FusedAttention(Attention):
    """The library's attention, parameters and all, computed by `scaled_dot_product_attention`.

    Decomposed relative positions add rel_h[query, row of key] + rel_w[query, column of key] to each score. Appending
    rel_h and rel_w to the query and one-hot rows and columns to the key gives the same sum inside the dot product,
    so that no (P x P) bias has to be stored.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, h, w, C), the same shape comes back."""
        b, h, w, c = x.shape
        # (B, P, 3C) -> (B, P, 3, heads, d) -> (3, B, heads, P, d)
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.use_rel_pos:
            q, k = self._with_positions(q, k, h, w)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))  # (B, heads, P, d) -> (B, h, w, C)

    def _with_positions(self, q, k, h, w):
        grid = q.unflatten(2, (h, w))  # (B, heads, h, w, d)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(h, h, self.rel_pos_h)).flatten(2, 3)
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(w, w, self.rel_pos_w)).flatten(2, 3)
        index = torch.arange(h * w, device=q.device)
        one_hot = torch.cat([F.one_hot(index // w, h), F.one_hot(index % w, w)], dim=-1).to(k.dtype)  # (P, h + w)
        # The kernel multiplies scores by the scale, which the position terms must not see.
        q = torch.cat([q, torch.cat([rel_h, rel_w], dim=-1) / self.scale], dim=-1)
        k = torch.cat([k, one_hot.expand(*k.shape[:2], -1, -1)], dim=-1)
        return q, k


class GroundingImageEncoder(nn.Module):
    """Images (B, 3, S, S) to embeddings (B, C, h, w) for the pixel decoder (paper section 3.1)."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        c = config.grounding
        self.image_size = c.image_size
        self.vit = ImageEncoderViT(
            img_size=c.image_size,
            patch_size=c.patch_size,
            embed_dim=c.hidden,
            depth=c.depth,
            num_heads=c.heads,
            out_chans=c.prompt_dim,
            norm_layer=_layer_norm,
            use_rel_pos=c.relative_positions,
            window_size=c.window,
            global_attn_indexes=c.global_attention,
        )
        for block in self.vit.blocks:
            block.attn.__class__ = FusedAttention  # same parameters and names, another forward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (B, 3, S, S), normalised, zeros where the picture was padded."""
        if images.ndim != 4 or images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"grounding images have shape {tuple(images.shape)}; "
                f"expected (B, 3, {self.image_size}, {self.image_size})"
            )
        return self.vit(images)


def _layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)
