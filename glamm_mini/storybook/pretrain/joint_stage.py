"""The joint stage: GLaMM on a mixture of tasks, with aids for a small model that are thrown away after."""

from torch import nn

from glamm_mini.data.collate import Collate
from glamm_mini.data.sample import Sample
from glamm_mini.model.glamm import GlammForConditionalGeneration, GlammOutput
from glamm_mini.storybook.pretrain.auxiliary_heads import BoxAid, PointAid, seg_boxes
from glamm_mini.storybook.pretrain.dense_labels import DenseHeads, DenseLabels, dense_labels
from glamm_mini.storybook.pretrain.encoder_stage import visible_things
from glamm_mini.storybook.pretrain.mentions import MentionFinder, mention_labels

DENSE_WEIGHT = 0.3
REGION_WEIGHT = 0.05
"""Of each visible thing: a picture has about five of them."""


class JointTraining(nn.Module):
    """GLaMM and its aids. Labels of patches and regions keep the encoders seeing what the words do not ask for; see
    also BoxAid and PointAid."""

    def __init__(
        self,
        glamm: GlammForConditionalGeneration,
        heads: DenseHeads | None = None,
        region_heads: DenseHeads | None = None,
        box: BoxAid | None = None,
        point: PointAid | None = None,
    ):
        super().__init__()
        self.glamm = glamm
        self.heads = heads or DenseHeads(glamm.config.vision.hidden_size)
        self.region_heads = region_heads or DenseHeads(glamm.config.text.hidden_size)
        self.box = box or BoxAid(glamm.config)
        self.point = point or PointAid(glamm.config)

    def forward(
        self, dense=None, things=None, seg_boxes=None, mentions=None, mentioned=None, normalizers=None, **batch
    ) -> GlammOutput:
        """The model's batch with `dense` labels of patches, `things` as `visible_things` makes them, `seg_boxes`
        (M, 4), fractions of the padded square, and what `mention_labels` makes."""
        normalizers = normalizers or {}
        out = self.glamm(normalizers=normalizers, output_hidden_states=mentions is not None, **batch)
        if dense is not None:
            self._see(out, dense, things, normalizers)
        if mentions is not None:
            count = normalizers.get("images")
            out.losses["point"] = self.point(out.hidden_states, out.spliced_ids, mentions, mentioned, count)
            out.loss = out.loss + out.losses["point"]
        if seg_boxes is not None and len(seg_boxes):
            count = max(normalizers.get("masks", len(seg_boxes)), 1)
            out.losses["box"] = self.box(out.last_hidden, out.spliced_ids, seg_boxes, count)
            out.loss = out.loss + out.losses["box"]
        return out

    def _see(self, out: GlammOutput, dense: DenseLabels, things: dict, normalizers: dict) -> None:
        """Add what the heads say of patches and of visible things; sums over images, divided by their number."""
        levels = out.image_features.levels
        # levels[-1] is the last hidden state: the same patches that the language model reads.
        tokens = levels[-1].flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, P, C)
        count = normalizers.get("images", len(tokens))
        out.losses["dense"] = sum(self.heads(tokens, dense).values()) / count
        vectors = self.glamm.region_encoder(levels, things["boxes"])[:, None]  # (N, D) -> (N, 1, D)
        out.losses["regions"] = sum(self.region_heads(vectors, things["regions"]).values()) / count
        out.loss = out.loss + DENSE_WEIGHT * out.losses["dense"] + REGION_WEIGHT * out.losses["regions"]


class JointCollate(Collate):
    """Collate, plus what the aids need."""

    def __init__(self, processor, pack: bool = True):
        super().__init__(processor, pack)
        self.find = MentionFinder(processor.tokenizer)

    def __call__(self, samples: list[Sample]) -> dict:
        batch = super().__call__(samples)
        batch["dense"] = dense_labels(samples, self.processor.config.image_grid)
        batch["things"] = visible_things(samples)
        batch["seg_boxes"] = seg_boxes(batch["masks"])
        return batch | mention_labels(self.find, batch, batch["dense"])
