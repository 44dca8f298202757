"""The tiny segmenter's own training: masks from points and boxes, as segment-anything's, and from codes."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from glamm_mini.data.sample import Sample
from glamm_mini.model import losses
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.pretrain.code_book import PROMPT_CODE, CodeBook
from glamm_mini.storybook.pretrain.dense_labels import IGNORE, KINDS, DenseHeads, DenseLabels, dense_labels, mask_labels
from glamm_mini.storybook.pretrain.encoder_stage import BackboneOutput

PROMPTS_PER_IMAGE = 6
CODED = 4
"""How many of an image's prompts are codes, the kind of prompt that the language model will write."""

DENSE_WEIGHT = 0.3
DICE_WEIGHT = 3.0
POINT, BOX, NOTHING = [1, -1], [2, 3], [-1, -1]
"""Labels of a prompt's two points, as segment-anything numbers them: inside, corners, none."""


class SegmenterTraining(nn.Module):
    """Grounding encoder and pixel decoder. The encoder must also say what every patch and every pixel of the decoder's
    grid belongs to: that teaches it shapes long before single masks do."""

    def __init__(self, glamm: GlammForConditionalGeneration):
        super().__init__()
        self.config = glamm.config
        self.grounding_encoder = glamm.grounding_encoder
        self.pixel_decoder = glamm.pixel_decoder
        width = glamm.config.grounding.prompt_dim
        self.prompt_code = CodeBook(width, **PROMPT_CODE)
        self.heads = DenseHeads(width)
        self.pixel_head = nn.Conv2d(width, 16 * len(KINDS), 1)

    def forward(self, grounding_images, points, labels, masks, image_of_mask, coded, dense, kinds) -> BackboneOutput:
        """points (M, 2, 2) in pixels of the square with labels (M, 2), masks (M, m, m) float at the decoder's size;
        coded: labels of the masks; dense: labels of the patches; kinds (B, m, m): what each pixel shows."""
        embeddings = self.grounding_encoder(grounding_images)
        logits = self.predict(embeddings, points, labels, image_of_mask, coded)
        c = self.config.losses
        share = masks.flatten(1).mean(1)[:, None, None]
        # Balanced: inside and outside of a mask weigh the same, or small things would not be learned at first.
        weight = masks / share.clamp(min=1e-3) + (1 - masks) / (1 - share).clamp(min=1e-3)
        bce = F.binary_cross_entropy_with_logits(logits.float(), masks, weight=weight / 2)
        plain = losses.mask_bce_sum(logits, masks) / len(masks)
        dice = losses.mask_dice_sum(logits, masks, c.dice_scale, c.dice_eps) / len(masks)
        patches = embeddings.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, P, C)
        parts = {"balanced": bce, "bce": plain, "dice": DICE_WEIGHT * dice}
        parts["patches"] = DENSE_WEIGHT * sum(self.heads(patches, dense).values()) / len(grounding_images)
        # (B, 16 K, h, w) -> (B, K, 4h, 4w)
        pixels = F.pixel_shuffle(self.pixel_head(embeddings), 4)
        parts["pixels"] = F.cross_entropy(pixels.float(), kinds, ignore_index=IGNORE)
        return BackboneOutput(sum(parts.values()), parts)

    def predict(self, embeddings, points, labels, image_of_mask, coded: DenseLabels) -> torch.Tensor:
        """Mask logits (M, m, m)."""
        encoder = self.pixel_decoder.prompt_encoder
        # Labels 2 and 3 mark a box's corners; the library takes boxes separately, but embeds them in the same way.
        sparse = encoder.pe_layer.forward_with_coords(points + 0.5, encoder.input_image_size)
        table = torch.cat([encoder.not_a_point_embed.weight, *(e.weight for e in encoder.point_embeddings)])
        sparse = torch.where((labels == -1)[..., None], 0.0, sparse) + table[labels + 1]
        is_code = (labels == -1).all(1)
        code = self.prompt_code(coded)[:, 0]  # (M, 1, C) -> (M, C)
        # GLaMM prompts with a single vector; beside points and boxes in one batch it has "no point" for company.
        sparse = torch.cat([torch.where(is_code[:, None], code, sparse[:, 0])[:, None], sparse[:, 1:]], dim=1)
        out = torch.zeros(len(labels), *(2 * [4 * self.config.grounding.grid]), device=sparse.device)
        for which, width in ((is_code, 1), (~is_code, 2)):
            if which.any():
                made = self.pixel_decoder(embeddings, sparse[which, :width], image_of_mask[which])[0]
                out = out.masked_scatter(which[:, None, None], made.float())
        return out


