"""A checkpoint that is opened and not read yet: where it lies, of which kind it is, and each tensor under our name."""

import json
from collections.abc import Callable, Iterable, Mapping
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
    mismatch,
    weight_files,
)
from glamm_mini.checkpoints.official import OURS, VISION_TOWER, official_to_ours, ours_to_official
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


@dataclass
class PartReport:
    """One part of the model: its tensors, their bytes as stored, the types stored and made of them, and the files."""

    tensors: int = 0
    bytes: int = 0
    stored: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)


@dataclass
class LoadReport:
    """What came from where; prints as lines.

    ignored: names of computed buffers, and what a CLIP file holds beside the image encoder. dropped: names left out on
    request. second: names that share the values of another -> that one. kept: our names that the checkpoint did not
    hold (the vision tower, where that was allowed). notes: what was assumed.
    """

    parts: dict[str, PartReport] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    second: dict[str, str] = field(default_factory=dict)
    kept: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def loaded(self) -> int:
        """How many tensors were taken over."""
        return sum(part.tensors for part in self.parts.values())

    def __str__(self) -> str:
        lines = []
        for name, part in self.parts.items():
            stored, made = ", ".join(sorted(part.stored)), ", ".join(sorted(part.made))
            types = stored if stored == made else f"{stored} to {made}"
            lines.append(f"{name}: {part.tensors} tensors, {part.bytes / 1e6:,.1f} MB, {types}, {_ends(part.files)}")
        lines += [f"{len(self.ignored)} entries ignored ({_ends(self.ignored)})"] if self.ignored else []
        lines += [f"{len(self.kept)} weights kept as they were ({_ends(self.kept)})"] if self.kept else []
        lines += [f"{len(self.dropped)} entries dropped as asked ({_ends(self.dropped)})"] if self.dropped else []
        lines += [f"{second} passed over: it is {first}" for second, first in self.second.items()]
        return "\n".join(lines + self.notes)


def _ends(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}"


