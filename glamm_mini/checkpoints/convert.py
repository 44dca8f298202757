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

from glamm_mini.checkpoints import official
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.lora import load_lora, merge_lora
from glamm_mini.checkpoints.official import TOWER_FOLDER, VISION_TOWER, ours_to_official
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
        sizes = (t.nbytes // t.dtype.itemsize * self.types[name].itemsize for name, t in self.weights.items())
        return sum(sizes) + sum(tensor.nbytes for tensor in self.tower.values())

    def write(
        self,
        target: str | Path,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        torch_files: bool = False,
        advance: Callable[[int], None] = lambda size: None,
    ) -> LoadReport:
        """Write the new folder, whole or not at all; one shard is in memory at a time. See `write_weights`.

        Raises OSError if the place is taken, too small or cannot be written, ValueError for what is not a size of a
        shard, and for `torch_files` that are not for an official target.
        """
        shard_plan({}, "{suffix}", max_shard_size)  # refused before anything is made
        target, kept = Path(target), [self.source.folder / name for name in KEPT]
        if target.exists() and (target.is_file() or any(target.iterdir())):
            raise FileExistsError(f"{target} holds something already; give a new folder, or remove it first")
        if torch_files and self.to != "official":
            raise ValueError("our format is safetensors alone; torch's files belong to an official target")
        processor = self.source.processor()
        with whole_folder(target) as fresh:
            free = shutil.disk_usage(fresh).free
            if free < self.bytes:
                raise OSError(f"{self.bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
            for file in kept:
                if file.is_file() and not (self.to == "ours" and self.source.official and file.name == KEPT[-1]):
                    shutil.copy2(file, fresh)
            if self.to == "official":
                self._write_official_files(fresh, processor.tokenizer, advance)
            else:
                processor.save_pretrained(fresh)
            write_weights(fresh, self.weights, self.types, max_shard_size, torch_files, advance)
        return self.report

    def _write_official_files(self, fresh: Path, tokenizer, advance: Callable[[int], None]) -> None:
        tokenizer.save_pretrained(fresh)
        added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if i >= tokenizer.vocab_size}
        types, config, tower = set(self.types.values()), self.source.config, self.tower
        dtype = type_name(torch.bfloat16 if torch.bfloat16 in types else next(iter(types)))
        place = TOWER_FOLDER if tower else self.source.tower or official.CLIP
        given = official.write_official_config(config, place, dtype)
        if self.source.official:
            stored = json.loads((self.source.folder / "config.json").read_text("utf-8"))
            given |= stored | {"torch_dtype": dtype, "vocab_size": config.text.vocab_size}
        for name, table in (("added_tokens.json", added), ("config.json", given)):
            (fresh / name).write_text(json.dumps(table, indent=1) + "\n", "utf-8")
        if tower:
            config.vision.save_pretrained(fresh / TOWER_FOLDER)
            write_weights(fresh / TOWER_FOLDER, tower, {n: t.dtype for n, t in tower.items()}, advance=advance)


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
    model, notes, places = source.empty_model(), source.left.notes, source.places
    source.check(model, without_tower=not need_tower)
    if lora is not None:
        merged, _ = load_model(name, "stored", vision_tower=vision_tower, drop=drop)
        load_lora(merged, lora)
        notes.append(f"LoRA of {lora} merged into {merge_lora(merged)} layers")
        places = merged.state_dict()
    aside = {ours for ours in source.places if to == "official" and ours.startswith(VISION_TOWER)}
    made, new, types = {}, {}, {}
    for ours in (name for name in source.places if name not in aside):
        kind = source.places[ours].dtype
        if dtype is not None and kind.is_floating_point:
            kind = official.merged_dtype(ours_to_official(ours)) if dtype == MERGE_SCRIPT else TYPES[dtype]
        there = ours_to_official(ours) if to == "official" else ours
        made[ours], new[there], types[there] = type_name(kind), places[ours], kind
    report = source.report(made)
    if to == "ours":
        report.kept = sorted(model.state_dict().keys() - new.keys() - set(model.all_tied_weights_keys))
        return Conversion(source, to, new, types, {}, report)
    lone = not official.unlike_clip(source.config.vision)
    tower = {} if lone else {ours.removeprefix(VISION_TOWER): places[ours] for ours in aside}
    buffers = official.computed_buffers(source.config)
    notes += _remarks(source, len(aside), bool(tower))
    types |= {name: tensor.dtype for name, tensor in buffers.items()}
    return Conversion(source, to, new | buffers, types, tower, report)


def _remarks(source: Source, aside: int, tower: bool) -> list[str]:
    """What the reader of an official folder should know."""
    left = "are left out: official code loads CLIP's own checkpoint"
    kept = f"go into the folder {TOWER_FOLDER}: the hub has none such"
    pieces = (source.folder / "tokenizer.model").is_file()
    told = {
        f"{aside} weights of the image encoder {kept if tower else left}": aside,
        "the model was trained in mode 'fixed': official code will answer otherwise": source.config.mode != "official",
        "there is no tokenizer.model to copy: official code needs that of the language model": not pieces,
    }
    return [words for words, holds in told.items() if holds]
