"""A checkpoint on disk, of ours or official, its tensors listed under our names and none of them read yet."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import CLIPVisionConfig

from glamm_mini.checkpoints.find import check_folder, check_no_pickle, find_folder, is_official
from glamm_mini.checkpoints.official import VISION_TOWER, complain, official_to_ours, ours_to_official
from glamm_mini.checkpoints.official_config import read_official_config, vision_tower_of
from glamm_mini.checkpoints.report import LoadReport
from glamm_mini.checkpoints.shards import Entry, list_tensors, read_tensors, weight_files
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.llama_tokenizer import official_tokenizer
from glamm_mini.processing.processor import GlammProcessor

CLIP_PREFIXES = ("vision_model.", "model.vision_tower.vision_tower.vision_model.", "")
"""Levels that CLIP's image encoder stands under, in older and newer files; "" for none, as today's class saves it."""

CLIP_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
CLIP_REST = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""What a whole CLIP holds beside the image encoder."""


@dataclass
class Source:
    """places: our name -> (name in its file, entry). unexpected: names that have no place in a GLaMM, with entries.
    tower: where the official CLIP came from, if it was read from a checkpoint of its own. second: names that share
    the values of one that has a place -> that one; `check` finds them. dropped: names left out on request."""

    folder: Path
    official: bool
    config: GlammConfig
    places: dict[str, tuple[str, Entry]]
    ignored: list[str] = field(default_factory=list)
    unexpected: list[tuple[str, Entry]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tower: str | None = None
    second: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def report(self) -> LoadReport:
        """A report that knows what was left aside, and counts no tensor yet."""
        aside = {"second": dict(self.second), "dropped": list(self.dropped)}
        return LoadReport(ignored=list(self.ignored), notes=list(self.notes), **aside)

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

        without_tower: the vision tower may be missing, as in released checkpoints. An unexpected name that shares its
        values with an expected one is moved to `second`.
        """
        wanted = model.state_dict()
        self._part_unexpected(wanted)
        optional = set(model.all_tied_weights_keys)
        absent = [n for n in wanted if n not in self.places and n not in optional]
        if without_tower:
            absent = [name for name in absent if not name.startswith(VISION_TOWER)]
        wrong = [n for n, (_, e) in self.places.items() if e.shape != tuple(wanted[n].shape)]
        if not self.official:
            self._complain_of_ours(absent, [name for name, _ in self.unexpected], wrong)
            return
        missing, shapes = [ours_to_official(name) for name in absent], []
        needed = [name for name in self.dropped if name in missing]
        if needed:
            raise ValueError(
                f"drop would leave out {len(needed)} names that the model needs ({needed[0]} ...); give the whole "
                "beginning of the names that are too many"
            )
        for name in wrong:
            stored, entry = self.places[name]
            shapes.append(f"{stored} in {entry.file.name} is {entry.shape}, the model has {tuple(wanted[name].shape)}")
        extra = [f"{name} in {entry.file.name}" for name, entry in self.unexpected]
        own = all(entry.file.parent == self.folder for _, entry in self.unexpected)  # and none of CLIP's
        complain(missing, extra, shapes, str(self.folder), droppable=own)

    def _part_unexpected(self, wanted) -> None:
        """Move names without a place in this model to `unexpected`, and from there those of shared values to `second`.

        Only a name whose values the model has anyway can be passed over without loss.
        """
        self.unexpected += [self.places.pop(name) for name in list(self.places) if name not in wanted]
        known = {(e.file, e.first): stored for stored, e in self.places.values() if e.first is not None}
        shared = {name: known[e.file, e.first] for name, e in self.unexpected if (e.file, e.first) in known}
        self.second |= shared
        self.unexpected = [(name, entry) for name, entry in self.unexpected if name not in shared]

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
    drop: Iterable[str] = (),
) -> Source:
    """Find a checkpoint and list its tensors.

    vision_tower: folder or hub id of the CLIP that official weights leave out; default: what their config.json names.
    config: in place of what config.json says. need_tower: whether CLIP must be found. drop: beginnings of official
    names that are left out.
    Raises FileNotFoundError for what is missing, ValueError for what is damaged or of another kind of model.
    """
    folder = find_folder(name)
    drop = (drop,) if isinstance(drop, str) else tuple(drop)
    if not is_official(folder):
        if drop:
            raise ValueError(f"{folder} is in our format, which holds no name too many; drop belongs to official ones")
        if vision_tower is not None:
            raise ValueError(f"{folder} holds its own image encoders; vision_tower belongs to official checkpoints")
        return _open_ours(folder, config)
    return _open_official(folder, vision_tower, config, need_tower, drop)


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


def _open_official(folder: Path, tower, config: GlammConfig | None, need_tower: bool, drop: tuple[str, ...]) -> Source:
    given = json.loads((folder / "config.json").read_text("utf-8"))
    entries = list_tensors(weight_files(folder))
    source = Source(folder, True, config or GlammConfig(), {}, dropped=_dropped(folder, entries, drop))
    for name, entry in entries.items():
        if name.startswith(drop):
            continue
        try:
            ours = official_to_ours(name)
        except ValueError:
            source.unexpected.append((name, entry))
            continue
        if ours is None:
            source.ignored.append(name)
        else:
            source.places[ours] = (name, entry)
    vision = None
    if tower is not None or (need_tower and not any(name.startswith(VISION_TOWER) for name in source.places)):
        vision = _add_tower(source, tower or vision_tower_of(given))
    if config is None:
        # Of dropped names too: without a layer that it needs, the model must not become a smaller one.
        shapes = {name: entry.shape for name, entry in entries.items()}
        try:
            source.config, source.notes = read_official_config(given, shapes, vision)
        except Exception as error:  # of any part's settings
            raise _unreadable(folder, error) from error
    return source


def _dropped(folder: Path, entries: Iterable[str], drop: tuple[str, ...]) -> list[str]:
    """The names that begin as `drop` says; ValueError for a beginning that none has."""
    for start in drop:
        if not any(name.startswith(start) for name in entries):
            raise ValueError(
                f"{folder} holds no name that begins with {start!r}; drop takes beginnings of official names, as the "
                "error about unexpected ones lists them"
            )
    return [name for name in entries if name.startswith(drop)]


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
            source.unexpected.append((name, entry))
    source.tower = str(tower)
    return vision


def _unreadable(folder: Path, error: Exception) -> ValueError:
    return ValueError(f"{folder}: configuration or tokenizer cannot be read ({error}); copy it again")
