"""From an official checkpoint to ours and back, tensor by tensor: no model is built and no value changes.

What an official checkpoint leaves out (CLIP) or stores in vain (rotary frequencies) is added or dropped on the way to
ours, and dropped or added on the way back. An image encoder that the hub does not have goes into a folder of its own.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.lora import load_lora, merge_lora
from glamm_mini.checkpoints.official import (
    CLIP,
    TOWER_FOLDER,
    VISION_TOWER,
    computed_buffers,
    is_released_clip,
    merged_dtype,
    ours_to_official,
    write_official_config,
)
from glamm_mini.checkpoints.save import MAX_SHARD_SIZE, shard_plan, whole_folder, write_weights
from glamm_mini.checkpoints.source import LoadReport, Source, open_checkpoint, type_name
from glamm_mini.dtypes import TYPES

FORMATS = ("ours", "official")
MERGE_SCRIPT = "official"
"""As --dtype: the types that the official merge script leaves behind, bfloat16 with some parts in float32."""

KEPT = ("tokenizer.model", "added_tokens.json", "generation_config.json")
"""Files of an official checkpoint that our format does not need, kept for the way back."""


@dataclass
class Conversion:
    """Everything decided and checked, nothing read. weights: new name -> the tensor as it is stored, in order; types:
    new name -> its new type. tower: CLIP's weights, where they go into a folder of their own."""

    source: Source
    to: str
    weights: dict[str, Any]
    types: dict[str, torch.dtype]
    tower: dict[str, Any]
    report: LoadReport

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as they will be written."""
        named = [(self.weights[name].shape, self.types[name]) for name in self.weights]
        named += [(tensor.shape, tensor.dtype) for tensor in self.tower.values()]
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in named if shape is not None)

    def write(
        self,
        target: str | Path,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        torch_files: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> LoadReport:
        """Write the new folder, whole or not at all; one shard is in memory at a time.

        torch_files: `pytorch_model*.bin` in place of safetensors, for an official target. Raises OSError if the place
        is taken, too small or cannot be written, ValueError for what is not a size of a shard.
        """
        shard_plan({}, "{suffix}", max_shard_size)  # refused before anything is made
        target = Path(target)
        if target.exists() and (target.is_file() or any(target.iterdir())):
            raise FileExistsError(f"{target} holds something already; give a new folder, or remove it first")
        if torch_files and self.to != "official":
            raise ValueError("our format is safetensors alone; torch's files belong to an official target")
        processor = self.source.processor()
        with whole_folder(target) as fresh:
            free = shutil.disk_usage(fresh).free
            if free < self.bytes:
                raise OSError(f"{self.bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
            for name in KEPT:
                if (self.source.folder / name).is_file():
                    shutil.copy2(self.source.folder / name, fresh / name)
            if self.to == "official":
                self._write_official_files(fresh, processor, advance)
            else:
                processor.save_pretrained(fresh)
                (fresh / "generation_config.json").unlink(missing_ok=True) if self.source.official else None
            write_weights(fresh, self.weights, self.types, max_shard_size, torch_files, advance)
        return self.report

    def _write_official_files(self, fresh: Path, processor, advance) -> None:
        tokenizer, types = processor.tokenizer, set(self.types.values())
        tokenizer.save_pretrained(fresh)
        added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if i >= tokenizer.vocab_size}
        (fresh / "added_tokens.json").write_text(json.dumps(added, indent=1) + "\n", "utf-8")
        dtype = type_name(torch.bfloat16 if torch.bfloat16 in types else next(iter(types)))
        config = self.source.config
        given = write_official_config(config, TOWER_FOLDER if self.tower else self.source.tower or CLIP, dtype)
        if self.source.official:
            stored = json.loads((self.source.folder / "config.json").read_text("utf-8"))
            given |= stored | {"torch_dtype": dtype, "vocab_size": config.text.vocab_size}
        (fresh / "config.json").write_text(json.dumps(given, indent=1) + "\n", "utf-8")
        if self.tower:
            (fresh / TOWER_FOLDER).mkdir()
            config.vision.save_pretrained(fresh / TOWER_FOLDER)
            own = {name: tensor.dtype for name, tensor in self.tower.items()}
            write_weights(fresh / TOWER_FOLDER, self.tower, own, advance=advance)


def prepare(
    name: str | Path,
    to: str = "ours",
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    lora: str | Path | None = None,
    need_tower: bool | None = None,
    drop: Iterable[str] = (),
    weights: str = "all",
) -> Conversion:
    """Open a checkpoint of either kind and check every name and shape; nothing is read, unless `lora` is merged.

    dtype: "float32", "bfloat16", "float16", or "official" for the types that the official merge script leaves; default:
        each tensor as it is stored. vision_tower: folder or hub id of CLIP, for official weights that are to become
        ours; default what their config.json names. lora: an adapter's folder, merged on the way (in memory).
    drop: beginnings of official names to leave out; see `load_model`. weights: "names" to fetch none from the hub.
    Raises FileNotFoundError for what is missing, ValueError for what does not fit.
    """
    if to not in FORMATS:
        raise ValueError(f"to is {to!r}; expected {' or '.join(FORMATS)}")
    if dtype not in (None, MERGE_SCRIPT, *TYPES):
        raise ValueError(f"dtype {dtype!r} is unknown; expected {', '.join(TYPES)} or {MERGE_SCRIPT}")
    need_tower = (to == "ours" or lora is not None) if need_tower is None else need_tower
    source = open_checkpoint(name, vision_tower, need_tower=need_tower, drop=drop, weights=weights)
    model = source.empty_model()
    source.check(model, without_tower=not need_tower)
    places: dict[str, Any] = dict(source.places)
    if lora is not None:
        merged, _ = load_model(name, "stored", vision_tower=vision_tower, drop=drop)
        load_lora(merged, lora)
        source.left.notes.append(f"LoRA of {lora} merged into {merge_lora(merged)} layers")
        places = merged.state_dict()
    aside = {ours for ours in places if to == "official" and ours.startswith(VISION_TOWER)}
    tower = {} if is_released_clip(source.config.vision) else {n.removeprefix(VISION_TOWER): places[n] for n in aside}
    made, new, types = {}, {}, {}
    for ours, entry in source.places.items():
        if ours not in aside:
            made_name, kind = ours_to_official(ours) if to == "official" else ours, entry.dtype
            if dtype is not None and kind.is_floating_point:
                kind = merged_dtype(ours_to_official(ours)) if dtype == MERGE_SCRIPT else TYPES[dtype]
            made[ours], new[made_name], types[made_name] = type_name(kind), places[ours], kind
    report = source.report(made)
    if to == "ours":
        report.kept = sorted(model.state_dict().keys() - new.keys() - set(model.all_tied_weights_keys))
        return Conversion(source, to, new, types, {}, report)
    buffers = computed_buffers(source.config)
    report.notes += _remarks(source, len(aside), bool(tower))
    types |= {name: tensor.dtype for name, tensor in buffers.items()}
    return Conversion(source, to, new | buffers, types, tower, report)


def _remarks(source: Source, aside: int, tower: bool) -> list[str]:
    left = "are left out: official code loads CLIP's own checkpoint"
    kept = f"go into the folder {TOWER_FOLDER}: the hub has none such"
    remarks = [f"{aside} weights of the image encoder {kept if tower else left}"] if aside else []
    if source.config.mode != "official":
        remarks.append("the model was trained in mode 'fixed': official code will answer otherwise than ours")
    if not (source.folder / "tokenizer.model").is_file():
        remarks.append("there is no tokenizer.model to copy: official code needs that of the language model")
    return remarks
