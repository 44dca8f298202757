"""The tiny language model's own training: storybook conversations about pictures that are spelled out in code."""

import torch
from torch import nn
from torch.nn import functional as F

from glamm_mini.data.collate import Collate
from glamm_mini.data.sample import Sample
from glamm_mini.model import losses
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.splice import language_output, put_images, put_regions
from glamm_mini.model.tokens import IGNORE_INDEX
from glamm_mini.storybook.pretrain.auxiliary_heads import BoxAid, PointAid, seg_boxes
from glamm_mini.storybook.pretrain.code_book import PROMPT_CODE, CodeBook
from glamm_mini.storybook.pretrain.dense_labels import dense_labels, mask_labels, region_labels
from glamm_mini.storybook.pretrain.encoder_stage import BackboneOutput
from glamm_mini.storybook.pretrain.mentions import MentionFinder, mention_labels

SPOKEN = {
    "conversations": 12,
    "mixture": {"gcg": 2.0, "refseg": 8.0, "regcap": 2.0, "caption": 0.2, "grounding": 2.0, "vqa": 14.0, "chat": 0.7},
}
"""How it is spoken about a scene: more questions than in the joint stage, as each teaches little and costs little, and
more of everything, as the picture's share of a row is paid once."""

NOISE = 0.15
"""Spread of the noise on every code: what an encoder writes is never exact."""


class LanguageTraining(nn.Module):
    """The language model reads a picture in code, speaks about it, and writes in code what each [SEG] means."""

    def __init__(self, glamm: GlammForConditionalGeneration):
        super().__init__()
        c = self.config = glamm.config
        self.language_model = glamm.language_model
        self.lp_projector = glamm.lp_projector
        self.box = BoxAid(c)
        self.point = PointAid(c)
        self.picture_code = CodeBook(c.text.hidden_size, grid=c.image_grid)
        self.region_code = CodeBook(c.text.hidden_size)
        self.prompt_code = CodeBook(c.grounding.prompt_dim, **PROMPT_CODE)

    def forward(
        self,
        input_ids,
        attention_mask,
        labels,
        segment_ids,
        image_index,
        boxes,
        picture,
        regions,
        prompts,
        seg_boxes,
        mentions,
        mentioned,
    ) -> BackboneOutput:
        """Rows as `Collate` makes them; picture, regions, prompts: DenseLabels of patches, boxes and [SEG];
        mentions (M, 2), mentioned (M, P): see PointAid."""
        embeds = self.language_model.get_input_embeddings()(input_ids.clamp(min=0))
        counts = [None if b is None else len(b) for b in boxes]
        vectors = self._noisy(self.region_code(regions)[:, 0])  # (N, 1, D) -> (N, D)
        embeds = put_regions(embeds, input_ids, self.config.tokens.bbox, vectors, counts)
        tokens = self._noisy(self.picture_code(picture))
        spliced = put_images(embeds, input_ids, attention_mask, labels, segment_ids, tokens, image_index)
        out = language_output(self.language_model, spliced, output_hidden_states=True)
        hidden = out.last_hidden_state
        keep = spliced.labels[:, 1:] != IGNORE_INDEX
        logits = self.language_model.lm_head(hidden[:, :-1][keep])  # (K, V)
        parts = {"ce": losses.cross_entropy_sum(logits, spliced.labels[:, 1:][keep]) / keep.sum().clamp(min=1)}
        parts["box"] = self.box(hidden, spliced.ids, seg_boxes)
        parts["point"] = self.point(out.hidden_states, spliced.ids, mentions, mentioned)
        at = (spliced.ids == self.config.tokens.seg).nonzero()
        written = self.lp_projector(hidden[at[:, 0], at[:, 1] - 1])
        parts["prompt"] = F.mse_loss(written.float(), self.prompt_code(prompts)[:, 0])
        return BackboneOutput(sum(parts.values()), parts)

    def _noisy(self, code: torch.Tensor) -> torch.Tensor:
        return code + NOISE * torch.randn_like(code)


class LanguageCollate(Collate):
    """Conversations, and labels in place of the pictures."""

    def __init__(self, processor, pack: bool = True):
        super().__init__(processor, pack)
        self.find = MentionFinder(processor.tokenizer)

    def __call__(self, samples: list[Sample]) -> dict:
        batch = super().__call__(samples)
        wanted = ("input_ids", "attention_mask", "labels", "segment_ids", "image_index", "boxes")
        picture = dense_labels(samples, self.processor.config.image_grid)
        labels = {
            "picture": picture,
            "regions": region_labels(samples, batch["boxes"]),
            "prompts": mask_labels(samples, batch["masks"]),
            "seg_boxes": seg_boxes(batch["masks"]),
        }
        return {name: batch[name] for name in wanted} | labels | mention_labels(self.find, batch, picture)
