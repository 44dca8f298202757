"""A checkpoint that is opened and not read yet: where it lies, of which kind it is, and each tensor under our name."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast

from glamm_mini.checkpoints import official
from glamm_mini.checkpoints.files import (
    HUB_ID,
    INDICES,
    SAFETENSORS_TYPES,
    SINGLE,
    Stored,
    find_folder,
    first_line,
    list_tensors,
    listed_in,
    weight_files,
)
from glamm_mini.checkpoints.official import VISION_TOWER, official_to_ours, ours_to_official
from glamm_mini.checkpoints.report import LoadReport
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.llama_tokenizer import official_tokenizer
from glamm_mini.processing.processor import GlammProcessor

OFFICIAL_TYPES = ("llava", "glamm", "lisa")
"""What an official config.json may say under model_type; the released ones say "llava"."""

CLIP_PREFIXES = ("vision_model.", "model.vision_tower.vision_tower.vision_model.", "")
"""Levels that CLIP's image encoder stands under, in older and newer files; "" for none, as today's class saves it."""

CLIP_PARTS = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
CLIP_REST = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""What a whole CLIP holds beside the image encoder."""

_SHOWN = 5


@dataclass
class Source:
    """places: our name -> the tensor in its file. unexpected: what has no place in a GLaMM. ignored: official names of
    computed buffers, and what a CLIP file holds beside the image encoder. tower: where the official CLIP came from, if
    it was read from a checkpoint of its own. second: names that share the values of one that has a place -> that one;
    `check` finds them. dropped: names left out on request."""

    folder: Path
    official: bool
    config: GlammConfig
    places: dict[str, Stored] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    unexpected: list[Stored] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tower: str | None = None
    second: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that have a place."""
        return sum(entry.nbytes for entry in self.places.values())

    def report(self, made: dict[str, str] | None = None) -> LoadReport:
        """What was left aside and, with the new type of each of our names, what became of the rest."""
        report = LoadReport(
            ignored=list(self.ignored), notes=list(self.notes), second=dict(self.second), dropped=list(self.dropped)
        )
        for name, new in (made or {}).items():
            report.add(name, self.places[name], new)
        return report

    def processor(self) -> GlammProcessor:
        """The processor that belongs to the weights. ValueError if its tokenizer cannot be read or has too many words.

        With official weights, the configuration takes the ids of the added tokens from the tokenizer.
        """
        try:
            pieces, whole = ((self.folder / f"tokenizer.{ending}").is_file() for ending in ("model", "json"))
            if whole and (not self.official or (not pieces and _is_ours(self.folder))):
                tokenizer = PreTrainedTokenizerFast.from_pretrained(self.folder)
            else:
                tokenizer = official_tokenizer(self.folder)
            processor = GlammProcessor(self.config, tokenizer)
        except FileNotFoundError:
            raise
        except Exception as error:  # the readers of config.json and tokenizer.json raise types of their own
            raise unreadable(self.folder, error) from error
        words, rows = max(tokenizer.get_vocab().values()) + 1, self.config.text.vocab_size
        if words > rows:
            raise ValueError(
                f"{self.folder}: the tokenizer knows {words} tokens, the model {rows}; the tokenizer belongs to "
                "another model"
            )
        return processor

    def empty_model(self) -> GlammForConditionalGeneration:
        """The model that belongs to the weights, on the meta device. ValueError for settings that contradict."""
        try:
            with torch.device("meta"):
                return GlammForConditionalGeneration(self.config)
        except Exception as error:  # each part of the model raises its own
            raise unreadable(self.folder, error) from error

    def check(self, model: torch.nn.Module, without_tower: bool = False) -> None:
        """Raises one ValueError that lists missing, unexpected and wrongly shaped names, with their files.

        without_tower: the vision tower may be missing, as in released checkpoints. An unexpected name that shares its
        values with an expected one is moved to `second`.
        """
        wanted, optional = model.state_dict(), set(model.all_tied_weights_keys)
        self._part_unexpected(wanted)
        absent = [n for n in wanted if n not in self.places and n not in optional]
        if without_tower:
            absent = [name for name in absent if not name.startswith(VISION_TOWER)]
        missing = [ours_to_official(name) for name in absent] if self.official else absent
        needed = [name for name in self.dropped if name in missing]
        if needed:
            raise ValueError(
                f"drop would leave out {len(needed)} names that the model needs ({needed[0]} ...); give the whole "
                "beginning of the names that are too many"
            )
        shapes = [
            f"{entry.name} in {entry.file.name} is {entry.shape}, the model has {tuple(wanted[name].shape)}"
            for name, entry in self.places.items()
            if entry.shape not in (None, tuple(wanted[name].shape))
        ]
        self._complain(missing, shapes)

    def _part_unexpected(self, wanted) -> None:
        """Move names without a place in this model to `unexpected`, and from there those of shared values to `second`.

        Only a name whose values the model has anyway can be passed over without loss.
        """
        self.unexpected += [self.places.pop(name) for name in list(self.places) if name not in wanted]
        known = {(e.file, e.first): e.name for e in self.places.values() if e.first is not None}
        shared = {e.name: known[e.file, e.first] for e in self.unexpected if (e.file, e.first) in known}
        self.second |= shared
        self.unexpected = [entry for entry in self.unexpected if entry.name not in shared]

    def _complain(self, missing: list[str], shapes: list[str]) -> None:
        extra = [f"{entry.name} in {entry.file.name}" for entry in self.unexpected]
        problems = [
            f"{len(names)} {what} ({'; '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})"
            for what, names in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
            if names
        ]
        if not problems:
            return
        hint = " The checkpoint belongs to another model or version, or was not copied whole."
        if missing and all("vision_tower" in name for name in missing):
            hint = " The checkpoint holds no vision tower: give CLIP's folder as vision_tower."
        own = all(entry.file.parent == self.folder for entry in self.unexpected)  # and none of CLIP's
        if self.official and own and extra and not missing:
            hint = (
                " If it is no loss, leave the unexpected names out by how they begin: drop=('BEGINNING',) in Python, "
                "--drop BEGINNING on the command line."
            )
        if any(re.search(r"\.lora_[AB]\.", name) for name in extra):
            hint = " The checkpoint holds LoRA matrices: merge them first, and save the merged model."
        raise ValueError(f"{self.folder} does not fit this model: {', '.join(problems)}.{hint}")


def open_checkpoint(
    name: str | Path,
    vision_tower: str | Path | None = None,
    config: GlammConfig | None = None,
    need_tower: bool = True,
    drop: Iterable[str] = (),
    weights: str = "all",
    **hub: Any,
) -> Source:
    """Find a checkpoint and list its tensors.

    vision_tower: folder or hub id of the CLIP that official weights leave out; default: what their config.json names.
    config: in place of what config.json says. need_tower: whether CLIP must be found. drop: beginnings of official
    names that are left out. weights: "all", "names" (of a repository of the hub no weights are fetched), "none".
    Raises FileNotFoundError for what is missing, ValueError for what is damaged or of another kind of model.
    """
    folder = find_folder(name, weights == "all", **hub)
    drop = (drop,) if isinstance(drop, str) else tuple(drop)
    given = read_config(folder)
    if is_official(given):
        entries, notes = _entries(name, folder, weights, hub)
        source = Source(folder, True, config or GlammConfig(), dropped=_dropped(folder, entries, drop), notes=notes)
        tower = vision_tower, {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
        return _official(source, entries, given, tower, config, need_tower, drop, weights == "all")
    if drop:
        raise ValueError(f"{folder} is in our format, which holds no name too many; drop belongs to official ones")
    if vision_tower is not None:
        raise ValueError(f"{folder} holds its own image encoders; vision_tower belongs to official checkpoints")
    check_folder(folder, given, weights == "all")
    entries, notes = _entries(name, folder, weights, hub)
    try:
        config = config or GlammConfig.from_dict(given)
    except Exception as error:  # of each part's settings
        raise unreadable(folder, error) from error
    return Source(folder, False, config, entries, notes=notes)


def _official(source: Source, entries: dict, given: dict, tower, config, need_tower, drop, whole: bool) -> Source:
    tower, hub = tower
    for name, entry in entries.items():
        if name.startswith(drop):
            continue
        try:
            ours = official_to_ours(name)
        except ValueError:
            source.unexpected.append(entry)
            continue
        if ours is None:
            source.ignored.append(name)
        else:
            source.places[ours] = entry
    vision, named = None, official.vision_tower_of(given)
    # Inside the checkpoint lies the image encoder of a model that the hub has none for.
    beside = source.folder / named if Path(named).name == named else source.folder / "nowhere"
    if not any(name.startswith(VISION_TOWER) for name in source.places) or tower is not None:
        place = tower or (beside if beside.is_dir() else named)
        here = Path(place).is_dir() and (tower is not None or any(Path(place).glob("*.safetensors")))
        if here or need_tower and (whole or tower is not None):
            vision = _add_tower(source, place, given, hub)
        elif tower is not None or beside.is_dir():
            vision = _vision_settings(find_folder(place, False, **hub))
    if config is None:
        # Of dropped names too: without a row that it needs, the vocabulary must not become a smaller one.
        rows = entries.get("model.embed_tokens.weight")
        try:
            source.config, notes = official.read_official_config(given, rows and rows.shape, vision)
        except Exception as error:  # of any part's settings
            raise unreadable(source.folder, error) from error
        source.notes += notes
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


def _add_tower(source: Source, tower: str | Path, given: dict, hub: dict) -> CLIPVisionConfig:
    """List CLIP's own weights under our names; returns its settings."""
    try:
        folder = find_folder(tower, **hub)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"official checkpoints leave out CLIP, and {tower} was not found; download it and give its folder as "
            "vision_tower"
        ) from error
    vision = _vision_settings(folder)
    official.check_tower(given, vision, str(folder))
    for name, entry in list_tensors(weight_files(folder)).items():
        inner = next(name[len(p) :] for p in CLIP_PREFIXES if name.startswith(p))
        if name.startswith(CLIP_REST) or inner == "embeddings.position_ids":
            source.ignored.append(name)
        elif inner.startswith(CLIP_PARTS):
            source.places[VISION_TOWER + inner] = entry
        else:
            source.unexpected.append(entry)
    source.tower = str(tower)
    return vision