@dataclass
class Source:
    """places: our name -> the tensor in its file. unexpected: what has no place in a GLaMM. tower: where the official
    CLIP came from, if it was read from a checkpoint of its own. left: what was ignored, dropped ... so far."""

    folder: Path
    official: bool
    config: GlammConfig
    places: dict[str, Stored] = field(default_factory=dict)
    unexpected: list[Stored] = field(default_factory=list)
    tower: str | None = None
    name: str = ""
    left: LoadReport = field(default_factory=LoadReport)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that have a place."""
        return sum(entry.nbytes for entry in self.places.values())

    def report(self, made: Mapping[str, str]) -> LoadReport:
        """What was left aside and, by the new type of each of our names, what became of the rest."""
        for name, new in made.items():
            part, entry = self.left.parts.setdefault(name.split(".")[0], PartReport()), self.places[name]
            part.tensors, part.bytes = part.tensors + 1, part.bytes + entry.nbytes
            part.stored.add(type_name(entry.dtype))
            part.made.add(new)
            if entry.file.name not in part.files:
                part.files.append(entry.file.name)
        return self.left

    def processor(self) -> GlammProcessor:
        """The processor that belongs to the weights. ValueError if its tokenizer cannot be read or has too many words.

        With official weights, the configuration takes the ids of the added tokens from the tokenizer.
        """
        try:
            pieces, whole = ((self.folder / f"tokenizer.{ending}").is_file() for ending in ("model", "json"))
            if not (whole or self.official):
                hint = "save its processor there as well, or copy the file"
                raise FileNotFoundError(f"{self.folder} holds a model alone: tokenizer.json is missing; {hint}")
            # An official folder that we have written may hold a tokenizer of ours, which is not a Llama's.
            if whole and (not self.official or (not pieces and OURS in read_config(self.folder))):
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
        values with an expected one is passed over: nothing is lost by it.
        """
        tied = set(model.all_tied_weights_keys)
        wanted = {n: tuple(t.shape) for n, t in model.state_dict().items() if n in self.places or n not in tied}
        if without_tower:
            wanted = {n: s for n, s in wanted.items() if n in self.places or not n.startswith(VISION_TOWER)}
        odd = [*self.unexpected, *(self.places.pop(name) for name in list(self.places) if name not in wanted)]
        known = {(e.file, e.first): e.name for e in self.places.values() if e.first is not None}
        self.left.second |= {e.name: known[e.file, e.first] for e in odd if (e.file, e.first) in known}
        self.unexpected = odd = [entry for entry in odd if entry.name not in self.left.second]
        named = ours_to_official if self.official else str
        missing = [named(name) for name in wanted if name not in self.places]
        needed = [name for name in self.left.dropped if name in missing]
        if needed:
            raise ValueError(
                f"drop would leave out {len(needed)} names that the model needs ({needed[0]} ...); give the whole "
                "beginning of the names that are too many"
            )
        problems = mismatch(wanted, self.places, odd, named)
        if problems:
            raise ValueError(f"{self.folder} does not fit this model: {problems}.{self._hint(missing)}")

    def _hint(self, missing: list[str]) -> str:
        odd = self.unexpected
        if any(".lora_A." in entry.name or ".lora_B." in entry.name for entry in odd):
            return " The checkpoint holds LoRA matrices: merge them first, and save the merged model."
        if missing and all("vision_tower" in name for name in missing):
            return " The checkpoint holds no vision tower: give CLIP's folder as vision_tower."
        if self.official and odd and not missing and all(entry.file.parent == self.folder for entry in odd):
            return (
                " If it is no loss, leave the unexpected names out by how they begin: drop=('BEGINNING',) in Python, "
                "--drop BEGINNING on the command line."
            )
        return " The checkpoint belongs to another model or version, or was not copied whole."


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
    if config is not None and not isinstance(config, GlammConfig):
        raise ValueError(f"config is a {type(config).__name__}; expected a GlammConfig")
    folder = find_folder(name, weights == "all", **hub)
    drop = (drop,) if isinstance(drop, str) else tuple(drop)
    given = read_config(folder)
    source = Source(folder, is_official(given), config or GlammConfig())
    if not source.official:
        if drop:
            raise ValueError(f"{folder} is in our format, which holds no name too many; drop belongs to official ones")
        if vision_tower is not None:
            raise ValueError(f"{folder} holds its own image encoders; vision_tower belongs to official checkpoints")
        _check_folder(folder, given, weights == "all")
        source.places = _entries(source, name, weights, hub)
        source.config = config or settled(folder, GlammConfig.from_dict, given)
        settled(folder, getattr, source.config, "region_layers")  # more than CLIP has?
        return source
    entries = _entries(source, name, weights, hub)
    for start in drop:
        if not any(name.startswith(start) for name in entries):
            raise ValueError(
                f"{folder} holds no name that begins with {start!r}; drop takes beginnings of official names, as the "
                "error about unexpected ones lists them"
            )
    source.left.dropped = [name for name in entries if name.startswith(drop)]
    for name, entry in entries.items():
        if not name.startswith(drop):
            put(source, official_to_ours, entry)
    hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    vision = _vision(source, vision_tower, given, need_tower and weights == "all", hub)
    if config is None:
        # Of dropped names too: without a row that it needs, the vocabulary must not become a smaller one.
        rows = entries.get("model.embed_tokens.weight")
        source.config, notes = settled(folder, official.read_official_config, given, rows and rows.shape, vision)
        source.left.notes += notes
    return source


def put(source: Source, ours: Callable[[str], str | None], entry: Stored) -> None:
    """Give a tensor its place by `ours`, which gives its name, None for a buffer, or raises ValueError."""
    try:
        name = ours(entry.name)
    except ValueError:
        source.unexpected.append(entry)
        return
    if name is None:
        source.left.ignored.append(entry.name)
    else:
        source.places[name] = entry


