"""A checkpoint on disk, of ours or official, its tensors listed under our names and none of them read yet."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import CLIPVisionConfig

from glamm_mini.checkpoints.find import check_folder, check_no_pickle, find_folder, is_official
from glamm_mini.checkpoints.official import VISION_TOWER, complain, official_to_ours, ours_to_official
from glamm_mini.checkpoints.official_config import read_official_config, vision_tower_of
from glamm_mini.checkpoints.shards import Entry, list_tensors, read_tensors, weight_files
from glamm_mini.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processor import GlammProcessor
from glamm_mini.text.official import official_tokenizer

CLIP_PREFIXES = ("vision_model.", "model.vision_tower.vision_tower.vision_model.", "")
"""Levels that CLIP's image encoder stands under, in older and newer files; "" for none, as today's class saves it."""

CLIP_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
CLIP_REST = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""What a whole CLIP holds beside the image encoder."""


@dataclass
class Source:
    """places: our name -> (name in its file, entry). unexpected: names that have no place in a GLaMM.
    tower: where the official CLIP came from, if it was read from a checkpoint of its own."""

    folder: Path
    official: bool
    config: GlammConfig
    places: dict[str, tuple[str, Entry]]
    ignored: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tower: str | None = None

    def processor(self) -> GlammProcessor:
        """The processor that belongs to the weights. ValueError if its tokenizer cannot be read or has too many words.

        With official weights, the configuration takes the ids of the added tokens from the tokenizer.
        """
        try:
            if self.official:
                processor = GlammProcessor(self.config, official_tokenizer(self.folder))
            else:
                processor = GlammProcessor.from_pretrained(self.folder)
        except FileNotFoundError:
            raise
        except Exception as error:  # the readers of config.json and tokenizer.json raise types of their own
            raise _unreadable(self.folder, error) from error
        words, rows = max(processor.tokenizer.get_vocab().values()) + 1, self.config.text.vocab_size
        if words > rows:
            raise ValueError(
                f"{self.folder}: the tokenizer knows {words} tokens, the model {rows}; the tokenizer belongs to "
                "another model"
            )
        return processor

    def empty_model(self) -> GlammForConditionalGeneration:
        """The model that belongs to the weights, every weight on the meta device. ValueError for foreign settings."""
        try:
            return empty_model(self.config)
        except Exception as error:  # each part of the model raises its own
            raise _unreadable(self.folder, error) from error

    def check(self, model, without_tower: bool = False) -> None:
        """Raises one ValueError that lists missing, unexpected and wrongly shaped names, with their files.

        without_tower: the vision tower may be missing, as in released checkpoints.
        """
        wanted = model.state_dict()
        optional = set(model.all_tied_weights_keys)
        absent = [n for n in wanted if n not in self.places and n not in optional]
        if without_tower:
            absent = [name for name in absent if not name.startswith(VISION_TOWER)]
        foreign = [n for n in self.places if n not in wanted]
        wrong = [n for n, (_, e) in self.places.items() if n in wanted and e.shape != tuple(wanted[n].shape)]
        if not self.official:
            self._complain_of_ours(absent, foreign + self.unexpected, wrong)
            return
        shapes = []
        for name in wrong:
            stored, entry = self.places[name]
            shapes.append(f"{stored} in {entry.file.name} is {entry.shape}, the model has {tuple(wanted[name].shape)}")
        extra = [f"{self.places[n][0]} in {self.places[n][1].file.name}" for n in foreign] + self.unexpected
        complain([ours_to_official(name) for name in absent], extra, shapes, str(self.folder))

    def _complain_of_ours(self, absent: list, foreign: list, wrong: list) -> None:
        if wrong or absent or foreign:
            raise ValueError(
                f"{self.folder} does not fit: {len(absent)} weights missing {absent[:3]}, {len(foreign)} unknown "
                f"{foreign[:3]}, {len(wrong)} of another shape {wrong[:3]}; the checkpoint belongs to another model "
                "or version"
            )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor, Path]]:
        """(our name, tensor, file), file by file. A tensor may be a view of its file: copy it, and let it go."""
        files: dict[Path, dict[str, str]] = {}
        for ours, (stored, entry) in self.places.items():
            files.setdefault(entry.file, {})[stored] = ours
        for file, names in files.items():
            for stored, tensor, _ in read_tensors([file], names):
                yield names[stored], tensor, file


