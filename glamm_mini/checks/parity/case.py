"""One reference case on disk: its files, its inputs, and our model filled with its weights.

A case is a folder with meta.json, five npz files and a manifest of the official state dict. Weights and images follow
from names alone (`parity.weights`), so that a case of any size is small.
"""

import ast
import json
import zlib
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device

from glamm_mini.checkpoints.official import official_to_ours, ours_to_official
from glamm_mini.checks.parity import weights
from glamm_mini.checks.parity.sizes import case_config, region_of_manifest
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration

PARTS = ("vision", "region", "splice", "train", "generate")
INPUTS = ("global_image", "grounding_image")
META = ("inputs", "config", "vision", "train", "generate")
"""What meta.json must hold."""


class ReferenceCase:
    """Reads a case folder. Arrays are handed out as numpy, inputs of the model as torch tensors.

    Raises FileNotFoundError for a folder without meta.json, and for a missing manifest when that is first needed;
    ValueError for files that are damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "meta.json").is_file():
            raise FileNotFoundError(f"{self.folder} holds no meta.json; --case wants the folder of a reference case")
        try:
            self.meta = json.loads((self.folder / "meta.json").read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.folder / 'meta.json'} is damaged ({error}); copy the case again") from error
        absent = [key for key in META if not isinstance(self.meta, dict) or key not in self.meta]
        if absent:
            raise ValueError(f"{self.folder / 'meta.json'} lacks {', '.join(absent)}; it is not that of a case")
        self._npz = {}

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """All entries of one npz file; summaries of big arrays have several entries each. Empty without the file."""
        if part not in self._npz:
            path = self.folder / f"{part}.npz"
            try:
                self._npz[part] = dict(np.load(path)) if path.is_file() else {}
            except (ValueError, EOFError, OSError, BadZipFile, zlib.error, TypeError) as error:
                raise ValueError(f"{path} is damaged or cut short ({error}); copy the case again") from error
        return self._npz[part]

    def names(self, part: str) -> list[str]:
        """Names of the arrays of one npz file, each once."""
        names = (name.rsplit("__", 1)[0] if name.endswith(weights.SUMMARY) else name for name in self.arrays(part))
        return list(dict.fromkeys(names))

    def tags(self, part: str) -> list[str]:
        """Tags of "splice", "train" or "generate" that have numbers."""
        return list(dict.fromkeys(name.split("/")[0] for name in self.names(part) if "/" in name))

    def errors(self, part: str) -> dict[str, str]:
        """Tags of a part of meta.json whose value is the official code's failure, or its odd way out."""
        return {tag: value for tag, value in self.meta.get(part, {}).items() if isinstance(value, str)}

    def gradient_norms(self, tag: str) -> dict[str, float]:
        """Official name -> norm of the gradient that training by this tag gives."""
        return self.meta["train"].get(tag, {}).get("grad_norms", {})

    @cached_property
    def manifest(self) -> dict:
        """Official state-dict name -> {shape, ...}."""
        beside = self.folder.parent / f"manifest_{self.folder.name.removeprefix('case_')}.json"
        for path in (self.folder / "manifest.json", beside):
            if path.is_file():
                content = json.loads(path.read_text("utf-8"))
                return content.get("tensors", content)
        raise FileNotFoundError(f"no manifest.json in {self.folder} and no {beside.name} beside it")

    # --- inputs -----------------------------------------------------------------------------------------------------

    def _made(self, key: str) -> torch.Tensor:
        """Images from calls such as 'weights.grounding_image("S/img0", (192, 256), 256)', read, never executed."""
        images = []
        for text in self.meta["inputs"][key]:
            call = ast.parse(text, mode="eval").body
            name = call.func.attr if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) else None
            if name not in INPUTS:
                raise ValueError(
                    f"meta.json of {self.folder} makes {key} by {text!r}; expected weights.{key[:-1]}(...)"
                )
            arguments = [ast.literal_eval(a) for a in call.args]
            named = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
            images.append(torch.from_numpy(getattr(weights, name)(*arguments, **named)))
        return torch.stack(images)

    @cached_property
    def global_images(self) -> torch.Tensor:
        """(I, 3, S, S), in place of pictures that were normalized for CLIP."""
        return self._made("global_images")

    @cached_property
    def grounding_images(self) -> torch.Tensor:
        """(I, 3, G, G), zero where the picture was padded."""
        return self._made("grounding_images")

    @property
    def original(self) -> list[tuple[int, int]]:
        """(height, width) of every picture."""
        return [tuple(size) for size in self.meta["inputs"]["orig_sizes_hw"]]

    @property
    def resized(self) -> list[tuple[int, int]]:
        """(height, width) of every picture inside the grounding encoder's square."""
        return [tuple(size) for size in self.meta["inputs"]["resize_list_hw"]]

    @cached_property
    def boxes(self) -> dict[str, list[torch.Tensor]]:
        """Box sets: per image (N, 4), normalized."""
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

    # --- model ------------------------------------------------------------------------------------------------------

    def config(self) -> GlammConfig:
        """The case's sizes in official mode; what meta.json leaves out is read off the shapes or is official."""
        region = region_of_manifest(self.manifest)
        return case_config(self.meta["config"], self.meta["vision"], region, self.folder.name)

    def model(self) -> GlammForConditionalGeneration:
        """Our model with the case's weights, on the CPU, in float32, in eval mode, without gradients."""
        return filled_model(self.config(), self.manifest)


def filled_model(config: GlammConfig, manifest: dict | None = None) -> GlammForConditionalGeneration:
    """A model whose weights follow from their official names, made tensor by tensor: none is ever there twice.

    manifest: official names and shapes that the model must have, no more and no less (ValueError).
    """
    with init_empty_weights(include_buffers=False):
        model = GlammForConditionalGeneration(config)
    shapes = {ours_to_official(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if manifest is not None:
        expected = {name: tuple(entry["shape"]) for name, entry in manifest.items() if official_to_ours(name)}
        wrong = sorted(dict(expected.items() ^ shapes.items()))
        if wrong:
            raise ValueError(
                f"the manifest and our model differ in {len(wrong)} tensors ({'; '.join(wrong[:5])} ...): give a case "
                "whose meta.json and manifest belong together"
            )
    for name, shape in shapes.items():
        value = torch.from_numpy(weights.param(name, shape))
        set_module_tensor_to_device(model, official_to_ours(name), "cpu", value=value)
    return model.eval().requires_grad_(False)
