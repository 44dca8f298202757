"""Where the pretrained parts of a GLaMM lie: a folder, a hub id, a file or an address, and what each one holds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, SamConfig, SamVisionConfig

from glamm_mini.checkpoints.shards import SINGLE, weight_files

SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth")
"""What segment-anything's authors publish; one of these names that is no file here stands for its address."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SETTINGS_AND_SAFETENSORS = ["*.json", "*.safetensors", "tokenizer.model"]
PICKLED_WEIGHTS = ["pytorch_model*.bin"]
"""Fetched only where a repository has no safetensors; read with `weights_only`, so that nothing in them can run."""


@dataclass
class Source:
    """One part's weights. config: transformers' own of the part, None for a .pth of SAM, which holds tensors alone."""

    folder: Path
    files: list[Path]
    config: CLIPVisionConfig | LlamaConfig | SamVisionConfig | None = None


def clip_source(place: str | Path) -> Source:
    """The vision tower of a CLIP folder or hub id, whether a whole CLIP or its vision half was saved."""
    folder = _folder(place)
    kind = _model_type(folder, ("clip", "clip_vision_model"))
    config = CLIPConfig.from_pretrained(folder).vision_config if kind == "clip" else None
    return Source(folder, weight_files(folder), config or CLIPVisionConfig.from_pretrained(folder))


def llama_source(place: str | Path) -> Source:
    """The language model of a Llama folder or hub id; the tokenizer lies beside the weights."""
    folder = _folder(place)
    _model_type(folder, ("llama",))
    return Source(folder, weight_files(folder), LlamaConfig.from_pretrained(folder))


def sam_source(place: str | Path) -> Source:
    """SAM: its authors' .pth, by its path, https address or published name; or transformers' own folder or hub id."""
    text, path = str(place), Path(place)
    if path.is_dir() or (isinstance(place, str) and not path.exists() and HUB_ID.fullmatch(place)):
        folder = _folder(place)
        _model_type(folder, ("sam",))
        return Source(folder, weight_files(folder), SamConfig.from_pretrained(folder).vision_config)
    if not path.is_file() and text in SAM_FILES:
        text = SAM_ADDRESS + text
    if text.startswith("https://"):
        path = _download(text)
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; give a path, an https address, or one of {', '.join(SAM_FILES)}, "
            f"which are fetched from {SAM_ADDRESS}"
        )
    return Source(path.parent, [path])


def _folder(place: str | Path) -> Path:
    path = Path(place)
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{path} is a file; give the folder that holds config.json and the weights")
    if not isinstance(place, str) or not HUB_ID.fullmatch(place):
        raise FileNotFoundError(f"there is no folder {place}; give a folder that is there, or a hub id owner/name")
    return _snapshot(place)


def _snapshot(name: str) -> Path:
    """A repository of the hub, downloaded or taken from the cache; only files that cannot run code."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=SETTINGS_AND_SAFETENSORS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=SETTINGS_AND_SAFETENSORS + PICKLED_WEIGHTS))
    except Exception as error:  # of the network, of the hub and of its cache, each of its own type
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(
            f"there is no folder {name} here, and the hub gave no model of that name ({reason[0]}); check the name or "
            "the network, or download it elsewhere and give the folder"
        ) from error
    return folder


def _download(address: str) -> Path:
    """The file of an address, kept where torch keeps downloads; a broken download leaves nothing behind."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(address).path).name
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(target))
    except OSError as error:  # URLError and HTTPError are OSErrors
        raise FileNotFoundError(
            f"{address} could not be fetched ({error}); check the network, or download it elsewhere and give its path"
        ) from error
    return target


def _model_type(folder: Path, expected: tuple[str, ...]) -> str:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json; give a Hugging Face folder with config.json and {' or '.join(SINGLE)}"
        )
    try:
        kind = json.loads(path.read_text("utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} names no model_type or is damaged ({error!r}); copy or download it again") from error
    if kind not in expected:
        raise ValueError(f"{folder} holds a {kind!r}; expected {' or '.join(map(repr, expected))}")
    return kind
