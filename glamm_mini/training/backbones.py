"""Backbones of the tiny size, each trained on its own before GLaMM is: an encoder that sees, a decoder that segments
from points and boxes, a language model that speaks storybook. The big sizes get theirs from the hub, pretrained by
others on the world; a GLaMM of any size starts from parts that already see, segment and speak."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from glamm_mini.datasets.sample import Sample
from glamm_mini.model import losses
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processor import GlammProcessor, pad_rows
from glamm_mini.text.tokens import IGNORE_INDEX
from glamm_mini.training.dense import DenseHeads, DenseLabels, dense_labels

PROMPTS_PER_IMAGE = 6


@dataclass
class BackboneOutput:
    """What the trainer reads: the total loss and its parts."""

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]


class EncoderTraining(nn.Module):
    """Global encoder with dense heads: class, colour, pattern, size and box from every patch."""

    def __init__(self, glamm: GlammForConditionalGeneration):
        super().__init__()
        self.global_encoder = glamm.global_encoder
        self.heads = DenseHeads(glamm.config.vision.hidden_size)

    def forward(self, global_images: torch.Tensor, dense: DenseLabels) -> BackboneOutput:
        """See `collate_encoder`."""
        sums = self.heads(self.global_encoder(global_images).tokens, dense)
        parts = {name: loss / len(global_images) for name, loss in sums.items()}
        return BackboneOutput(sum(parts.values()), parts)


def collate_encoder(samples: list[Sample], processor: GlammProcessor) -> dict:
    """Images and dense labels."""
    images = processor.images([s.image for s in samples])
    return {"global_images": images["global_images"], "dense": dense_labels(samples, processor.config.image_grid)}


class SegmenterTraining(nn.Module):
    """Grounding encoder and pixel decoder from points and boxes, as segment-anything is trained."""

    def __init__(self, glamm: GlammForConditionalGeneration):
        super().__init__()
        self.config = glamm.config
        self.grounding_encoder = glamm.grounding_encoder
        self.pixel_decoder = glamm.pixel_decoder

    def forward(self, grounding_images, points, labels, masks, image_of_mask) -> BackboneOutput:
        """points (M, 2, 2) in pixels of the square with labels (M, 2), masks (M, S, S) float at the decoder's size."""
        logits = self.predict(grounding_images, points, labels, image_of_mask)
        c = self.config.losses
        share = masks.flatten(1).mean(1)[:, None, None]
        # Balanced: inside and outside of a mask weigh the same, or small things would not be learnt at first.
        weight = masks / share.clamp(min=1e-3) + (1 - masks) / (1 - share).clamp(min=1e-3)
        bce = F.binary_cross_entropy_with_logits(logits.float(), masks, weight=weight / 2)
        plain = losses.mask_bce_sum(logits, masks) / len(masks)
        dice = losses.mask_dice_sum(logits, masks, c.dice_scale, c.dice_eps) / len(masks)
        return BackboneOutput(bce + plain + dice, {"balanced": bce, "bce": plain, "dice": dice})

    def predict(self, grounding_images, points, labels, image_of_mask) -> torch.Tensor:
        """Mask logits (M, m, m)."""
        encoder = self.pixel_decoder.prompt_encoder
        # Labels 2 and 3 mark a box's corners; the library takes boxes separately, but embeds them in the same way.
        sparse = encoder.pe_layer.forward_with_coords(points + 0.5, encoder.input_image_size)
        table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        sparse = torch.where((labels == -1)[..., None], 0.0, sparse) + table[labels + 1]
        embeddings = self.grounding_encoder(grounding_images)
        return self.pixel_decoder(embeddings, sparse, image_of_mask)[0]


def collate_segmenter(samples: list[Sample], processor: GlammProcessor) -> dict:
    """Images, and per image up to six masks with a random point inside or a loose box around each."""
    images = processor.images([s.image for s in samples])
    side = processor.config.grounding.image_size
    points, labels, masks, index = [], [], [], []
    for i, sample in enumerate(samples):
        rng = np.random.default_rng([len(sample.image_id), *sample.image_id.encode()])
        every = np.concatenate([sample.extras["thing_masks"], sample.extras["stuff_masks"]])
        every = every[every.any((1, 2))]
        scale = side / max(sample.image.shape[:2])
        for mask in every[rng.permutation(len(every))[:PROMPTS_PER_IMAGE]]:
            p, kind = _prompt(mask, rng)
            points.append(p * scale)
            labels.append(kind)
            masks.append(_square(mask, side))
            index.append(i)
    return {
        "grounding_images": images["grounding_images"],
        "points": torch.tensor(np.array(points), dtype=torch.float32),
        "labels": torch.tensor(labels),
        "masks": F.interpolate(torch.stack(masks)[:, None], size=_decoder_side(processor), mode="area")[:, 0],
        "image_of_mask": torch.tensor(index),
    }


def _decoder_side(processor: GlammProcessor) -> int:
    return 4 * processor.config.grounding.grid


def _prompt(mask: np.ndarray, rng: np.random.Generator):
    """A point inside the mask (label 1, with an empty second point), or a box around it moved by up to a tenth."""
    ys, xs = np.nonzero(mask)
    if rng.random() < 0.5:
        k = rng.integers(len(ys))
        return np.array([[xs[k], ys[k]], [0, 0]], np.float32), [1, -1]
    corners = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.max() + 1]], np.float32)
    return corners + rng.uniform(-0.1, 0.1, (2, 2)) * (corners[1] - corners[0]), [2, 3]


def _square(mask: np.ndarray, side: int) -> torch.Tensor:
    """(H, W) to (side, side): the longer side fitted, padded below and to the right."""
    h, w = mask.shape
    scale = side / max(h, w)
    fitted = torch.from_numpy(mask.astype(np.float32))
    if scale != 1:
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        fitted = F.interpolate(fitted[None, None], size=size, mode="area")[0, 0]
    return F.pad(fitted, (0, side - fitted.shape[1], 0, side - fitted.shape[0]))


class LanguageTraining(nn.Module):
    """The language model alone on storybook conversations, every word of them, without any picture."""

    def __init__(self, glamm: GlammForConditionalGeneration):
        super().__init__()
        self.language_model = glamm.language_model

    def forward(self, input_ids, attention_mask, labels) -> BackboneOutput:
        """Rows (R, L) as `collate_language` makes them."""
        hidden = self.language_model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        keep = labels[:, 1:] != IGNORE_INDEX
        logits = self.language_model.lm_head(hidden[:, :-1][keep])
        loss = losses.cross_entropy_sum(logits, labels[:, 1:][keep]) / keep.sum().clamp(min=1)
        return BackboneOutput(loss, {"ce": loss})


def collate_language(samples: list[Sample], processor: GlammProcessor) -> dict:
    """Every conversation as a row of text; questions are learnt too."""
    rows = []
    for sample in samples:
        for turns in sample.conversations:
            ids, _ = processor.encode([(t.question, t.answer) for t in turns], has_image=False)
            rows.append(ids)
    batch = pad_rows(rows, rows, None, processor.tokenizer.pad_token_id)
    return {k: batch[k] for k in ("input_ids", "attention_mask", "labels")}