def empty_model(config: GlammConfig) -> GlammForConditionalGeneration:
    """A model whose weights take no memory; its computed buffers are real."""
    with init_empty_weights(include_buffers=False):
        return GlammForConditionalGeneration(config)


def open_checkpoint(
    name: str | Path,
    vision_tower: str | Path | None = None,
    config: GlammConfig | None = None,
    need_tower: bool = True,
) -> Source:
    """Find a checkpoint and list its tensors.

    vision_tower: folder or hub id of the CLIP that official weights leave out; default: what their config.json names.
    config: in place of what config.json says. need_tower: whether CLIP must be found.
    Raises FileNotFoundError for what is missing, ValueError for what is damaged or of another kind of model.
    """
    folder = find_folder(name)
    if not is_official(folder):
        if vision_tower is not None:
            raise ValueError(f"{folder} holds its own image encoders; vision_tower belongs to official checkpoints")
        return _open_ours(folder, config)
    return _open_official(folder, vision_tower, config, need_tower)


def _open_ours(folder: Path, config: GlammConfig | None) -> Source:
    check_folder(folder)
    files = weight_files(folder)
    for file in files:
        check_no_pickle(file)
    try:
        config = config or GlammConfig.from_pretrained(folder)
    except Exception as error:  # of the reader of config.json and of each part's settings
        raise _unreadable(folder, error) from error
    return Source(folder, False, config, {name: (name, entry) for name, entry in list_tensors(files).items()})


def _open_official(folder: Path, tower, config: GlammConfig | None, need_tower: bool) -> Source:
    given = json.loads((folder / "config.json").read_text("utf-8"))
    entries = list_tensors(weight_files(folder))
    source = Source(folder, True, config or GlammConfig(), {})
    for name, entry in entries.items():
        try:
            ours = official_to_ours(name)
        except ValueError:
            source.unexpected.append(f"{name} in {entry.file.name}")
            continue
        if ours is None:
            source.ignored.append(name)
        else:
            source.places[ours] = (name, entry)
    vision = None
    if tower is not None or (need_tower and not any(name.startswith(VISION_TOWER) for name in source.places)):
        vision = _add_tower(source, tower or vision_tower_of(given))
    if config is None:
        shapes = {name: entry.shape for name, entry in entries.items()}
        try:
            source.config, source.notes = read_official_config(given, shapes, vision)
        except Exception as error:  # of any part's settings
            raise _unreadable(folder, error) from error
    return source


def _add_tower(source: Source, tower: str | Path) -> CLIPVisionConfig:
    """List CLIP's own weights under our names; returns its settings."""
    try:
        folder = find_folder(tower)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"official checkpoints leave out CLIP, and {tower} was not found ({error}); download it and give its "
            "folder as vision_tower"
        ) from error
    try:
        vision = CLIPVisionConfig.from_pretrained(folder)
    except Exception as error:  # of the reader of config.json
        raise _unreadable(folder, error) from error
    for name, entry in list_tensors(weight_files(folder)).items():
        inner = next(name[len(p) :] for p in CLIP_PREFIXES if name.startswith(p))
        if name.startswith(CLIP_REST) or inner == "embeddings.position_ids":
            source.ignored.append(name)
        elif inner.startswith(CLIP_PARTS):
            source.places[VISION_TOWER + inner] = (name, entry)
        else:
            source.unexpected.append(f"{name} in {entry.file.name}")
    source.tower = str(tower)
    return vision


def _unreadable(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder}: configuration or tokenizer cannot be read ({error}); copy it again")
