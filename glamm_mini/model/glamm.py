"""GLaMM: all parts joined. One forward pass for training, one generate for answers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.utils import can_return_tuple

from glamm_mini.arguments import check_counts, check_ids, check_sizes, rows_about
from glamm_mini.dtypes import across_types, in_type_of
from glamm_mini.model import losses
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.language import LanguageModel, answer, states_anew
from glamm_mini.model.outputs import Boxes, GlammGenerated, GlammOutput, ImageFeatures, Indices, Sizes
from glamm_mini.model.pretrained import GlammPreTrained
from glamm_mini.model.region_encoder import RegionEncoder
from glamm_mini.model.sam import GroundingImageEncoder, LPProjector, PixelDecoder, upscale_logits
from glamm_mini.model.splice import Spliced, language_output, pad_left, put_images, put_regions
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from glamm_mini.model.vision import GlobalImageEncoder, VLProjector


class GlammForConditionalGeneration(GlammPreTrained):
    """Grounding Large Multimodal Model (paper section 3.1), the same class at every size."""

    def __init__(self, config: GlammConfig, built: Callable[[Self], None] | None = None) -> None:
        """built: told of the new model before any weight is read into it; raises if these do not fit."""
        super().__init__(config)
        width = config.text.hidden_size
        self.global_encoder = GlobalImageEncoder(config)
        self.vl_projector = VLProjector(config.vision.hidden_size, width)
        self.region_encoder = RegionEncoder(config)
        self.language_model = LanguageModel(config.text)
        self.grounding_encoder = GroundingImageEncoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.lp_projector = LPProjector(width, config.grounding.prompt_dim)
        self.post_init()
        if built is not None:
            built(self)

    def encode_images(self, global_images: Tensor, grounding_images: Tensor | None = None) -> ImageFeatures:
        """global_images (I, 3, S, S) and, where masks are wanted, grounding_images (I, 3, G, G)."""
        given, sides = {"global": global_images}, (self.config.vision.image_size, self.config.grounding.image_size)
        given |= {} if grounding_images is None else {"grounding": grounding_images}
        for (kind, x), side in zip(given.items(), sides, strict=False):
            floats = isinstance(x, Tensor) and x.is_floating_point()
            if not floats or x.ndim != 4 or x.shape != (len(global_images), 3, side, side):
                shown = f"have shape {tuple(x.shape)}" if floats else f"are {getattr(x, 'dtype', type(x).__name__)}"
                raise ValueError(f"{kind} images {shown}; expected (B, 3, {side}, {side}), B global and grounding ones")
        features, grounding = self.global_encoder(global_images), None
        if grounding_images is not None:
            grounding = self.grounding_encoder(in_type_of(self.grounding_encoder, grounding_images))
        tokens = self.vl_projector(in_type_of(self.vl_projector, features.tokens))
        for kind, x in given.items():
            if not bool(x.isfinite().all()):  # asked when a GPU has all its work
                raise ValueError(f"{kind} images are not finite; look at the pictures")
        return ImageFeatures(tokens, features.levels, grounding)

    def _features(self, made: ImageFeatures | None, *given: Tensor | Sizes | None) -> ImageFeatures | None:
        """Those that are there already, or those of the images given, to which the sizes must belong."""
        global_images, grounding_images, *sizes = given
        if not isinstance(made, ImageFeatures | None):
            raise ValueError(f"image_features is a {type(made).__name__}; expected what encode_images returns")
        if made is None and global_images is not None:
            made = self.encode_images(global_images, grounding_images)
        check_sizes(made and len(made.tokens), self.config.grounding.image_size, *sizes)
        return made

    def splice(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        features: ImageFeatures | None = None,
        image_index: Indices | None = None,
        boxes: Boxes | None = None,
        segment_ids: Tensor | None = None,
    ) -> Spliced:
        """Ids (R, L), with images and boxes, to what the language model is fed; row r is about image r by default."""
        images, words = () if features is None else features.tokens, self.config.text.vocab_size
        check_ids(input_ids, attention_mask, labels, segment_ids, words, IMAGE_TOKEN_INDEX, IGNORE_INDEX)
        of_rows, boxes = rows_about(len(input_ids), len(images), image_index, boxes)
        attention = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        embeds = self.get_input_embeddings()(input_ids.clamp(min=0))
        counts = [None if b is None else len(b) for b in boxes]
        regions = self._regions(features, of_rows, boxes) if any(counts) else None
        embeds = put_regions(embeds, input_ids, self.config.tokens.bbox, regions, counts)
        return put_images(embeds, input_ids, attention, labels, segment_ids, images, of_rows)

    def _regions(self, features: ImageFeatures | None, of_rows: list[int], boxes: Boxes) -> Tensor:
        """One vector a box, in row order; the pyramid is built once an image, and only for images with boxes."""
        rows = [r for r, b in enumerate(boxes) if b is not None and len(b)]
        if features is None or any(of_rows[r] < 0 for r in rows):
            raise ValueError("boxes were given for a row without image; a box needs the image it lies in")
        # roi_align takes the boxes image by image; the order of rows is put back afterwards.
        images, order = sorted({of_rows[r] for r in rows}), sorted(rows, key=of_rows.__getitem__)
        keep = torch.tensor(images, device=features.tokens.device)
        levels = [in_type_of(self.region_encoder, level[keep]) for level in features.levels]
        grouped = [torch.cat([boxes[r] for r in order if of_rows[r] == image]) for image in images]
        vectors = self.region_encoder(levels, grouped).split([len(boxes[r]) for r in order])
        return torch.cat([vectors[order.index(r)] for r in rows])

    def seg_positions(self, ids: Tensor) -> Tensor:
        """(M, 2): row and position of the state that stands for each [SEG] of ids (R, T), in row order."""
        found, before = (ids == self.config.tokens.seg).nonzero(), int(self.config.seg_state == "before")
        return found - torch.tensor([0, before], device=found.device)

    def decode_masks(self, states: Tensor, grounding: Tensor, image_of_mask: Tensor) -> tuple[Tensor, Tensor]:
        """States (M, D) of [SEG] tokens to prompts (M, C) and mask logits (M, m, m)."""
        prompts = self.lp_projector(in_type_of(self.lp_projector, states))
        fed = in_type_of(self.pixel_decoder.mask_decoder, prompts)
        low_res, _ = self.pixel_decoder(grounding.to(fed.dtype), fed[:, None], image_of_mask)
        return prompts, low_res

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        global_images: Tensor | None = None,
        grounding_images: Tensor | None = None,
        image_index: Indices | None = None,
        boxes: Boxes | None = None,
        masks: Sequence[Tensor] | None = None,
        resized: Sizes | None = None,
        original: Sizes | None = None,
        segment_ids: Tensor | None = None,
        normalizers: Mapping[str, float] | None = None,
        image_features: ImageFeatures | None = None,
        return_logits: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        inputs_embeds: None = None,
    ) -> GlammOutput:
        """One pass over whole rows. return_dict=False gives a tuple, as transformers' models do.

        Args:
            input_ids, attention_mask, labels, segment_ids: (R, L); padding on the right. inputs_embeds: not taken.
            global_images, grounding_images: (I, 3, S, S) and (I, 3, G, G), as the processor makes them.
            image_index: the image of each row, default row r's is image r.
            masks: per image (M, H, W), one for each of its [SEG], in row order.
            resized, original: of each image inside the grounding encoder's square, and of the picture.
            normalizers: "tokens" and "masks", what the losses are divided by; default: this batch's counts.
            image_features: of an earlier `encode_images`, in place of images. return_logits: default without labels.

        Raises ValueError that names the row or image for rows, images, boxes and masks that do not belong together.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("GLaMM reads input_ids, not inputs_embeds: images and boxes become embeddings inside")
        check_counts(normalizers, masks)
        features = self._features(image_features, global_images, grounding_images, resized, original)
        spliced = self.splice(input_ids, attention_mask, labels, features, image_index, boxes, segment_ids)
        with across_types(self.language_model):
            wanted = dict(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
            words = language_output(self.language_model, spliced, **{k: v for k, v in wanted.items() if v})
        hidden = words.last_hidden_state
        out = GlammOutput(last_hidden=hidden, spliced_ids=spliced.ids, image_features=features)
        out.hidden_states, out.attentions = words.hidden_states, words.attentions
        if features is not None and features.grounding is not None:
            self._ground(out, spliced, resized, original)
        if labels is not None:
            self._add_losses(out, spliced.labels, masks, normalizers or {})
        if out.loss is not None and self.training and (out.prompts is None or len(out.prompts) == 0):
            out.loss = out.loss + self._touch_decoder(hidden, features)
        if return_logits or (return_logits is None and labels is None):
            out.logits = self._logits(hidden)
        return out

    def _logits(self, hidden: Tensor) -> Tensor:
        """States (..., D) to logits (..., V)."""
        return self.language_model.lm_head(in_type_of(self.language_model.lm_head, hidden))

    def _touch_decoder(self, hidden: Tensor, features: ImageFeatures | None) -> Tensor:
        """Zero by way of the decoder: a process without masks must touch it, or averaging gradients waits for ever."""
        c, grounding = self.config.grounding, features and features.grounding
        if grounding is None:
            grounding = hidden.new_zeros(1, c.prompt_dim, c.grid, c.grid)
        _, low_res = self.decode_masks(hidden[:1, 0], grounding, torch.zeros(1, dtype=torch.long, device=hidden.device))
        return 0.0 * low_res.sum()

    def _ground(self, out: GlammOutput, spliced: Spliced, *sizes: Sizes | None) -> None:
        """Adds a mask for every [SEG]."""
        at = self.seg_positions(spliced.ids)
        images = torch.tensor(spliced.images, device=at.device)[at[:, 0]]
        at, images = at[images >= 0], images[images >= 0]  # a [SEG] in a row without image has nothing to point at
        out.seg_positions = at
        states = out.last_hidden[at[:, 0], at[:, 1]]
        out.prompts, out.low_res = self.decode_masks(states, out.image_features.grounding, images)
        if all(given is not None for given in sizes):
            out.mask_logits = self._upscaled([out.low_res[images == i] for i in range(len(sizes[0]))], *sizes)

    def _upscaled(self, masks: Sequence[Tensor], *sizes: Sizes) -> list[Tensor]:
        """Mask logits (M, m, m) of each picture to (M, H, W)."""
        side = self.config.grounding.image_size
        return [upscale_logits(low_res, side, *own) for low_res, *own in zip(masks, *sizes, strict=True)]

    def _add_losses(self, out: GlammOutput, labels: Tensor, masks: Sequence[Tensor] | None, counts: Mapping) -> None:
        """Adds the losses of words (labels (R, T)) and, where there are masks, of pixels."""
        c = self.config.losses
        keep = labels[:, 1:] != IGNORE_INDEX
        target = labels[:, 1:][keep].long()
        logits = self._logits(out.last_hidden[:, :-1][keep])  # (K, V), supervised positions only
        parts = {"ce": losses.cross_entropy_sum(logits, target) / counts.get("tokens", max(len(target), 1))}
        total = c.cross_entropy * parts["ce"]
        if masks is not None and (out.mask_logits is not None or any(map(len, masks))):
            bce, dice, count = losses.mask_sums(out.mask_logits, masks, c, cut_surplus=self.config.mode == "official")
            count = counts.get("masks") or max(count, 1)
            parts |= {"mask_bce": bce / count, "mask_dice": dice / count}
            total = total + c.mask_bce * parts["mask_bce"] + c.mask_dice * parts["mask_dice"]
        out.loss, out.losses = total, parts

    # The official code generates without a cache, since its masks need the states of the whole row: it computes every
    # image, region and token again at each step. With a cache each step gives one state; collected, they are the same.
    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        global_images: Tensor | None = None,
        grounding_images: Tensor | None = None,
        image_index: Indices | None = None,
        boxes: Boxes | None = None,
        resized: Sizes | None = None,
        original: Sizes | None = None,
        image_features: ImageFeatures | None = None,
        **kwargs: Any,
    ) -> GlammGenerated:
        """Answers for prompts (R, L), padded on the LEFT when their lengths differ. Several threads may call it.

        Args:
            image_features, image_index: as in `forward`, and so is the rest; several rows may ask about one image.
            kwargs: go to transformers' generate (max_new_tokens, do_sample, num_beams, logits_processor, streamer,
                generation_config, return_dict_in_generate with output_scores ...). Greedy unless said otherwise.

        Raises ValueError as `forward` does, and for ways to generate that GLaMM cannot go (`REFUSED`, `MODES`).
        """
        pad = self.config.text.pad_token_id
        if attention_mask is None and isinstance(input_ids, Tensor) and pad != self.config.text.bos_token_id:
            if pad is not None and bool((input_ids[..., :1] == pad).any()):
                raise ValueError(f"input_ids begin with padding ({pad}); give the attention_mask that tells what it is")
        features = self._features(image_features, global_images, grounding_images, resized, original)
        spliced = self.splice(input_ids, attention_mask, None, features, image_index, boxes)
        prompt = pad_left(spliced, features and features.grounding)
        with across_types(self.language_model):
            ids, hidden, more = answer(self.language_model, prompt, **kwargs)
            # The last new token was never fed; with seg_state "at" a [SEG] there still needs its own state.
            unfed = self.config.seg_state == "at" and bool((ids[:, -1:] == self.config.tokens.seg).any())
            if hidden is None or unfed:
                hidden = states_anew(self.language_model, prompt, ids)
        # The state that predicted new token s stands at position T + s - 1 of (R, T + new, D), its own one later.
        first = prompt.embeds.shape[1] - (1 if self.config.seg_state == "before" else 0)
        steps = [(row == self.config.tokens.seg).nonzero().flatten() for row in ids]
        states = [hidden[row, found + first] for row, found in enumerate(steps)]
        result = GlammGenerated(ids, hidden, steps, states, **more)
        if features is not None and features.grounding is not None:
            of_rows = [image for image in prompt.images for _ in range(len(ids) // len(input_ids))]
            self._decode(result, features.grounding, of_rows, resized, original)
        return result

    def _decode(self, out: GlammGenerated, grounding: Tensor, of_rows: list[int], *sizes: Sizes | None) -> None:
        """Adds the masks of all rows, decoded in one call. A row without image (-1) has nothing to point at."""
        rows = [states[: None if image >= 0 else 0] for states, image in zip(out.states, of_rows, strict=True)]
        counts = [len(states) for states in rows]
        which = torch.tensor(of_rows).repeat_interleave(torch.tensor(counts)).to(grounding.device)
        prompts, low_res = self.decode_masks(torch.cat(rows), grounding, which)
        out.prompts, out.low_res = list(prompts.split(counts)), list(low_res.split(counts))
        if all(given is not None for given in sizes):
            out.mask_logits = self._upscaled(out.low_res, *([given[max(i, 0)] for i in of_rows] for given in sizes))


# transformers' Auto classes know GLaMM as soon as this class is imported.
AutoConfig.register(GlammConfig.model_type, GlammConfig)
AutoModel.register(GlammConfig, GlammForConditionalGeneration)
AutoModelForImageTextToText.register(GlammConfig, GlammForConditionalGeneration)