def collate_segmenter(samples: list[Sample], processor: GlammProcessor) -> dict:
    """Images, and per image up to six masks, each with a code, a point inside or a loose box around it."""
    images = processor.images([s.image for s in samples])
    side, grid = processor.config.grounding.image_size, processor.config.grounding.grid
    points, labels, masks, index, whole, kinds = [], [], [], [], [], []
    for i, sample in enumerate(samples):
        rng = np.random.default_rng([len(sample.image_id), *sample.image_id.encode()])
        every = _targets(sample, rng)[:PROMPTS_PER_IMAGE]
        whole.append(torch.from_numpy(every))
        scale = side / max(sample.image.shape[:2])
        for k, mask in enumerate(every):
            p, kind = (np.zeros((2, 2), np.float32), NOTHING) if k < CODED else _prompt(mask, rng)
            points.append(p * scale)
            labels.append(kind)
            masks.append(_square(mask, side))
            index.append(i)
        kinds.append(_kinds(sample, side, 4 * grid))
    return {
        "grounding_images": images["grounding_images"],
        "points": torch.tensor(np.array(points), dtype=torch.float32),
        "labels": torch.tensor(labels),
        "masks": F.interpolate(torch.stack(masks)[:, None], size=4 * grid, mode="area")[:, 0],
        "image_of_mask": torch.tensor(index),
        "coded": mask_labels(samples, whole),
        "dense": dense_labels(samples, grid),
        "kinds": torch.stack(kinds),
    }


def _targets(sample: Sample, rng) -> np.ndarray:
    """Masks (N, H, W) of things and stuff in random order, and of all things of one class where there are several."""
    things, masks = sample.extras["things"], sample.extras["thing_masks"]
    every = [*masks, *sample.extras["stuff_masks"]]
    for cls in dict.fromkeys(t["cls"] for t in things):
        alike = [k for k, t in enumerate(things) if t["cls"] == cls]
        every += [masks[alike].any(0)] if len(alike) > 1 else []
    every = [mask for mask in every if mask.any()]
    return np.stack([every[k] for k in rng.permutation(len(every))])


def _kinds(sample: Sample, side: int, fine: int) -> torch.Tensor:
    """(fine, fine): index into KINDS of what fills most of each pixel of the decoder's grid, IGNORE in the padding."""
    extras = sample.extras
    names = [*(t["cls"] for t in extras["things"]), *extras["stuff"]]
    masks = np.concatenate([extras["thing_masks"], extras["stuff_masks"]])
    square = torch.stack([_square(mask, side) for mask in masks])
    share, which = F.adaptive_avg_pool2d(square, fine).max(0)  # (N, side, side) -> (N, fine, fine)
    index = torch.tensor([KINDS.index(name) for name in names])
    return torch.where(share > 0, index[which], IGNORE)


def _prompt(mask: np.ndarray, rng: np.random.Generator):
    """A point inside the mask (label 1, with an empty second point), or a box around it moved by up to a tenth."""
    ys, xs = np.nonzero(mask)
    if rng.random() < 0.5:
        k = rng.integers(len(ys))
        return np.array([[xs[k], ys[k]], [0, 0]], np.float32), POINT
    corners = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.max() + 1]], np.float32)
    return corners + rng.uniform(-0.1, 0.1, (2, 2)) * (corners[1] - corners[0]), BOX


def _square(mask: np.ndarray, side: int) -> torch.Tensor:
    """(H, W) to (side, side): the longer side fitted, padded below and to the right."""
    h, w = mask.shape
    scale = side / max(h, w)
    fitted = torch.from_numpy(mask.astype(np.float32))
    if scale != 1:
        size = (max(1, round(h * scale)), max(1, round(w * scale)))
        fitted = F.interpolate(fitted[None, None], size=size, mode="area")[0, 0]
    return F.pad(fitted, (0, side - fitted.shape[1], 0, side - fitted.shape[0]))
