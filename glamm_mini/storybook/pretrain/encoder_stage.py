"""Backbones of the tiny size, each trained on its own before GLaMM is: an encoder that sees, a decoder that segments
(segmenter_stage.py), a language model that speaks storybook (language_stage.py). The big sizes get theirs from the hub,
pretrained by others on the world; a GLaMM of any size starts from parts that already see, segment and speak."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from glamm_mini.data.sample import Sample
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.pretrain.code_book import CodeBook
from glamm_mini.storybook.pretrain.dense_labels import DenseHeads, DenseLabels, dense_labels, region_labels

REGION_WEIGHT = 0.5


@dataclass
class BackboneOutput:
    """What the trainer reads: the total loss and its parts."""

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]


class EncoderTraining(nn.Module):
    """Global encoder, V-L projector and region encoder. Heads name class, colour, pattern, size and box of every patch
    and region; the projector and the region encoder write the same in code, which the language model reads."""

    def __init__(self, glamm: GlammForConditionalGeneration):
        super().__init__()
        self.global_encoder = glamm.global_encoder
        self.vl_projector = glamm.vl_projector
        self.region_encoder = glamm.region_encoder
        width = glamm.config.text.hidden_size
        self.heads = DenseHeads(glamm.config.vision.hidden_size)
        self.region_heads = DenseHeads(width)
        self.picture_code = CodeBook(width, grid=glamm.config.image_grid)
        self.region_code = CodeBook(width)

    def forward(self, global_images, dense: DenseLabels, boxes: list, regions: DenseLabels) -> BackboneOutput:
        """See `collate_encoder`."""
        features = self.global_encoder(global_images)
        sums = self.heads(features.tokens, dense)
        parts = {name: loss / len(global_images) for name, loss in sums.items()}
        parts["code"] = code_error(self.vl_projector(features.tokens), self.picture_code, dense)
        vectors = self.region_encoder(features.levels, boxes)[:, None]  # (N, D) -> (N, 1, D)
        named = sum(self.region_heads(vectors, regions).values()) / len(vectors)
        parts["regions"] = REGION_WEIGHT * (named + code_error(vectors, self.region_code, regions))
        return BackboneOutput(sum(parts.values()), parts)


def code_error(written: torch.Tensor, book: CodeBook, labels: DenseLabels) -> torch.Tensor:
    """Mean squared difference of written codes (B, P, D) and true ones, in units of one summand of the code."""
    return (written.float() - book(labels)).square().mean() / book.scale**2


def collate_encoder(samples: list[Sample], processor: GlammProcessor) -> dict:
    """Images with labels of patches and of the visible things' boxes."""
    images = processor.images([s.image for s in samples])
    dense = dense_labels(samples, processor.config.image_grid)
    return {"global_images": images["global_images"], "dense": dense} | visible_things(samples)


def visible_things(samples: list[Sample]) -> dict:
    """`boxes`, per sample (N, 4) fractions of the padded square, moved a little, and `regions`, the labels of all."""
    true = [_boxes(sample) for sample in samples]
    boxes = [_moved(sample, own) for sample, own in zip(samples, true, strict=True)]
    return {"boxes": boxes, "regions": region_labels(samples, true)}


def _boxes(sample: Sample) -> torch.Tensor:
    """Boxes (N, 4) of the things that can be seen, fractions of the padded square."""
    boxes = [t["box"] for t in sample.extras["things"] if t["visible"]]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4) / max(sample.image.shape[:2])


def _moved(sample: Sample, boxes: torch.Tensor) -> torch.Tensor:
    """Corners moved by up to a twentieth of the box's sides: people do not draw exact boxes."""
    rng = np.random.default_rng([len(sample.image_id), *sample.image_id.encode()])
    shift = torch.from_numpy(rng.uniform(-0.05, 0.05, (len(boxes), 4)).astype(np.float32))
    return boxes + shift * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
