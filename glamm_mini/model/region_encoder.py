"""Region encoder: a box and four levels of image features become one vector, put in place of `<bbox>`.

After GPT4RoI: a pyramid from four layers of one ViT, mixed across neighboring levels, cut out by RoIAlign, summed over
levels, with an embedding of the box's own coordinates.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align
from transformers.modeling_layers import GradientCheckpointingLayer

from glamm_mini.model.config import GlammConfig


class LevelMixer(nn.Module):
    """One round of mixing. Every level keeps half of its channels and takes a quarter from each neighbor; one at an end
    of the pyramid is its own missing neighbor. All levels share the convolution."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """levels: tensors (B, C, h, w), finest first; the same shapes come back."""
        last = len(levels) - 1
        half, quarter = levels[0].shape[1] // 2, levels[0].shape[1] // 4
        mixed = []
        for i, own in enumerate(levels):
            coarser = levels[min(i + 1, last)][:, half + quarter :]
            finer = levels[max(i - 1, 0)][:, half : half + quarter]
            size = own.shape[-2:]
            parts = [own[:, :half], _resize(coarser, size), _resize(finer, size)]
            mixed.append(F.relu(self.norm(self.conv(torch.cat(parts, dim=1)))))
        return mixed


class Round(GradientCheckpointingLayer, LevelMixer):
    """A round that `gradient_checkpointing_enable` reaches: five hold more than all layers of the language model."""

    def forward(self, *levels: Tensor) -> tuple[Tensor, ...]:
        # One by one, since gradients reach tensors inside a list by one of torch's two ways to checkpoint only.
        return tuple(super().forward(list(levels)))


class RegionEncoder(nn.Module):
    """Boxes (normalized x0 y0 x1 y1) and feature levels to one language-model vector a box."""

    def __init__(self, config: GlammConfig):
        super().__init__()
        c = config.region
        self.config = c
        self.image_size = config.vision.image_size
        self.box_size = c.box_image_size or self.image_size
        levels = len(c.scales)
        # Two more channels hold the x and y coordinates of each position.
        self.inputs = nn.ModuleList(nn.Conv2d(config.vision.hidden_size + 2, c.channels, 1) for _ in range(levels))
        self.mixers = nn.ModuleList(Round(c.channels, c.groups) for _ in range(c.rounds))
        self.roi_convs = nn.ModuleList(nn.Conv2d(c.channels, c.channels, 3, padding=1) for _ in range(levels))
        self.flatten = nn.Linear(c.channels * c.roi_size**2, c.hidden)
        self.position = nn.Sequential(
            *(nn.Linear(4, c.position_hidden), nn.ReLU(), nn.LayerNorm(c.position_hidden)),
            *(nn.Linear(c.position_hidden, c.hidden), nn.ReLU(), nn.LayerNorm(c.hidden)),
        )
        self.out = nn.Linear(c.hidden, config.text.hidden_size)

    def pyramid(self, levels: list[Tensor]) -> list[Tensor]:
        """Feature grids (B, C, h, w), shallowest first, to inputs of the mixing: the shallowest becomes the finest."""
        maps = []
        for level, scale, conv in zip(levels, self.config.scales, self.inputs, strict=True):
            level = _resize(level, [side * scale for side in level.shape[-2:]])
            maps.append(conv(torch.cat([level, _coordinates(level)], dim=1)))
        return maps

    def fuse(self, maps: list[Tensor]) -> list[Tensor]:
        """All rounds of mixing."""
        for mixer in self.mixers:
            maps = mixer(*maps)
        return list(maps)

    def cut_out(self, maps: list[Tensor], boxes: list[Tensor]) -> list[Tensor]:
        """RoIAlign of every box on every level: one (N, C, roi, roi) a level, N boxes of all images in order; always in
        float32, since bfloat16 would move a box by up to a pixel, and torchvision has no RoIAlign for it."""
        pixels, c = [b.float() * self.box_size for b in boxes], self.config
        how = dict(output_size=c.roi_size, sampling_ratio=c.sampling_ratio, aligned=True)
        scales = [level.shape[-1] / self.image_size for level in maps]
        return [
            roi_align(x.float(), pixels, spatial_scale=k, **how).to(x.dtype) for x, k in zip(maps, scales, strict=True)
        ]

    def read_out(self, rois: list[Tensor], boxes: Tensor) -> Tensor:
        """Cut-out levels and their boxes (N, 4) to vectors (N, D)."""
        summed = F.relu(sum(conv(roi) for conv, roi in zip(self.roi_convs, rois, strict=True)))
        vectors = self.flatten(summed.flatten(1))  # (N, C, roi, roi) -> (N, C * roi * roi) -> (N, hidden)
        return self.out(vectors + self.position(boxes.to(vectors.dtype)))

    def forward(self, levels: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """levels: (B, C, h, w) each; boxes: per image (N_i, 4), normalized. Returns (sum of N_i, D)."""
        maps = self.fuse(self.pyramid(levels))
        return self.read_out(self.cut_out(maps, boxes), torch.cat(boxes))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _coordinates(x: Tensor) -> Tensor:
    """(B, 2, h, w): x, then y, each from -1 to 1."""
    b, _, h, w = x.shape
    ys, xs = torch.meshgrid(
        torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype),
        torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype),
        indexing="ij",
    )
    return torch.stack([xs, ys]).expand(b, 2, h, w)
