"""Grounding image encoder: segment-anything's ViT at any size, with attention that stores no (P x P) scores."""

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import nn
from torch.nn import functional as F

from glamm_mini.config import GlammConfig

SCORES_AT_ONCE = 2**20
"""How many scores the CPU works on at a time: 4 MB in float32, which stay in its cache between the steps."""

KERNEL_WIDTH = 8
"""Fused kernels on GPUs want queries, keys and values of one width, a multiple of this."""


class FusedAttention(Attention):
    """The library's attention, parameters and all, without its (P x P) tensors in memory.

    Decomposed relative positions add rel_h[query, row of key] + rel_w[query, column of key] to each score, which the
    library does in several passes over all scores (ViT-B at 1024 px: 805 MB each). There are two ways around them:
    `in_one_kernel` for GPUs and `in_blocks` for CPUs, where the kernel's wider queries and keys cost more than they
    save. Without relative positions every device takes `scaled_dot_product_attention` as it is.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (B, h, w, C), the same shape comes back."""
        b, h, w, c = x.shape
        # (B, P, 3C) -> (B, P, 3, heads, d) -> (3, B, heads, P, d)
        qkv = self.qkv(x).reshape(b, h * w, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if not self.use_rel_pos:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            rel_h, rel_w = self._positions(q, h, w)
            attend = self.in_blocks if x.device.type == "cpu" else self.in_one_kernel
            out = attend(q, k, v, rel_h, rel_w)
        return self.proj(out.transpose(1, 2).reshape(b, h, w, c))  # (B, heads, P, d) -> (B, h, w, C)

    def _positions(self, q, h, w):
        """What each query adds to the scores of a row (B, heads, P, h), and of a column (B, heads, P, w)."""
        grid = q.unflatten(2, (h, w))  # (B, heads, h, w, d)
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", grid, get_rel_pos(h, h, self.rel_pos_h))
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", grid, get_rel_pos(w, w, self.rel_pos_w))
        return rel_h.flatten(2, 3), rel_w.flatten(2, 3)

    def in_blocks(self, q, k, v, rel_h, rel_w) -> torch.Tensor:
        """A few heads, or a few queries of one head, at a time: positions first, dot products added to them in place.

        q, k, v: (B, heads, P, d); rel_h (B, heads, P, h) and rel_w (B, heads, P, w). Returns (B, heads, P, d).
        """
        batch, patches = q.shape[:2], q.shape[2]
        heads = max(1, SCORES_AT_ONCE // patches**2)
        queries = max(1, SCORES_AT_ONCE // (heads * patches))
        # Each (B, heads, P, ...) -> (B * heads, P, ...) -> chunks (N, P, ...)
        groups = zip(*(x.flatten(0, 1).split(heads) for x in (q, k, v, rel_h, rel_w)), strict=True)
        out = []
        for q, k, v, rel_h, rel_w in groups:
            blocks = zip(*(x.split(queries, dim=1) for x in (q, rel_h, rel_w)), strict=True)
            out.append(torch.cat([self._block(*block, k, v) for block in blocks], dim=1))
        return torch.cat(out).unflatten(0, batch)

    def _block(self, q, rel_h, rel_w, k, v):
        scores = (rel_h[..., :, None] + rel_w[..., None, :]).flatten(2)  # (N, Q, h, w) -> (N, Q, P)
        scores.baddbmm_(q, k.transpose(1, 2), alpha=self.scale)
        return scores.softmax(dim=-1) @ v

    def in_one_kernel(self, q, k, v, rel_h, rel_w) -> torch.Tensor:
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
        # The library sees the grid of patches with channels last; laid out so in memory, no norm has to copy it.
        return self.vit(images.to(memory_format=torch.channels_last))


def _layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6)
