"""GLaMM: all parts joined. One forward pass for training, one generate for answers."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.utils import ModelOutput

from glamm_mini.model import losses
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.dtypes import across_types, in_type_of
from glamm_mini.model.initialize import initialize_weights
from glamm_mini.model.region_encoder import RegionEncoder
from glamm_mini.model.sam import GroundingImageEncoder, LPProjector, PixelDecoder, upscale_logits
from glamm_mini.model.splice import Spliced, check_rows, language_output, last_states, pad_left, put_images, put_regions
from glamm_mini.model.tokens import IGNORE_INDEX
from glamm_mini.model.vision import GlobalImageEncoder, VLProjector


@dataclass
class ImageFeatures:
    """Everything the model computes from images alone; made once, used for every turn and every mask.

    tokens: (I, P, D) projected to the language model. levels: see GlobalFeatures. grounding: (I, C, h, w) or None.
    """

    tokens: torch.Tensor
    levels: list[torch.Tensor]
    grounding: torch.Tensor | None


@dataclass
class GlammOutput(ModelOutput):
    """loss and its parts (`losses`, unweighted); logits (R, T, V) unless only the loss was asked for; last_hidden
    (R, T, D), and hidden_states of every layer if they were asked for; spliced_ids (R, T), what stands at each
    position; seg_positions (M, 2) row and position of the state used for each mask; prompts (M, C); low_res (M, m, m);
    mask_logits: per image (M_i, H, W) at the picture's size;
    image_features."""

    loss: torch.Tensor | None = None
    losses: dict | None = None
    logits: torch.Tensor | None = None
    last_hidden: torch.Tensor | None = None
    hidden_states: tuple | None = None
    spliced_ids: torch.Tensor | None = None
    seg_positions: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    low_res: torch.Tensor | None = None
    mask_logits: list | None = None
    image_features: ImageFeatures | None = None


@dataclass
class GlammGenerated:
    """sequences: (R, new) ids of the answers, without the prompt. last_hidden: (R, T, D) of prompt and all new tokens
    but the last. seg_steps: per row, the indices of [SEG] in its sequence that have a state. states: per row (M, D).
    prompts: per row (M, C). low_res: per row (M, m, m). mask_logits: per row (M, H, W); the last three are None
    where no grounding image was given."""

    sequences: torch.Tensor
    last_hidden: torch.Tensor
    seg_steps: list
    states: list
    prompts: list | None = None
    low_res: list | None = None
    mask_logits: list | None = None


class GlammForConditionalGeneration(PreTrainedModel):
    """Grounding Large Multimodal Model (paper section 3.1), the same class at every size."""

    config_class = GlammConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    main_device = None
    """Set where a model's parts lie on several devices (`checkpoints.placement`): the one that computes."""
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer", "Block"]

    def __init__(self, config: GlammConfig):
        super().__init__(config)
        width = config.text.hidden_size
        self.global_encoder = GlobalImageEncoder(config)
        self.vl_projector = VLProjector(config.vision.hidden_size, width)
        self.region_encoder = RegionEncoder(config)
        self.language_model = LlamaForCausalLM(config.text)
        self.grounding_encoder = GroundingImageEncoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.lp_projector = LPProjector(width, config.grounding.prompt_dim)
        self.post_init()

    def _init_weights(self, module: nn.Module):
        initialize_weights(module, self.config.text.initializer_range)

    @property
    def device(self) -> torch.device:
        """Where inputs go. Weights that accelerate keeps elsewhere are fetched from there when they are needed."""
        weights = (p.device for p in self.parameters() if not p.is_meta)
        return torch.device(self.main_device if self.main_device is not None else next(weights, "meta"))

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def encode_images(self, global_images: torch.Tensor, grounding_images: torch.Tensor | None = None) -> ImageFeatures:
        """global_images (I, 3, S, S) and, where masks are wanted, grounding_images (I, 3, G, G)."""
        features, grounding = self.global_encoder(global_images), None
        if grounding_images is not None:
            grounding = self.grounding_encoder(in_type_of(self.grounding_encoder, grounding_images))
        tokens = self.vl_projector(in_type_of(self.vl_projector, features.tokens))
        return ImageFeatures(tokens, features.levels, grounding)

    def splice(
        self, input_ids, attention_mask=None, labels=None, features=None, image_index=None, boxes=None, segment_ids=None
    ) -> Spliced:
        """Ids (R, L), with images and boxes, to what the language model is fed.

        boxes: per row (N, 4) normalized x0 y0 x1 y1, or None. image_index: per row, -1 for none; default: row = image.
        """
        if image_index is None:
            image_index = torch.arange(input_ids.shape[0]) if features is not None else [-1] * input_ids.shape[0]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        embeds = self.get_input_embeddings()(input_ids.clamp(min=0))
        boxes = boxes if boxes is not None else [None] * input_ids.shape[0]
        check_rows(input_ids.shape[0], 0 if features is None else len(features.tokens), image_index, boxes)
        counts = [None if b is None else len(b) for b in boxes]
        regions = self._regions(features, image_index, boxes) if any(counts) else None
        embeds = put_regions(embeds, input_ids, self.config.tokens.bbox, regions, counts)
        if features is None:
            return Spliced(embeds, attention_mask.bool(), labels, input_ids, segment_ids)
        return put_images(embeds, input_ids, attention_mask.bool(), labels, segment_ids, features.tokens, image_index)

    def _regions(self, features, image_index, boxes):
        """One vector a box, in row order; the pyramid is built once an image, and only for images with boxes."""
        rows = [r for r, b in enumerate(boxes) if b is not None and len(b)]
        if features is None or any(int(image_index[r]) < 0 for r in rows):
            raise ValueError("boxes were given for a row without image; a box needs the image it lies in")
        images = sorted({int(image_index[r]) for r in rows})
        # roi_align takes the boxes image by image; the order of rows is put back afterwards.
        grouped = [[r for r in rows if int(image_index[r]) == i] for i in images]
        per_image = [torch.cat([boxes[r] for r in group]) for group in grouped]
        keep = torch.tensor(images, device=features.tokens.device)
        levels = [in_type_of(self.region_encoder, level[keep]) for level in features.levels]
        vectors = self.region_encoder(levels, per_image)
        order = [r for group in grouped for r in group]
        pieces = dict(zip(order, vectors.split([len(boxes[r]) for r in order]), strict=True))
        return torch.cat([pieces[r] for r in rows])

    def seg_positions(self, ids: torch.Tensor) -> torch.Tensor:
        """(M, 2): row and position of the state that stands for each [SEG] of ids (R, T), in row order."""
        found = (ids == self.config.tokens.seg).nonzero()
        if self.config.seg_state == "before":
            found = found - torch.tensor([0, 1], device=found.device)
        return found

    def decode_masks(self, states: torch.Tensor, grounding: torch.Tensor, image_of_mask: torch.Tensor):
        """States (M, D) of [SEG] tokens to prompts (M, C) and mask logits (M, m, m)."""
        prompts = self.lp_projector(in_type_of(self.lp_projector, states))
        fed = in_type_of(self.pixel_decoder.mask_decoder, prompts)
        low_res, _ = self.pixel_decoder(grounding.to(fed.dtype), fed[:, None], image_of_mask)
        return prompts, low_res

    def forward(
        self,
        input_ids,
        attention_mask=None,
        labels=None,
        global_images=None,
        grounding_images=None,
        image_index=None,
        boxes=None,
        masks=None,
        resized=None,
        original=None,
        segment_ids=None,
        normalizers=None,
        image_features=None,
        return_logits=None,
        output_hidden_states=False,
    ) -> GlammOutput:
        """One pass over whole rows.

        input_ids, attention_mask, labels, segment_ids: (R, L). image_index: (R,), -1 for a row of text alone.
        boxes: per row (N, 4) normalized. masks: per image (M, H, W), one for each of its [SEG], in row order.
        resized, original: per image (height, width) inside the grounding encoder's square, and of the picture.
        normalizers: {"tokens": float, "masks": float}, what the losses are divided by; default: this batch's counts.
        """
        if image_index is None:
            count = input_ids.shape[0]
            has_image = global_images is not None or image_features is not None
            image_index = torch.arange(count) if has_image else torch.full((count,), -1)
        features = image_features
        if features is None and global_images is not None:
            features = self.encode_images(global_images, grounding_images)
        spliced = self.splice(input_ids, attention_mask, labels, features, image_index, boxes, segment_ids)
        with across_types(self.language_model):
            words = language_output(self.language_model, spliced, output_hidden_states=output_hidden_states)
        hidden = words.last_hidden_state
        out = GlammOutput(last_hidden=hidden, hidden_states=words.hidden_states, spliced_ids=spliced.ids)
        out.image_features = features
        if features is not None and features.grounding is not None:
            self._ground(out, spliced.ids, image_index, resized, original)
        if self.training and (out.prompts is None or len(out.prompts) == 0):
            out.losses = {"unused": self._touch_decoder(hidden, features)}
        if labels is not None:
            self._add_losses(out, spliced.labels, masks, normalizers or {})
        if return_logits or (return_logits is None and labels is None):
            out.logits = self._logits(hidden)
        return out

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """States (..., D) to logits (..., V)."""
        return self.language_model.lm_head(in_type_of(self.language_model.lm_head, hidden))

    def _touch_decoder(self, hidden, features):
        """Zero, by way of the decoder: a process without masks must still touch it, or gradient averaging across
        processes waits for ever."""
        c = self.config.grounding
        grounding = None if features is None else features.grounding
        if grounding is None:
            grounding = hidden.new_zeros(1, c.prompt_dim, c.grid, c.grid)
        _, low_res = self.decode_masks(hidden[:1, 0], grounding, torch.zeros(1, dtype=torch.long, device=hidden.device))
        return 0.0 * low_res.sum()

    def _ground(self, out: GlammOutput, ids, image_index, resized, original):
        at = self.seg_positions(ids)
        images = torch.as_tensor(image_index, device=ids.device)[at[:, 0]]
        at, images = at[images >= 0], images[images >= 0]  # a [SEG] in a row without image has nothing to point at
        out.seg_positions = at
        grounding = out.image_features.grounding
        states = out.last_hidden[at[:, 0], at[:, 1]]
        out.prompts, out.low_res = self.decode_masks(states, grounding, images)
        if resized is None or original is None:
            return
        size = self.config.grounding.image_size
        sizes = zip(resized, original, strict=True)
        out.mask_logits = [
            upscale_logits(out.low_res[images == i], size, tuple(r), tuple(o)) for i, (r, o) in enumerate(sizes)
        ]

    def _add_losses(self, out: GlammOutput, labels, masks, normalizers):
        c = self.config.losses
        keep = labels[:, 1:] != IGNORE_INDEX
        target = labels[:, 1:][keep]
        logits = self._logits(out.last_hidden[:, :-1][keep])  # (K, V), supervised positions only
        parts = {"ce": losses.cross_entropy_sum(logits, target) / max(normalizers.get("tokens", len(target)), 1)}
        total = c.cross_entropy * parts["ce"]
        losses.check_masks(masks, out.mask_logits)
        if masks is not None and out.mask_logits is not None:
            bce, dice, count = self._mask_losses(out.mask_logits, masks)
            count = max(normalizers.get("masks", count), 1)
            parts |= {"mask_bce": bce / count, "mask_dice": dice / count}
            total = total + c.mask_bce * parts["mask_bce"] + c.mask_dice * parts["mask_dice"]
        if out.losses:
            total = total + out.losses["unused"]
        out.loss, out.losses = total, parts

    def _mask_losses(self, mask_logits, masks):
        c = self.config.losses
        bce = dice = torch.zeros((), device=mask_logits[0].device)
        count = 0
        for i, (logits, truth) in enumerate(zip(mask_logits, masks, strict=True)):
            truth = losses.match_truth(i, logits, truth, cut_surplus=self.config.mode == "official")
            if len(logits) == 0:
                continue
            bce = bce + losses.mask_bce_sum(logits, truth)
            dice = dice + losses.mask_dice_sum(logits, truth, c.dice_scale, c.dice_eps)
            count += len(logits)
        return bce, dice, count

    # --- answers: the official code generates without a cache and computes every image, region and token again at each
    # step, because its masks need the states of the whole sequence. With a cache each step returns the state of the new
    # position alone; collected, they are the same numbers.

    @torch.no_grad()
    def generate(
        self,
        input_ids,
        attention_mask=None,
        global_images=None,
        grounding_images=None,
        image_index=None,
        boxes=None,
        resized=None,
        original=None,
        image_features=None,
        **kwargs,
    ) -> GlammGenerated:
        """Answers for prompts (R, L), padded on the LEFT when their lengths differ.

        kwargs go to transformers' generate (max_new_tokens, do_sample, temperature, logits_processor ...).
        Pass `image_features` of an earlier `encode_images` to answer again about the same images; several rows may
        ask about one image, by `image_index`. Raises ValueError for beams, whose rows change places at every step,
        and for generation without a cache.
        """
        for name, only in (("num_beams", 1), ("num_return_sequences", 1), ("use_cache", True)):
            if kwargs.get(name, only) != only:
                raise ValueError(f"{name} is {kwargs[name]!r}; generation with masks takes {only!r} only: leave it out")
        features = image_features
        if features is None and global_images is not None:
            features = self.encode_images(global_images, grounding_images)
        if image_index is None:
            rows = input_ids.shape[0]
            image_index = torch.arange(rows) if features is not None else torch.full((rows,), -1)
        spliced = self.splice(input_ids, attention_mask, None, features, image_index, boxes)
        spliced = pad_left(spliced)
        kwargs.setdefault("do_sample", False)
        kwargs.setdefault("pad_token_id", self.config.text.pad_token_id)
        kwargs.setdefault("eos_token_id", self.config.text.eos_token_id)
        with last_states(self.language_model.model) as states, across_types(self.language_model):
            sequences = self.language_model.generate(
                inputs_embeds=spliced.embeds, attention_mask=spliced.attention.long(), **kwargs
            )
        result = self._collect(sequences, torch.cat(states, dim=1), spliced.embeds.shape[1])
        if features is not None and features.grounding is not None:
            self._decode(result, features.grounding, image_index, resized, original)
        return result

    def _collect(self, sequences, hidden, prompt_length) -> GlammGenerated:
        """States of [SEG] by step: the state that predicted new token s stands at position prompt_length + s - 1."""
        offset = prompt_length - (1 if self.config.seg_state == "before" else 0)
        steps, states = [], []
        for row, ids in enumerate(sequences):
            found = (ids == self.config.tokens.seg).nonzero().flatten()
            # The last new token was never fed, so that with seg_state "at" it has no state of its own.
            found = found[found + offset < hidden.shape[1]]
            steps.append(found)
            states.append(hidden[row, found + offset])
        return GlammGenerated(sequences, hidden, steps, states)

    def _decode(self, result, grounding, image_index, resized, original):
        counts = [len(s) for s in result.states]
        images = torch.as_tensor(image_index, device=grounding.device).clamp(min=0)
        which = torch.repeat_interleave(images, torch.tensor(counts, device=grounding.device))
        prompts, low_res = self.decode_masks(torch.cat(result.states), grounding, which)
        result.prompts, result.low_res = list(prompts.split(counts)), list(low_res.split(counts))
        if resized is None:
            return
        size = self.config.grounding.image_size
        result.mask_logits = [
            upscale_logits(masks, size, tuple(resized[int(i)]), tuple(original[int(i)]))
            for masks, i in zip(result.low_res, images, strict=True)
        ]
