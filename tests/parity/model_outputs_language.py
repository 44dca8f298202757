"""Our numbers for training and generation, under the names of the reference case."""

import torch
from transformers import LogitsProcessor

FORCED = 1e4  # what the reference adds to the logit of [SEG] where it forces one


class ForceSeg(LogitsProcessor):
    """Adds FORCED to [SEG] at chosen new tokens; keeps the margin between the best two logits of every step."""

    def __init__(self, seg: int, steps):
        self.seg, self.steps, self.margins = seg, set(steps), []

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        if len(self.margins) in self.steps:
            scores[:, self.seg] += FORCED
        best = scores.topk(2, dim=-1).values
        self.margins.append(float(best[0, 0] - best[0, 1]))
        return scores


class LanguageOutputs:
    """Training and generation; needs `case` and `model` and two dictionaries to remember results in."""

    def tensor(self, part: str, name: str) -> torch.Tensor:
        """A stored integer or boolean array, as the model's input."""
        return torch.from_numpy(self.case.arrays(part)[name])

    # ---- training ----------------------------------------------------------------------------------------------

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
        if any(name.startswith(f"{tag}/sam_embedding") for name in case.names("train")):
            segs = (ids == case.meta["config"]["ids"]["seg"]).sum(1)
            counts = [int(segs[ends[i] : ends[i + 1]].sum()) for i in range(len(ends) - 1)]
            batch |= dict(
                grounding_images=case.grounding_images,
                resized=case.resized,
                original=case.original,
                masks=[self.truth(tag, i, n) for i, n in enumerate(counts)],
            )
        return batch

    def truth(self, tag: str, image: int, count: int) -> torch.Tensor:
        """True masks (M, H, W), the image's rectangles in turn; one more where the tag has more masks than [SEG]."""
        rectangles = [torch.from_numpy(m) for m in self.case.rectangles(image)]
        count += "extra_gt" in tag
        masks = [rectangles[k % len(rectangles)] for k in range(count)]
        return torch.stack(masks) if masks else torch.zeros(0, *self.case.original[image])

    def train(self, tag: str) -> dict:
        if tag not in self._train:
            self._train[tag] = self._run_training(tag)
        return self._train[tag]

    def _run_training(self, tag: str) -> dict:
        model, batch = self.model, self.batch(tag)
        frozen = (model.global_encoder, model.grounding_encoder, model.pixel_decoder.prompt_encoder)
        for part in frozen:
            part.requires_grad_(False)
        model.train()
        model.zero_grad()
        out = model(**batch)
        out.loss.backward()
        model.eval()
        c, zero = model.config.losses, torch.zeros(())
        # The reference stores the losses after weighting.
        bce = c.mask_bce * out.losses.get("mask_bce", zero)
        dice = c.mask_dice * out.losses.get("mask_dice", zero)
        named = {
            "input_ids": batch["input_ids"],
            "labels": batch["labels"],
            "attention_masks": batch["attention_mask"],
            "loss": out.loss.double(),
            "ce_loss": c.cross_entropy * out.losses["ce"].double(),
            "mask_bce_loss": bce.double(),
            "mask_dice_loss": dice.double(),
            "mask_loss": (bce + dice).double(),
            "logits": out.logits,
            "last_hidden": out.last_hidden,
        }
        if out.seg_positions is not None:
            named |= self._grounded(out, batch)
        named["gradients"] = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        return named

    @torch.no_grad()
    def _grounded(self, out, batch) -> dict:
        model = self.model
        named = {"text_hidden_fcs_out": model.lp_projector(out.last_hidden)}
        where = torch.zeros(out.last_hidden.shape[:2], dtype=torch.bool)
        where[out.seg_positions[:, 0], out.seg_positions[:, 1]] = True
        named["seg_token_mask"] = where
        images = batch["image_index"][out.seg_positions[:, 0]]
        grounding = out.image_features.grounding
        _, quality = model.pixel_decoder(grounding, out.prompts[:, None], images)
        for i, masks in enumerate(out.mask_logits):
            named |= {
                f"pred_embeddings_image{i}": out.prompts[images == i],
                f"sam_embedding_image{i}": grounding[i : i + 1],
                f"low_res_masks_image{i}": out.low_res[images == i][:, None],
                f"iou_pred_image{i}": quality[images == i][:, None],
                f"pred_masks_image{i}": masks,
            }
        return named

    # ---- generation --------------------------------------------------------------------------------------------

    def generate(self, tag: str) -> dict:
        if tag not in self._generate:
            free = f"{tag}/sequences" in self.case.arrays("generate")
            self._generate[tag] = self._answer(tag) if free else self._teacher_forced(tag)
        return self._generate[tag]

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

    def _answer(self, tag: str) -> dict:
        meta = self.case.meta["generate"][tag]
        image, batch = self._one_image(tag)
        sequence = self.case.arrays("generate")[f"{tag}/sequences"]
        force = ForceSeg(self.model.config.tokens.seg, meta.get("forced_seg_at", []))
        out = self.model.generate(
            **batch,
            boxes=self.case.boxes_for(batch["input_ids"], [image]),
            max_new_tokens=sequence.shape[1] - batch["input_ids"].shape[1],
            logits_processor=[force],
        )
        masks = out.mask_logits[0]
        return {
            "input_ids": batch["input_ids"],
            "sequences": torch.cat([batch["input_ids"], out.sequences], dim=1),
            "margin": torch.tensor(force.margins, dtype=torch.float64),
            "last_hidden": out.last_hidden,
            "pred_embeddings": out.prompts[0],
            "low_res_masks": out.low_res[0][:, None],
            "pred_masks": masks,
            "mask_area": (masks > 0).flatten(1).sum(1),
            "seg_positions": out.seg_steps[0] + batch["input_ids"].shape[1],
        }

    @torch.no_grad()
    def _teacher_forced(self, tag: str) -> dict:
        _, batch = self._one_image(tag)
        out = self.model(**batch)
        return {"input_ids": batch["input_ids"], "pred_masks": out.mask_logits[0]}
