"""From an official checkpoint to ours and back, tensor by tensor: no model is built and no value changes.

What an official checkpoint leaves out (CLIP) or stores in vain (rotary frequencies) is added or dropped on the way to
ours, and dropped or added on the way back.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from glamm_mini.checkpoints.folder import load_model
from glamm_mini.checkpoints.lora import load_lora, merge_lora
from glamm_mini.checkpoints.official import computed_buffers, merged_dtype, ours_to_official, saved_officially
from glamm_mini.checkpoints.official_config import CLIP, write_official_config
from glamm_mini.checkpoints.report import LoadReport, type_name
from glamm_mini.checkpoints.shards import Entry
from glamm_mini.checkpoints.source import Source, open_checkpoint
from glamm_mini.checkpoints.write import MAX_SHARD_SIZE, bytes_of, whole_folder, write_weights
from glamm_mini.model.dtypes import TYPES

FORMATS = ("ours", "official")
MERGE_SCRIPT = "official"
"""As --dtype: the types that the official merge script leaves behind, bfloat16 with some parts in float32."""

KEPT = ("tokenizer.model", "added_tokens.json", "generation_config.json")
"""Files of an official checkpoint that our format does not need, kept for the way back."""


@dataclass
class Conversion:
    """Everything decided and checked, nothing read. sizes: the new name of each tensor -> shape and type, in order."""

    source: Source
    to: str
    sizes: dict[str, tuple[tuple[int, ...], torch.dtype]]
    report: LoadReport
    model: torch.nn.Module | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all tensors as they will be written."""
        return sum(self._bytes().values())

    def _bytes(self) -> dict[str, int]:
        return {name: torch.Size(shape).numel() * dtype.itemsize for name, (shape, dtype) in self.sizes.items()}

    def write(
        self,
        target: str | Path,
        max_shard_size: int | str = MAX_SHARD_SIZE,
        torch_files: bool = False,
        advance: Callable[[int], None] | None = None,
    ) -> LoadReport:
        """Write the new folder, whole or not at all; one shard is in memory at a time.

        torch_files: `pytorch_model*.bin` in place of safetensors, for an official target. Raises OSError if the place
        is taken, too small or cannot be written, ValueError for what is no size of a shard.
        """
        bytes_of(max_shard_size)  # refused before anything is made
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
            if self.to == "official":
                self._write_official_files(fresh, processor)
            else:
                processor.save_pretrained(fresh)
                self.source.config.save_pretrained(fresh)
            for name in KEPT:
                if (self.source.folder / name).is_file():
                    shutil.copy2(self.source.folder / name, fresh / name)
            write_weights(fresh, self._bytes(), self._tensors(), max_shard_size, torch_files, advance)
        return self.report

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        values = self.source.tensors() if self.model is None else self.model.state_dict().items()
        for ours, tensor, *_ in values:
            name = _new_name(ours, self.to)
            if name in self.sizes:
                # A copy even where nothing changes: a view of the file would keep the file mapped.
                yield name, tensor.to(self.sizes[name][1], copy=self.model is None)
        if self.to == "official":
            yield from computed_buffers(self.source.config).items()

    def _write_official_files(self, fresh: Path, processor) -> None:
        tokenizer, types = processor.tokenizer, {dtype for _, dtype in self.sizes.values()}
        tokenizer.save_pretrained(fresh)
        added = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if i >= tokenizer.vocab_size}
        (fresh / "added_tokens.json").write_text(json.dumps(added, indent=1) + "\n", "utf-8")
        dtype = type_name(torch.bfloat16 if torch.bfloat16 in types else next(iter(types)))
        config = write_official_config(self.source.config, self.source.tower or CLIP, dtype)
        if self.source.official:
            given = json.loads((self.source.folder / "config.json").read_text("utf-8"))
            config |= given | {"torch_dtype": dtype, "vocab_size": self.source.config.text.vocab_size}
        (fresh / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")


def prepare(
    name: str | Path,
    to: str = "ours",
    vision_tower: str | Path | None = None,
    dtype: str | None = None,
    lora: str | Path | None = None,
    need_tower: bool | None = None,
    drop: Iterable[str] = (),
) -> Conversion:
    """Open a checkpoint of either kind and check every name and shape; nothing is read, unless `lora` is merged.

    dtype: "float32", "bfloat16", "float16", or "official" for the types that the official merge script leaves; default:
        each tensor as it is stored. vision_tower: folder or hub id of CLIP, for official weights that are to become
        ours; default what their config.json names. lora: a folder of `save_lora`, merged on the way (in memory).
    drop: beginnings of official names to leave out; see `load_model`.
    Raises FileNotFoundError for what is missing, ValueError for what does not fit.
    """
    if to not in FORMATS:
        raise ValueError(f"to is {to!r}; expected {' or '.join(FORMATS)}")
    if dtype not in (None, MERGE_SCRIPT, *TYPES):
        raise ValueError(f"dtype {dtype!r} is unknown; expected {', '.join(TYPES)} or {MERGE_SCRIPT}")
    need_tower = (to == "ours" or lora is not None) if need_tower is None else need_tower
    source = open_checkpoint(name, vision_tower, need_tower=need_tower, drop=drop)
    model = source.empty_model()
    source.check(model, without_tower=not need_tower)
    entries = {ours: entry for ours, (_, entry) in source.places.items()}
    merged = None
    if lora is not None:
        merged, _ = load_model(name, "stored", vision_tower=vision_tower, drop=drop)
        load_lora(merged, lora)
        source.notes.append(f"LoRA of {lora} merged into {merge_lora(merged)} layers")
        entries = {n: Entry(tuple(t.shape), entries[n].dtype, entries[n].file) for n, t in merged.state_dict().items()}
    report = source.report()
    sizes, left_out = {}, 0
    for ours, entry in entries.items():
        new = _new_name(ours, to)
        if to == "official" and not saved_officially(new):
            left_out += 1
            continue
        sizes[new] = entry.shape, _new_dtype(ours, entry.dtype, dtype)
        report.add(ours, entry.shape, entry.dtype, type_name(sizes[new][1]), entry.file)
    if left_out:
        report.notes.append(f"{left_out} weights of CLIP are left out: official code loads CLIP's own checkpoint")
    if to == "ours":
        report.kept = sorted(model.state_dict().keys() - sizes.keys() - set(model.all_tied_weights_keys))
    else:
        sizes |= {n: (tuple(t.shape), t.dtype) for n, t in computed_buffers(source.config).items()}
        report.notes += _remarks(source)
    return Conversion(source, to, sizes, report, merged)


def _new_name(ours: str, to: str) -> str:
    return ours if to == "ours" else ours_to_official(ours)


def _new_dtype(ours: str, stored: torch.dtype, dtype: str | None) -> torch.dtype:
    if dtype is None or not stored.is_floating_point:
        return stored
    return merged_dtype(ours_to_official(ours)) if dtype == MERGE_SCRIPT else getattr(torch, dtype)


def _remarks(source: Source) -> list[str]:
    remarks = []
    if source.config.mode != "official":
        remarks.append("the model was trained in mode 'fixed': official code will answer otherwise than ours")
    if not (source.folder / "tokenizer.model").is_file():
        remarks.append("there is no tokenizer.model to copy: official code needs that of the language model")
    return remarks
