"""Our numbers under the names of a reference case, in the order in which data flow; nothing is kept longer than needed.

Every stage is a generator of (name in the npz file, tensor). Whoever compares takes one at a time and lets it go, so
that a case of 1.4 billion parameters needs little more memory than its model.
"""

from collections.abc import Iterator
from functools import cached_property

import torch

from glamm_mini.checks.parity import weights
from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.checks.parity.language_outputs import LanguageOutputs
from glamm_mini.model.tokens import IMAGE_TOKEN_INDEX

Named = Iterator[tuple[str, torch.Tensor]]


class Outputs(LanguageOutputs):
    """What our `model` makes of the inputs of a `case`; see LanguageOutputs for training and generation."""

    def __init__(self, case: ReferenceCase, model):
        self.case, self.model = case, model

    def stages(self) -> list[str]:
        """Names of the stages that the case has numbers for, in order: "vision", "region", "splice reg_boxes", ..."""
        case = self.case
        single = [part for part in ("vision", "region") if case.names(part)]
        tags = [f"{part} {tag}" for part in ("splice", "train", "generate") for tag in case.tags(part)]
        return single + tags

    def stage(self, name: str) -> Named:
        """Everything that we can compute for one stage, under the names of its npz file."""
        part, _, tag = name.partition(" ")
        made = getattr(self, part)(tag) if tag else getattr(self, part)()
        for key, value in made:
            yield (f"{tag}/{key}" if tag else key), value

    @cached_property
    @torch.no_grad()
    def features(self):
        """The global encoder's part of both images, which is small; the regions need its levels."""
        return self.model.encode_images(self.case.global_images)

    # --- vision and regions -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def vision(self) -> Named:
        """Every hidden state of CLIP, the layer that is read, and what the projector makes of it."""
        encoder = self.model.global_encoder
        states = encoder.clip(self.case.global_images, output_hidden_states=True).hidden_states
        for i, state in enumerate(states):
            yield f"clip_hidden_{i}", state
        yield "clip_hidden_last", states[-1]
        del states
        yield "features", encoder(self.case.global_images).tokens
        yield "projected", self.features.tokens

    @torch.no_grad()
    def region(self) -> Named:
        """The pyramid before and after the mixing, then all stages of every box set."""
        seen = []
        # What goes into the first convolutions, without the two channels of coordinates.
        hooks = [
            conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, :-2]))
            for conv in self.model.region_encoder.inputs
        ]
        maps = self.model.region_encoder.pyramid(self.features.levels)
        for hook in hooks:
            hook.remove()
        for i in range(len(seen)):
            yield f"fuse_in_level{i}", seen[i]
            seen[i] = None
        fused = self.model.region_encoder.fuse(maps)
        del maps
        for i, level in enumerate(fused):
            yield f"fuse_out_level{i}", level
        for name, boxes in self.case.boxes.items():
            for key, value in self.regions(fused, boxes).items():
                yield f"{name}/{key}", value

    @torch.no_grad()
    def regions(self, fused: list[torch.Tensor], boxes: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """All stages behind the mixing for one box set, in order; hooks read what the linear layers take and give."""
        encoder, seen = self.model.region_encoder, {}

        def keep_flatten(module, inputs, output):
            seen["flatten_in"], seen["flatten_linear"] = inputs[0], output

        def keep_position(module, inputs, output):
            seen["pos_embedd"] = output

        hooks = [
            encoder.flatten.register_forward_hook(keep_flatten),
            encoder.position.register_forward_hook(keep_position),
        ]
        rois = encoder.cut_out(fused, boxes)
        vectors = encoder.read_out(rois, torch.cat(boxes))
        for hook in hooks:
            hook.remove()
        out = {f"roi_level{i}": roi for i, roi in enumerate(rois)} | seen
        return out | {f"out_image{i}": v for i, v in enumerate(vectors.split([len(b) for b in boxes]))}

    # --- splice -----------------------------------------------------------------------------------------------------

    def splice(self, tag: str) -> Named:
        """What the language model is fed. "reg" holds the inputs of all tags that have none of their own."""
        source = tag if f"{tag}/input_ids" in self.case.arrays("splice") else "reg"
        inputs = {name: f"{source}/{name}" for name in ("input_ids", "labels_in", "attention_in")}
        stored = self.case.arrays("splice")
        for name in ("input_ids", "labels_in", "attention_in"):
            if f"{tag}/{name}" in stored:
                yield name, self.tensor("splice", inputs[name])
        if tag == "reg":
            return
        ids = self.tensor("splice", inputs["input_ids"])
        labels, attention = (
            self.tensor("splice", inputs[name] if inputs[name] in stored else f"reg/{name}")
            for name in ("labels_in", "attention_in")
        )
        candidates = self.splice_boxes(tag, ids)
        for boxes in candidates:
            got = self.spliced(ids, attention, labels, boxes)
            # Where the case does not say which boxes it used: those that fit, or else the last.
            if len(candidates) == 1 or weights.measure(stored, f"{tag}/embeds", got.embeds.numpy(), 1e-4)[1] <= 1:
                break
        yield from (("embeds", got.embeds), ("attention_mask", got.attention), ("labels", got.labels))

    @torch.no_grad()
    def spliced(self, ids, attention, labels, boxes):
        """Our splice of rows (R, L), the image of a row with `<image>` being that of its number."""
        has_image = (ids == IMAGE_TOKEN_INDEX).any(1)
        images = torch.where(has_image, torch.arange(len(ids)), -1)
        return self.model.splice(ids, attention, labels, self.features, images, boxes)

    def splice_boxes(self, tag: str, ids: torch.Tensor) -> list:
        """What boxes the rows of one tag may have been given, cut to one per `<bbox>`; a row without image has none."""
        if "no_boxes" in tag:
            return [None]
        counts = (ids == self.model.config.tokens.bbox).sum(1).tolist()
        if "too_many" in tag:
            return [[b[:n] for b, n in zip(rows, counts, strict=True)] for rows in self._too_many_boxes(counts)]
        boxes = self.case.boxes_for(ids, list(range(len(ids))))
        if boxes is None:
            return [None]
        return [[b if (row == IMAGE_TOKEN_INDEX).any() else None for b, row in zip(boxes, ids, strict=True)]]

    def _too_many_boxes(self, counts: list[int]) -> list[list[torch.Tensor]]:
        """Lists of more boxes than any row has `<bbox>`, longest first; the case does not say which one it used."""
        lists = [b for boxes in self.case.boxes.values() for b in boxes if len(b) > max(counts)]
        if not lists:
            raise ValueError(
                f"{self.case.folder} has an array for surplus boxes, but no list of boxes that is too long"
            )
        return [[b] * len(counts) for b in sorted(lists, key=len, reverse=True)]