def _vision(source: Source, tower: str | Path | None, given: dict, needed: bool, hub: dict) -> CLIPVisionConfig | None:
    """List CLIP's own weights, where they are needed or lie here; returns its settings, None for the released ones."""
    if tower is None and any(name.startswith(VISION_TOWER) for name in source.places):
        return None
    named = official.vision_tower_of(given)
    # Inside the checkpoint lies the image encoder of a model that the hub has none for.
    beside = source.folder / named if Path(named).name == named else source.folder / "nowhere"
    place = tower or (beside if beside.is_dir() else named)
    if not needed and not Path(place).is_dir():
        return vision_settings(find_folder(place, False, **hub)) if tower else None
    try:
        folder = find_folder(place, **hub)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"official checkpoints leave out CLIP, and {place} was not found; download it and give its folder as "
            "vision_tower"
        ) from error
    vision = vision_settings(folder)
    official.check_tower(given, vision, str(folder))
    for entry in list_tensors(weight_files(folder)).values():
        put(source, clip_to_ours, entry)
    source.tower = str(place)
    return vision


def clip_to_ours(name: str) -> str | None:
    """Our name of one of CLIP's; None for what a file holds beside the image encoder's weights, else ValueError."""
    inner = next(name[len(prefix) :] for prefix in CLIP_PREFIXES if name.startswith(prefix))
    if name.startswith(CLIP_REST) or inner == "embeddings.position_ids":
        return None
    if not inner.startswith(CLIP_PARTS):
        raise ValueError(f"{name!r} is not a name of CLIP's image encoder")
    return VISION_TOWER + inner


def vision_settings(folder: Path) -> CLIPVisionConfig:
    """Of CLIP's folder, whole or its image encoder alone. ValueError if they cannot be read."""
    read_config(folder)
    return settled(folder, CLIPVisionConfig.from_pretrained, folder)


def _entries(source: Source, name: str | Path, weights: str, hub: dict) -> dict[str, Stored]:
    """The tensors of a folder, or what the hub tells of a repository's without their values."""
    folder = source.folder
    if weights == "none":
        return {}
    if weights == "all" or Path(name).is_dir() or not HUB_ID.fullmatch(str(name)):
        return list_tensors(weight_files(folder))
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
            }
        names = json.loads((folder / INDICES[1]).read_text("utf-8"))["weight_map"]
    except Exception as error:  # of the network and of the hub
        raise FileNotFoundError(f"the hub does not tell what {name} holds ({first_line(error)})") from error
    wanted = sorted(set(names.values()))
    size = sum(sizes.get(file) or 0 for file in wanted) / 1e9
    source.left.notes.append(
        f"names alone were compared: shapes and values stand in {', '.join(wanted)}, {size:.2f} GB to download"
    )
    return {key: Stored(key, None, torch.float32, folder / file) for key, file in names.items()}


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


def _check_folder(folder: Path, given: dict, weights: bool) -> None:
    """Raises an error that names what a folder in our format lacks, or that it holds another kind of model."""
    kind = str(given.get("model_type", "unnamed"))
    if kind != GlammConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of the type {kind!r}; expected {GlammConfig.model_type!r}, or an official GLaMM "
            "checkpoint. A language model cannot be asked about pictures: give a folder that glamm-mini has written"
        )
    if weights and not any((folder / name).is_file() for name in (SINGLE[0], INDICES[0])):
        hint = "train one (make tiny) or copy it"
        raise FileNotFoundError(f"{folder} is not a whole GLaMM checkpoint: {SINGLE[0]} is missing; {hint}")


def type_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def settled(folder: Path, reader: Callable, *given: Any) -> Any:
    """What a reader of settings gives; one ValueError that names the folder for whatever it raises."""
    try:
        return reader(*given)
    except Exception as error:  # each part's settings raise types of their own
        raise unreadable(folder, error) from error


def unreadable(folder: Path, error: Exception) -> ValueError:
    """What is said of a folder whose settings cannot be used."""
    # Of a KeyError or a TypeError of another library, the words alone say little.
    what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return ValueError(f"{folder}: configuration or tokenizer cannot be read ({what}); copy it again")