def _vision_settings(folder: Path) -> CLIPVisionConfig:
    read_config(folder)
    try:
        return CLIPVisionConfig.from_pretrained(folder)
    except Exception as error:  # of the reader of config.json
        raise unreadable(folder, error) from error


def _entries(name, folder: Path, weights: str, hub: dict) -> tuple[dict[str, Stored], list[str]]:
    """The tensors of a folder, or what the hub tells of a repository's without their values; and notes."""
    if weights == "none":
        return {}, []
    if weights == "all" or Path(name).is_dir() or not HUB_ID.fullmatch(str(name)):
        return list_tensors(weight_files(folder)), []
    from huggingface_hub import HfApi

    api, where = HfApi(), {key: hub[key] for key in ("revision", "token") if key in hub}
    try:
        sizes = {f.rfilename: f.size for f in api.model_info(name, files_metadata=True, **where).siblings}
        if any(file in sizes for file in (SINGLE[0], INDICES[0])):
            files = api.get_safetensors_metadata(name, **where).files_metadata
            return {
                key: Stored(key, tuple(tensor.shape), SAFETENSORS_TYPES[tensor.dtype], folder / file)
                for file, found in files.items()
                for key, tensor in found.tensors.items()
            }, []
        names = json.loads((folder / INDICES[1]).read_text("utf-8"))["weight_map"]
    except Exception as error:  # of the network and of the hub
        raise FileNotFoundError(f"the hub does not tell what {name} holds ({first_line(error)})") from error
    wanted = sorted(set(names.values()))
    note = (
        f"names alone were compared: shapes and values stand in {', '.join(wanted)}, "
        f"{sum(sizes.get(file) or 0 for file in wanted) / 1e9:.2f} GB to download"
    )
    return {key: Stored(key, None, torch.float32, folder / file) for key, file in names.items()}, [note]


