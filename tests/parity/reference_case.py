"""One reference case on disk: its files, its inputs, and our model filled with its weights.

A case is a folder with meta.json, five npz files and a manifest of the official state dict. Weights and images follow
from names alone (glamm_mini/parity/weights.py), so that a case of any size is small.
"""

import ast
import json
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from glamm_mini.checkpoints.official import load_official_state
from glamm_mini.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.parity import weights

PARTS = ("vision", "region", "splice", "train", "generate")
OFFICIAL_BOX_SIZE = 224
SUMMARY = ("__shape", "__step", "__sample", "__stats", "__probe")


class ReferenceCase:
    """Reads a case folder. Arrays are handed out as numpy, inputs of the model as torch tensors."""

    def __init__(self, folder):
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise FileNotFoundError(f"{self.folder} holds no meta.json; --case wants the folder of a reference case")
        self.meta = json.loads((self.folder / "meta.json").read_text())
        self._npz = {}

    def arrays(self, part: str) -> dict:
        """All entries of one npz file; summaries of big arrays have several entries each."""
        if part not in self._npz:
            path = self.folder / f"{part}.npz"
            self._npz[part] = dict(np.load(path)) if path.is_file() else {}
        return self._npz[part]

    def names(self, part: str) -> list[str]:
        """Names of the arrays of one npz file, each once."""
        names = (name.rsplit("__", 1)[0] if name.endswith(SUMMARY) else name for name in self.arrays(part))
        return list(dict.fromkeys(names))

    def tags(self, part: str) -> list[str]:
        """Tags of "splice", "train" or "generate" that have numbers."""
        return list(dict.fromkeys(name.split("/")[0] for name in self.names(part) if "/" in name))

    def errors(self, part: str) -> dict[str, str]:
        """Tags of a part of meta.json whose value is the official code's failure, or its odd way out."""
        return {tag: value for tag, value in self.meta.get(part, {}).items() if isinstance(value, str)}

    @cached_property
    def manifest(self) -> dict:
        """Official state-dict name -> {shape, ...}."""
        beside = self.folder.parent / f"manifest_{self.folder.name.removeprefix('case_')}.json"
        for path in (self.folder / "manifest.json", beside):
            if path.is_file():
                content = json.loads(path.read_text())
                return content.get("tensors", content)
        raise FileNotFoundError(f"no manifest.json in {self.folder} and no {beside.name} beside it")

    # ---- inputs ----------------------------------------------------------------------------------------------

    def _made(self, key: str) -> torch.Tensor:
        """Images from calls such as 'weights.grounding_image("S/img0", (192, 256), 256)'."""
        images = []
        for text in self.meta["inputs"][key]:
            call = ast.parse(text, mode="eval").body
            arguments = [ast.literal_eval(a) for a in call.args]
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            images.append(torch.from_numpy(getattr(weights, call.func.attr)(*arguments, **named)))
        return torch.stack(images)

    @cached_property
    def global_images(self) -> torch.Tensor:
        return self._made("global_images")

    @cached_property
    def grounding_images(self) -> torch.Tensor:
        return self._made("grounding_images")

    @property
    def original(self) -> list[tuple[int, int]]:
        return [tuple(size) for size in self.meta["inputs"]["orig_sizes_hw"]]

    @property
    def resized(self) -> list[tuple[int, int]]:
        return [tuple(size) for size in self.meta["inputs"]["resize_list_hw"]]

    @cached_property
    def boxes(self) -> dict[str, list[torch.Tensor]]:
        """Box sets: per image (N, 4), normalised."""
        sets = self.meta["inputs"]["boxes"]
        return {name: [torch.tensor(b).reshape(-1, 4) for b in boxes] for name, boxes in sets.items()}

    def boxes_for(self, ids: torch.Tensor, images: list[int]) -> list[torch.Tensor] | None:
        """The first box set with as many boxes per row's image as the row has `<bbox>`; None for rows without."""
        counts = (ids == self.meta["config"]["ids"]["bbox"]).sum(1).tolist()
        if not any(counts):
            return None
        for boxes in self.boxes.values():
            rows = [boxes[i] for i in images]
            if [len(b) for b in rows] == counts:
                return rows
        raise ValueError(f"no box set of the case fits rows with {counts} <bbox>")

    def rectangles(self, image: int) -> list[np.ndarray]:
        """True masks (H, W) of one image."""
        rects = self.meta["inputs"]["gt_mask_rects_x0y0x1y1"][image]
        return [weights.rect_mask(self.original[image], rect) for rect in rects]

    # ---- model -----------------------------------------------------------------------------------------------

    def config(self) -> GlammConfig:
        """The case's sizes in official mode; what meta.json leaves out is read off the shapes or is official."""
        given, ids = self.meta["config"], self.meta["config"]["ids"]
        vision = self.meta["vision"]
        levels = vision["region_levels"]
        scales = sum("mlvl_fuse.input_conv" in name and name.endswith(".weight") for name in self.manifest)
        step = levels[1] - levels[0] if len(levels) > 1 else 3
        return GlammConfig(
            vision=given["clip"],
            text=dict(given["llm"], bos_token_id=1, eos_token_id=2, pad_token_id=0),
            region=self._region(scales),
            grounding=self._grounding(),
            losses=dict(cross_entropy=1.0, mask_bce=2.0, mask_dice=0.5),
            tokens={
                "im_start": ids["im_start"],
                "im_end": ids["im_end"],
                "bbox": ids["bbox"],
                "point": ids["point"],
                "seg": ids["seg"],
                "phrase_start": ids["p"],
                "phrase_end": ids["ep"],
            },
            feature_layer=vision["feature_level"] - vision["n_hidden_states"],
            level_step=step,
            mode="official",
            size_name=self.folder.name,
        )

    def _shape(self, name: str) -> list[int]:
        return self.manifest[f"model.{name}"]["shape"]

    def _region(self, levels: int) -> dict:
        given = self.meta["config"].get("region")
        groups = given["gn_groups"] if isinstance(given, dict) else 64
        encoder = "region_encoder"
        rounds = sum(name.endswith(".gn.weight") and encoder in name for name in self.manifest)
        return dict(
            channels=self._shape(f"{encoder}.mlvl_fuse.input_conv.0.weight")[0],
            scales=tuple(2**k for k in reversed(range(levels))),
            rounds=rounds,
            groups=groups,
            position_hidden=self._shape(f"{encoder}.roi_align.pos_embedd.0.weight")[0],
            hidden=self._shape(f"{encoder}.roi_align.flatten_linear.weight")[0],
            box_image_size=OFFICIAL_BOX_SIZE,
        )

    def _grounding(self) -> dict:
        given = self.meta["config"].get("sam")
        if not isinstance(given, dict):  # the library's own ViT-B
            return dict(hidden=768, depth=12, heads=12, global_attention=(2, 5, 8, 11))
        return dict(
            image_size=given["img_size"],
            patch_size=given["patch_size"],
            hidden=given["embed_dim"],
            depth=given["depth"],
            heads=given["num_heads"],
            global_attention=tuple(given["global_attn_indexes"]),
            window=given["window_size"],
            prompt_dim=given["prompt_dim"],
            mask_in_channels=given["mask_in_chans"],
            decoder_depth=given["dec_depth"],
            decoder_hidden=given["dec_mlp"],
            decoder_heads=given["dec_heads"],
            iou_hidden=given["iou_hidden"],
        )

    def state(self) -> dict[str, torch.Tensor]:
        """The official state dict, made from names and shapes; computed buffers are there, as zeros."""
        state = {name: torch.zeros(entry["shape"]) for name, entry in self.manifest.items()}
        weights.fill_(state)
        return state

    def model(self) -> GlammForConditionalGeneration:
        """Our model with the case's weights, on the CPU, in float32, in eval mode."""
        model = GlammForConditionalGeneration(self.config())
        load_official_state(model, self.state())
        return model.eval()


def check(case: ReferenceCase, part: str, name: str, value, tolerance: float):
    """Compare with what the case stores; integers and booleans must be equal."""
    value = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    agrees, worst = weights.compare(case.arrays(part), name, value, rtol=tolerance, atol=tolerance)
    assert agrees, f"{part} {name}: largest difference {worst:.3g}, tolerance {tolerance:g}"
