"""Our numbers under the names of the reference case: every function returns {name in the npz: array}."""

from functools import cached_property

import torch
from model_outputs_language import LanguageOutputs
from reference_case import ReferenceCase, weights

from glamm_mini.text.tokens import IMAGE_TOKEN_INDEX


class Outputs(LanguageOutputs):
    """Computes each part of the case once."""

    def __init__(self, case: ReferenceCase, model):
        self.case, self.model = case, model
        self._train, self._generate = {}, {}

    # ---- vision and regions ------------------------------------------------------------------------------------

    @cached_property
    def features(self):
        with torch.no_grad():
            return self.model.encode_images(self.case.global_images, self.case.grounding_images)

    @cached_property
    def vision(self) -> dict:
        with torch.no_grad():
            encoder = self.model.global_encoder
            states = encoder.clip(self.case.global_images, output_hidden_states=True).hidden_states
            out = {f"clip_hidden_{i}": state for i, state in enumerate(states)}
            out["clip_hidden_last"] = states[-1]
            out["features"] = encoder(self.case.global_images).tokens
            out["projected"] = self.features.tokens
        return out

    @cached_property
    def resized_levels(self) -> list[torch.Tensor]:
        """Feature levels at their pyramid's size, before the coordinates and the first convolution."""
        seen = []
        hooks = [
            conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, :-2]))
            for conv in self.model.region_encoder.inputs
        ]
        with torch.no_grad():
            self.model.region_encoder.pyramid(self.features.levels)
        for hook in hooks:
            hook.remove()
        return seen

    @cached_property
    def pyramid(self) -> list[torch.Tensor]:
        with torch.no_grad():
            return self.model.region_encoder.pyramid(self.features.levels)

    @cached_property
    def fused(self) -> list[torch.Tensor]:
        with torch.no_grad():
            return self.model.region_encoder.fuse(self.pyramid)

    @cached_property
    def region(self) -> dict:
        out = {f"fuse_in_level{i}": x for i, x in enumerate(self.resized_levels)}
        out |= {f"fuse_out_level{i}": x for i, x in enumerate(self.fused)}
        for name, boxes in self.case.boxes.items():
            out |= {f"{name}/{key}": value for key, value in self.regions(self.fused, boxes).items()}
        return out

    def regions(self, fused, boxes) -> dict:
        """All stages behind the pyramid for one box set; hooks read what goes into and out of the linear layers."""
        encoder, seen = self.model.region_encoder, {}

        def keep_flatten(module, inputs, output):
            seen["flatten_in"], seen["flatten_linear"] = inputs[0], output

        def keep_position(module, inputs, output):
            seen["pos_embedd"] = output

        hooks = [
            encoder.flatten.register_forward_hook(keep_flatten),
            encoder.position.register_forward_hook(keep_position),
        ]
        with torch.no_grad():
            rois = encoder.cut_out(fused, boxes)
            vectors = encoder.read_out(rois, torch.cat(boxes))
        for hook in hooks:
            hook.remove()
        seen |= {f"roi_level{i}": roi for i, roi in enumerate(rois)}
        seen |= {f"out_image{i}": v for i, v in enumerate(vectors.split([len(b) for b in boxes]))}
        return seen

    # ---- splice ------------------------------------------------------------------------------------------------

    def spliced(self, ids, attention, labels, boxes):
        has_image = (ids == IMAGE_TOKEN_INDEX).any(1)
        images = torch.where(has_image, torch.arange(len(ids)), -1)
        with torch.no_grad():
            return self.model.splice(ids, attention, labels, self.features, images, boxes)

    @cached_property
    def splice(self) -> dict:
        """`reg` is the input of all tags that begin with it; `mixed` has ids of its own."""
        out = {}
        for name in self.case.names("splice"):
            if name.endswith(("/input_ids", "/labels_in", "/attention_in")):
                out[name] = self.case.arrays("splice")[name]
        labels, attention = self.tensor("splice", "reg/labels_in"), self.tensor("splice", "reg/attention_in")
        for tag in self.case.tags("splice"):
            if tag == "reg":
                continue
            source = tag if f"{tag}/input_ids" in out else "reg"
            ids = self.tensor("splice", f"{source}/input_ids")
            got = self._closest(tag, [self.spliced(ids, attention, labels, b) for b in self.splice_boxes(tag, ids)])
            out |= {f"{tag}/embeds": got.embeds, f"{tag}/attention_mask": got.attention, f"{tag}/labels": got.labels}
        return out

    def splice_boxes(self, tag: str, ids) -> list:
        """What boxes the rows of one tag may have been given, cut to one per `<bbox>`; a row without image has none."""
        if "no_boxes" in tag:
            return [None]
        counts = (ids == self.model.config.tokens.bbox).sum(1).tolist()
        if "too_many" in tag:
            return [[b[:n] for b, n in zip(rows, counts, strict=True)] for rows in self.too_many_boxes(counts)]
        boxes = self.case.boxes_for(ids, list(range(len(ids))))
        return [[b if (row == IMAGE_TOKEN_INDEX).any() else None for b, row in zip(boxes, ids, strict=True)]]

    def too_many_boxes(self, counts) -> list[list[torch.Tensor]]:
        """Lists of more boxes than any row has `<bbox>`, longest first; the case does not say which one it used."""
        lists = [b for boxes in self.case.boxes.values() for b in boxes if len(b) > max(counts)]
        assert lists, "the case has an array for surplus boxes, but no list of boxes that is longer than the text's"
        return [[b] * len(counts) for b in sorted(lists, key=len, reverse=True)]

    def _closest(self, tag: str, candidates: list):
        """The first candidate that agrees with the stored embeddings, or else the first."""
        stored = self.case.arrays("splice")
        for got in candidates:
            if weights.compare(stored, f"{tag}/embeds", got.embeds.numpy())[0]:
                return got
        return candidates[0]