def read_config(folder: Path) -> dict:
    """What config.json says, types and ranges checked. FileNotFoundError or ValueError that names it."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: config.json is missing; it holds {listed_in(folder)}")
    try:
        given = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({first_line(error)}); copy it again") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path} holds a {type(given).__name__}; expected a table of settings")
    official.check_settings(given, path)
    return given


def is_official(given: dict) -> bool:
    """Whether a config.json is one of an official GLaMM checkpoint."""
    names = given.get("architectures")
    return given.get("model_type") in OFFICIAL_TYPES or any(
        "GLaMM" in str(name) for name in (names if isinstance(names, list) else ())
    )


def check_folder(folder: Path, given: dict, weights: bool) -> None:
    """Raises FileNotFoundError that names missing files of a checkpoint of ours, ValueError if the folder holds
    another kind of model."""
    kind = str(given.get("model_type", "unnamed"))
    if kind != GlammConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of the type {kind!r}; expected {GlammConfig.model_type!r}, or an official GLaMM "
            "checkpoint. A language model cannot be asked about pictures: give a folder that glamm-mini has written"
        )
    missing = [name for name in (SINGLE[0], "tokenizer.json") if not (folder / name).is_file()]
    if SINGLE[0] in missing and (not weights or (folder / INDICES[0]).is_file()):
        missing.remove(SINGLE[0])
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a whole GLaMM checkpoint: {', '.join(missing)} missing; train one (make tiny) or copy it"
        )


def _is_ours(folder: Path) -> bool:
    """Whether we have written the folder, in our format or, with what that has no place for, in the official one."""
    given = read_config(folder)
    return given.get("model_type") == GlammConfig.model_type or official.OURS in given


def unreadable(folder: Path, error: Exception) -> ValueError:
    """What is said of a folder whose settings cannot be used."""
    # Of a KeyError or a TypeError of another library, the words alone say little.
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return ValueError(f"{folder}: configuration or tokenizer cannot be read ({what}); copy it again")
