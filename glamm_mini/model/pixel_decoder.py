"""Pixel decoder: segment-anything's prompt encoder and mask decoder, prompted by the language model."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn
from torch.nn import functional as F

from glamm_mini.config import GlammConfig

NUMBERS_AT_ONCE = 2**25
"""Numbers of image embeddings that are decoded together: 32 masks at SAM's sizes, about 1.1 GB in float32."""


class PromptedMaskDecoder(MaskDecoder):
    """The library's decoder for masks of several images in one call: one image embedding per prompt.

    The library repeats a single image embedding for all prompts; here each prompt brings its own. Only the first
    mask token is read out, since GLaMM never asks for several proposals.
    """

    def predict_masks(self, image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings):
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
        self.image_size = c.image_size
        self.position_dtype = None if config.mode == "official" else torch.float32
        self.masks_at_once = max(1, NUMBERS_AT_ONCE // (c.prompt_dim * c.grid**2))
        self.prompt_encoder = PromptEncoder(
            embed_dim=c.prompt_dim,
            image_embedding_size=(c.grid, c.grid),
            input_image_size=(c.image_size, c.image_size),
            mask_in_chans=c.mask_in_channels,
        )
        self.mask_decoder = PromptedMaskDecoder(
            transformer_dim=c.prompt_dim,
            transformer=TwoWayTransformer(
                depth=c.decoder_depth,
                embedding_dim=c.prompt_dim,
                num_heads=c.decoder_heads,
                mlp_dim=c.decoder_hidden,
            ),
            iou_head_hidden_dim=c.iou_hidden,
        )

    def forward(self, embeddings: torch.Tensor, prompts: torch.Tensor, image_index: torch.Tensor):
        """One mask per prompt, many prompts in one call; more than fit in memory are taken in turns.

        embeddings: (I, C, h, w), one per image. prompts: (N, K, C), K vectors a mask (one [SEG], or points and boxes
        of the prompt encoder). image_index: (N,), the image of each prompt.
        Returns mask logits (N, 4h, 4w) and the predicted quality (N,), which GLaMM does not use.
        """
        positions = self.positions()
        turns = zip(prompts.split(self.masks_at_once), image_index.split(self.masks_at_once), strict=True)
        masks, quality = zip(
            *(self._decode(embeddings[images], mine, positions) for mine, images in turns), strict=True
        )
        return torch.cat(masks), torch.cat(quality)

    def _decode(self, embeddings, prompts, positions):
        dense = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)  # (1, C) -> (1, C, 1, 1)
        masks, quality = self.mask_decoder(
            image_embeddings=embeddings,
            image_pe=positions,
            sparse_prompt_embeddings=prompts,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return masks[:, 0], quality[:, 0]

    def positions(self) -> torch.Tensor:
        """The position code of the grid (1, C, h, w): sines and cosines of random mixtures of x and y.

        The library computes it for float32 weights only. In mode "fixed" it is computed in float32 and then rounded;
        the official code computes it in the weights' own precision, up to 0.1 away from that in bfloat16.
        """
        matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
        h, w = self.prompt_encoder.image_embedding_size
        y = (torch.arange(h, device=matrix.device) + 0.5) / h  # middles of patches, 0..1
        x = (torch.arange(w, device=matrix.device) + 0.5) / w
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)  # (h, w, 2), x first
        dtype = self.position_dtype or matrix.dtype
        with _as_written(matrix.device.type):
            angles = 2 * math.pi * ((2 * grid - 1).to(dtype) @ matrix.to(dtype))  # (h, w, C / 2)
        code = torch.cat([angles.sin(), angles.cos()], dim=-1).permute(2, 0, 1)  # (h, w, C) -> (C, h, w)
        return code[None].to(matrix.dtype)


def _as_written(device_type: str) -> AbstractContextManager:
    """No autocast inside, which casts every matrix product."""
    able = torch.amp.is_autocast_available(device_type)  # not for meta tensors
    return torch.autocast(device_type, enabled=False) if able else nullcontext()


def upscale_logits(
    logits: torch.Tensor, image_size: int, resized: tuple[int, int], original: tuple[int, int]
) -> torch.Tensor:
    """Mask logits (N, m, m) of the padded square to (N, H, W) of the picture, by the official two steps.

    Bilinear to the encoder's input size, the padding cut off (`resized` is height, width inside the square), then
    bilinear to the picture's own height and width. A mask is where the result is above 0.
    """
    x = F.interpolate(logits[:, None].float(), size=(image_size, image_size), mode="bilinear", align_corners=False)
    x = x[..., : resized[0], : resized[1]]
    if tuple(original) != tuple(x.shape[-2:]):
        x = F.interpolate(x, size=tuple(original), mode="bilinear", align_corners=False)
    return x[:, 0]
