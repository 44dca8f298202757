"""A checkpoint that is opened and not read yet: where it lies, of which kind it is, and each tensor under our name."""

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast

from glamm_mini.checkpoints import files, official
from glamm_mini.checkpoints.files import Stored, find_folder, reading
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

UNREADABLE = ": config.json or the tokenizer cannot be used"


@dataclass
class PartReport:
    """One part of the model: its tensors, their bytes as stored, the types stored and made of them, and the files."""

    tensors: int = 0
    bytes: int = 0
    stored: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        stored, made = ", ".join(sorted(self.stored)), ", ".join(sorted(self.made))
        types = stored if stored == made else f"{stored} to {made}"
        return f"{self.tensors} tensors, {self.bytes / 1e6:,.1f} MB, {types}, {_ends(self.files)}"


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
        aside = {"entries ignored": self.ignored, "weights kept as they were": self.kept}
        aside["entries dropped as asked"] = self.dropped
        lines = [f"{name}: {part}" for name, part in self.parts.items()]
        lines += [f"{len(names)} {what} ({_ends(names)})" for what, names in aside.items() if names]
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
    name: str
    places: dict[str, Stored] = field(default_factory=dict)
    unexpected: list[Stored] = field(default_factory=list)
    tower: str | None = None
    left: LoadReport = field(default_factory=LoadReport)

    def put(self, entries: Iterable[Stored], ours: Callable[[str], str | None]) -> None:
        """Give tensors their places by `ours`, which gives a name, None for a buffer, or raises ValueError."""
        for entry in entries:
            try:
                name = ours(entry.name)
            except ValueError:
                self.unexpected.append(entry)
                continue
            if name is None:
                self.left.ignored.append(entry.name)
            else:
                self.places[name] = entry

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
        """The processor that belongs to the weights; with official ones, the configuration takes the added tokens' ids
        from its tokenizer. ValueError if that cannot be read or has too many words."""
        folder = self.folder
        pieces, whole = ((folder / f"tokenizer.{ending}").is_file() for ending in ("model", "json"))
        if not (whole or self.official):
            raise FileNotFoundError(f"{folder} holds a model alone: tokenizer.json is missing; save its processor too")
        with reading(folder, UNREADABLE):
            # An official folder that we have written may hold a tokenizer of ours, which is not a Llama's.
            own = whole and (not self.official or (not pieces and OURS in read_config(folder)))
            tokenizer = (PreTrainedTokenizerFast.from_pretrained if own else official_tokenizer)(folder)
            processor = GlammProcessor(self.config, tokenizer)
            tokenizer("a")  # without words or with a length that is no number, it fails only now
            ids = tokenizer.get_vocab().values()
            if len(set(ids)) < len(ids):
                raise ValueError(f"of {len(ids)} words, some share an id")
        words, rows = max(ids) + 1, self.config.text.vocab_size
        if words > rows:
            raise ValueError(f"{folder}: the tokenizer knows {words} tokens, the model {rows}; it is of another model")
        return processor

    def empty_model(self) -> GlammForConditionalGeneration:
        """The model that belongs to the weights, on the meta device. ValueError for settings that contradict."""
        with reading(self.folder, UNREADABLE), torch.device("meta"):
            return GlammForConditionalGeneration(self.config)

    def check(self, model: torch.nn.Module, without_tower: bool = False) -> None:
        """Raises one ValueError that lists missing, unexpected and misshapen names, with their files; a second name
        of what has its place is passed over. without_tower: that may be missing, as in released checkpoints."""
        tied, tower = set(model.all_tied_weights_keys), VISION_TOWER if without_tower else "no such name"
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        free = {name for name in shapes.keys() - self.places.keys() if name in tied or name.startswith(tower)}
        wanted = {name: shape for name, shape in shapes.items() if name not in free}
        odd = [*self.unexpected, *(self.places.pop(name) for name in list(self.places) if name not in wanted)]
        known = {(e.file, e.first): e.name for e in self.places.values() if e.first is not None}
        self.left.second |= {e.name: known[e.file, e.first] for e in odd if (e.file, e.first) in known}
        self.unexpected = odd = [entry for entry in odd if entry.name not in self.left.second]
        named = ours_to_official if self.official else str
        missing = [named(name) for name in wanted if name not in self.places]
        needed = [name for name in self.left.dropped if name in missing]
        if needed:
            raise ValueError(f"drop would leave out {len(needed)} names that the model needs ({needed[0]} ...)")
        problems = files.mismatch(wanted, self.places, odd, named)
        if problems:
            raise ValueError(f"{self.folder} does not fit this model: {problems}. {self._hint(missing)}")

    def _hint(self, missing: list[str]) -> str:
        odd = self.unexpected
        if any(".lora_" in entry.name for entry in odd):
            return "The checkpoint holds LoRA matrices: merge them first, and save the merged model."
        if missing and all("vision_tower" in name for name in missing):
            return "The checkpoint holds no vision tower: give CLIP's folder as vision_tower."
        if self.official and odd and not missing and all(entry.file.parent == self.folder for entry in odd):
            ways = "drop=('BEGINNING',) in Python, --drop BEGINNING on the command line"
            return f"If it is no loss, leave the unexpected names out by how they begin: {ways}."
        return "The checkpoint belongs to another model or version, or was not copied whole."


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
    given, drop = read_config(folder), (drop,) if isinstance(drop, str) else tuple(drop)
    is_official = given.get("model_type") in OFFICIAL_TYPES or "GLaMM" in str(given.get("architectures"))
    source = Source(folder, is_official, config or GlammConfig(), str(name))
    if not source.official:
        _check_ours(folder, given, drop, vision_tower, weights)
        with reading(folder, UNREADABLE):
            source.config = config or GlammConfig.from_dict(given)
            _ = source.config.region_layers  # more than CLIP has?
        source.places = _entries(source, name, weights, hub)
        return source
    entries = _entries(source, name, weights, hub)
    lost = [start for start in drop if not any(name.startswith(start) for name in entries)]
    if lost:
        raise ValueError(f"{folder} holds no name that begins with {lost[0]!r}; drop takes beginnings of names")
    source.left.dropped = [name for name in entries if name.startswith(drop)]
    source.put((entry for name, entry in entries.items() if not name.startswith(drop)), official_to_ours)
    hub = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}
    vision = _vision(source, vision_tower, given, need_tower and weights == "all", hub)
    if config is None:
        # Of dropped names too: without a row that it needs, the vocabulary must not become a smaller one.
        rows = entries.get("model.embed_tokens.weight")
        with reading(folder, UNREADABLE):
            source.config, notes = official.read_official_config(given, rows and rows.shape, vision)
        source.left.notes += notes
    return source


