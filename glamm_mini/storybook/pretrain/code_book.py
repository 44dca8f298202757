"""Targets that the tiny parts share when each is pretrained alone: what a thing is and where, as one vector.

CLIP's features were trained against captions before GLaMM read them, and Llama has read a large part of the web. The
tiny parts get a code book instead: a fixed random direction for every kind, colour, pattern and size, and waves of the
box. The encoder learns to write the code of every patch and region; the language model learns to read it, and to write
the code of what a [SEG] means; the decoder takes that as a prompt. Put together, the parts fit roughly, and GLaMM's own
training starts from there without the code.
"""

import math

import torch
from torch import nn

from glamm_mini.model.pretrained import sine_table
from glamm_mini.storybook.pretrain.dense_labels import ATTRIBUTES, DenseLabels

OCTAVES = 3
"""Waves of a box coordinate: half a period, a period, two periods over the picture."""


class CodeBook(nn.Module):
    """Labels to vectors. Nothing in it is trained; the seed fixes it on every machine.

    width: of the vectors. names: the attributes that are coded. scale: root mean square of each summand.
    grid: side of a feature grid, whose places are coded too; 0 codes none.
    """

    def __init__(self, width: int, names: tuple[str, ...] = tuple(ATTRIBUTES), scale: float = 0.25, grid: int = 0):
        super().__init__()
        self.names, self.scale = names, scale
        generator = torch.Generator().manual_seed(width)
        for name in names:
            # One more row, of zeros, is the code of "nothing is said".
            table = scale * torch.randn(len(ATTRIBUTES[name]) + 1, width, generator=generator)
            table[-1] = 0
            self.register_buffer(name, table, persistent=False)
        waves = 4 * 2 * OCTAVES
        self.register_buffer(
            "box", scale * torch.randn(waves, width, generator=generator) * math.sqrt(2 / waves), False
        )
        place = torch.zeros(grid * grid, width)
        if grid:
            sines = sine_table(grid, 32).flatten(0, 1)  # (h, w, 32) -> (P, 32)
            place = sines / sines.std() @ torch.randn(32, width, generator=generator) * scale / math.sqrt(32)
        self.register_buffer("place", place, persistent=False)

    def forward(self, labels: DenseLabels) -> torch.Tensor:
        """Labels of shape (B, g, g) to codes (B, g * g, width)."""
        code = self._waves(labels.boxes.flatten(1, 2)) @ self.box
        code = code * labels.has_box.flatten(1)[..., None]
        for name in self.names:
            table = getattr(self, name)
            index = labels.attributes[name].flatten(1)  # (B, g, g) -> (B, P)
            code = code + table[torch.where(index < 0, len(table) - 1, index)]
        return code + self.place if len(self.place) else code

    def _waves(self, boxes: torch.Tensor) -> torch.Tensor:
        """(B, P, 4) fractions to (B, P, 4 * 2 * OCTAVES)."""
        octaves = math.pi * 2.0 ** torch.arange(OCTAVES, device=boxes.device)
        angle = (boxes[..., None] * octaves).flatten(2)  # (B, P, 4, O) -> (B, P, 4 * O)
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


PROMPT_CODE = {"names": ("kind", "colour"), "scale": 0.4}
"""What a prompt says: which kind of thing, in which colour, in which box."""
