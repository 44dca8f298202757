"""Our numbers for training and generation, under the names of a reference case, in the order in which data flow."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint
from transformers import LogitsProcessor

from glamm_mini.checkpoints.official import official_to_ours
from glamm_mini.training.optimizer import gradient_norm

FORCED = 1e4
"""What the reference adds to the logit of [SEG] where it forces one."""


class ForceSeg(LogitsProcessor):
    """Adds FORCED to [SEG] at chosen new tokens; keeps the margin between the best two logits of every step."""

    def __init__(self, seg: int, steps):
        self.seg, self.steps, self.margins = seg, set(steps), []

    def __call__(self, input_ids, scores):
        """scores (1, V) before the choice of one token; returns them with [SEG] raised in a chosen step."""
        scores = scores.clone()
        if len(self.margins) in self.steps:
            scores[:, self.seg] += FORCED
        best = scores.topk(2, dim=-1).values
        self.margins.append(float(best[0, 0] - best[0, 1]))
        return scores


class LanguageOutputs:
    """Training and generation; needs `case` and `model`."""

    def tensor(self, part: str, name: str) -> torch.Tensor:
        """A stored array of whole numbers or booleans, as the model's input."""
        return torch.from_numpy(self.case.arrays(part)[name])

    # --- training ---------------------------------------------------------------------------------------------------

    def batch(self, tag: str) -> dict:
        """The training batch of one tag; `offset` says which rows belong to which image."""
        case, meta = self.case, self.case.meta["train"][tag]
        ids = self.tensor("train", f"{tag}/input_ids")
        ends = meta["offset"]
        images = [i for i in range(len(ends) - 1) for _ in range(ends[i + 1] - ends[i])]
        batch = dict(
            input_ids=ids,
            attention_mask=self.tensor("train", f"{tag}/attention_masks"),
            labels=self.tensor("train", f"{tag}/labels"),
            global_images=case.global_images,
            image_index=torch.tensor(images),
            boxes=case.boxes_for(ids, images),
            return_logits=True,
        )
        if self._has_masks(tag):
            segs = (ids == case.meta["config"]["ids"]["seg"]).sum(1)
            counts = [int(segs[ends[i] : ends[i + 1]].sum()) for i in range(len(ends) - 1)]
            batch |= dict(
                grounding_images=case.grounding_images,
                resized=case.resized,
                original=case.original,
                masks=[self.truth(tag, i, n) for i, n in enumerate(counts)],
            )
        return batch

    def _has_masks(self, tag: str) -> bool:
        stored = any(name.startswith(f"{tag}/sam_embedding") for name in self.case.names("train"))
        return stored or "seg_positions_in_input_ids" in self.case.meta["train"][tag]

    def truth(self, tag: str, image: int, count: int) -> torch.Tensor:
        """True masks (M, H, W), the image's rectangles in turn; one more where the tag has more masks than [SEG]."""
        rectangles = [torch.from_numpy(m) for m in self.case.rectangles(image)]
        count += "extra_gt" in tag
        masks = [rectangles[k % len(rectangles)] for k in range(count)]
        return torch.stack(masks) if masks else torch.zeros(0, *self.case.original[image])

    def train(self, tag: str) -> Iterator[tuple[str, torch.Tensor]]:
        """One pass in training mode, then the gradients whose numbers the case stores, as "grad/..." (whole) and
        "grad_norm/..." (their norms), each under its official name and let go as soon as it is complete."""
        model, batch = self.model, self.batch(tag)
        for stored, given in (("input_ids",) * 2, ("labels",) * 2, ("attention_masks", "attention_mask")):
            yield stored, batch[given]
        norms = self.case.gradient_norms(tag)
        prefix = f"{tag}/grad/"
        whole = {n.removeprefix(prefix) for n in self.case.names("train") if n.startswith(prefix)}
        with gradients_of(model, norms.keys() | whole, whole) as found, sparing(model):
            with torch.set_grad_enabled(bool(norms or whole)):
                out = model(**batch)
            yield from self._forward_values(out, batch)
            loss = out.loss
            del out
            if norms or whole:
                loss.backward()
        for name in sorted(whole):
            yield f"grad/{name}", found.pop("whole " + name)
        for name in norms:
            yield f"grad_norm/{name}", found.get(name, torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def _forward_values(self, out, batch):
        yield "last_hidden", out.last_hidden
        yield "logits", out.logits
        out.logits = None
        if out.seg_positions is not None:
            yield from self._grounded(out, batch)
        c, zero = self.model.config.losses, torch.zeros(())
        # The reference stores the losses after weighting.
        bce = c.mask_bce * out.losses.get("mask_bce", zero)
        dice = c.mask_dice * out.losses.get("mask_dice", zero)
        yield "ce_loss", c.cross_entropy * out.losses["ce"].double()
        yield "mask_bce_loss", bce.double()
        yield "mask_dice_loss", dice.double()
        yield "mask_loss", (bce + dice).double()
        yield "loss", out.loss.double()

    def _grounded(self, out, batch):
        model = self.model
        yield "text_hidden_fcs_out", model.lp_projector(out.last_hidden)
        where = torch.zeros(out.last_hidden.shape[:2], dtype=torch.bool)
        where[out.seg_positions[:, 0], out.seg_positions[:, 1]] = True
        yield "seg_token_mask", where
        images = batch["image_index"][out.seg_positions[:, 0]]
        grounding = out.image_features.grounding
        _, quality = model.pixel_decoder(grounding, out.prompts[:, None], images)
        each = range(len(out.mask_logits))
        yield from ((f"pred_embeddings_image{i}", out.prompts[images == i]) for i in each)
        yield from ((f"sam_embedding_image{i}", grounding[i : i + 1]) for i in each)
        yield from ((f"low_res_masks_image{i}", out.low_res[images == i][:, None]) for i in each)
        yield from ((f"iou_pred_image{i}", quality[images == i][:, None]) for i in each)
        yield from ((f"pred_masks_image{i}", out.mask_logits[i]) for i in each)

    # --- generation -------------------------------------------------------------------------------------------------

    def generate(self, tag: str) -> Iterator[tuple[str, torch.Tensor]]:
        """A greedy answer, where the case says how many tokens it has; else one pass over the answer that is given."""
        told = "steps" in self.case.meta["generate"].get(tag, {})
        free = told or f"{tag}/sequences" in self.case.arrays("generate")
        return self._answer(tag) if free else self._teacher_forced(tag)

    def _one_image(self, tag: str) -> tuple[int, dict]:
        meta = self.case.meta["generate"].get(tag, {})
        image = meta["image"] if "image" in meta else int(tag[-1])  # teacher_forced0, teacher_forced1
        one = slice(image, image + 1)
        return image, dict(
            input_ids=self.tensor("generate", f"{tag}/input_ids"),
            global_images=self.case.global_images[one],
            grounding_images=self.case.grounding_images[one],
            resized=self.case.resized[one],
            original=self.case.original[one],
        )

    def _answer(self, tag: str):
        meta = self.case.meta["generate"].get(tag, {})
        image, batch = self._one_image(tag)
        force = ForceSeg(self.model.config.tokens.seg, meta.get("forced_seg_at", []))
        whole = self.case.arrays("generate").get(f"{tag}/sequences")
        steps = meta["steps"] if whole is None else whole.shape[1] - batch["input_ids"].shape[1]
        out = self.model.generate(
            **batch,
            boxes=self.case.boxes_for(batch["input_ids"], [image]),
            max_new_tokens=steps,
            logits_processor=[force],
        )
        masks = out.mask_logits[0]
        yield "input_ids", batch["input_ids"]
        yield "last_hidden", out.last_hidden
        yield "margin", torch.tensor(force.margins, dtype=torch.float64)
        yield "sequences", torch.cat([batch["input_ids"], out.sequences], dim=1)
        yield "seg_positions", out.seg_steps[0] + batch["input_ids"].shape[1]
        yield "pred_embeddings", out.prompts[0]
        yield "low_res_masks", out.low_res[0][:, None]
        yield "pred_masks", masks
        yield "mask_area", torch.stack([(masks > 0).flatten(1).sum(1), _near_zero(masks)])

    @torch.no_grad()
    def _teacher_forced(self, tag: str):
        _, batch = self._one_image(tag)
        yield "input_ids", batch["input_ids"]
        yield "pred_masks", self.model(**batch).mask_logits[0]


NEAR = 1e-3
"""Pixels whose logit is closer to zero may fall on either side of the threshold."""


def _near_zero(masks: torch.Tensor) -> torch.Tensor:
    return (masks.abs() < NEAR).flatten(1).sum(1)


@contextmanager
def gradients_of(model, wanted, whole):
    """A training pass whose gradients become norms (float64) at once: {official name: norm}, and, for names in
    `whole`, {"whole " + official name: gradient}. Only `wanted` parameters have gradients; none is kept."""
    found, hooks = {}, []

    def keep(name, parameter):
        found[name] = gradient_norm([parameter.grad])
        if name in whole:
            found["whole " + name] = parameter.grad
        parameter.grad = None

    parameters = {name: model.get_parameter(official_to_ours(name)) for name in wanted}
    for name, parameter in parameters.items():
        parameter.requires_grad_(True)
        hooks.append(parameter.register_post_accumulate_grad_hook(partial(keep, name)))
    model.train()
    try:
        yield found
    finally:
        model.eval()
        for hook, parameter in zip(hooks, parameters.values(), strict=True):
            hook.remove()
            parameter.requires_grad_(False)


@contextmanager
def sparing(model):
    """Rounds of the region encoder's mixing forget what they computed and compute it again for their gradients: at
    full width each holds over a gigabyte. The numbers are the same."""
    mixers = list(model.region_encoder.mixers)
    for mixer in mixers:
        mixer.forward = partial(checkpoint, mixer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for mixer in mixers:
            del mixer.forward