def _check_ours(folder: Path, given: dict, drop: tuple, vision_tower: Any, weights: str) -> None:
    """Raises an error for another kind of model, for what belongs to official ones alone, and for no weights."""
    kind = str(given.get("model_type", "unnamed"))
    if kind != GlammConfig.model_type:
        expected = f"expected {GlammConfig.model_type!r}, which glamm-mini has written, or an official GLaMM checkpoint"
        raise ValueError(f"{folder} holds a model of the type {kind!r}; {expected}")
    if drop:
        raise ValueError(f"{folder} is in our format, which holds no name too many; drop belongs to official ones")
    if vision_tower is not None:
        raise ValueError(f"{folder} holds its own image encoders; vision_tower belongs to official checkpoints")
    if weights == "all" and not any((folder / name).is_file() for name in (files.SINGLE[0], files.INDICES[0])):
        raise FileNotFoundError(f"{folder} is not a whole GLaMM checkpoint: {files.SINGLE[0]} is missing; copy all")


def _vision(source: Source, tower: str | Path | None, given: dict, needed: bool, hub: dict) -> CLIPVisionConfig | None:
    """List CLIP's own weights, where they are needed or lie here; returns its settings, None for the released ones."""
    if tower is None and any(name.startswith(VISION_TOWER) for name in source.places):
        return None
    named = str(given.get("mm_vision_tower") or given.get("vision_tower") or official.CLIP)
    # Inside the checkpoint lies the image encoder of a model that the hub has none for.
    beside = source.folder / (named if Path(named).name == named else "nowhere")
    place = tower or (beside if beside.is_dir() else named)
    if not needed and not Path(place).is_dir():
        return vision_settings(find_folder(place, False, **hub)) if tower else None
    try:
        folder = find_folder(place, **hub)
    except FileNotFoundError as error:
        hint = "download it and give its folder as vision_tower"
        raise FileNotFoundError(f"official checkpoints leave out CLIP, and {place} was not found; {hint}") from error
    vision = vision_settings(folder)
    odd = official.unlike_clip(vision)
    # Only the released CLIP's settings are known, and only a model of its width can mean it.
    is_named = Path(named).name == Path(official.CLIP).name and given.get("mm_hidden_size") == vision.hidden_size
    if odd and is_named and "hidden_size" not in odd:
        raise ValueError(f"the weights want {named}, but {folder} has {', '.join(odd.values())}; give the named one")
    source.put(files.list_tensors(files.weight_files(folder)).values(), clip_to_ours)
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
    with reading(folder, UNREADABLE):
        return CLIPVisionConfig.from_pretrained(folder)


def _entries(source: Source, name: str | Path, weights: str, hub: dict) -> dict[str, Stored]:
    """The tensors of a folder, or what the hub tells of a repository's without their values."""
    folder = source.folder
    if weights == "none":
        return {}
    if weights == "all" or Path(name).is_dir() or not files.HUB_ID.fullmatch(str(name)):
        return files.list_tensors(files.weight_files(folder))
    from huggingface_hub import HfApi
    from huggingface_hub.errors import NotASafetensorsRepoError

    where = {key: hub[key] for key in ("revision", "token") if key in hub}
    try:
        with suppress(NotASafetensorsRepoError):
            return {
                key: Stored(key, tuple(tensor.shape), files.SAFETENSORS_TYPES[tensor.dtype], folder / file)
                for file, found in HfApi().get_safetensors_metadata(name, **where).files_metadata.items()
                for key, tensor in found.tensors.items()
            }
        index = json.loads((folder / files.INDICES[1]).read_text("utf-8"))
        names, size = index["weight_map"], index.get("metadata", {}).get("total_size", 0) / 1e9
    except Exception as error:  # of the network and of the hub
        raise FileNotFoundError(f"the hub does not tell what {name} holds ({files.first_line(error)})") from error
    stand = f"shapes and values stand in {', '.join(sorted(set(names.values())))}, {size:.2f} GB to download"
    source.left.notes.append(f"names alone were compared: {stand}")
    return {key: Stored(key, None, torch.float32, folder / file) for key, file in names.items()}


def read_config(folder: Path) -> dict:
    """What config.json says, kinds and ranges checked. FileNotFoundError or ValueError that names it."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no checkpoint: config.json is missing among {files.listed_in(folder)}")
    with reading(path, " cannot be used"):
        given = json.loads(path.read_text("utf-8"))
        if not isinstance(given, dict):
            raise ValueError(f"it holds a {type(given).__name__}; expected a table of settings")
        official.check_settings(given)
    return given


def type_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
