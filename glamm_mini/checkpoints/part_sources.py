"""Where the pretrained parts of a GLaMM lie: a folder, a hub id, a file or an address, and what each one holds."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import torch
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, SamConfig, SamVisionConfig

from glamm_mini.checkpoints.find import HUB_ID, from_hub
from glamm_mini.checkpoints.files import SINGLE, weight_files

SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth")
"""What segment-anything's authors publish; one of these names that is no file here stands for its address.

The end of each name is the beginning of the file's SHA-256."""


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
    return from_hub(place)


def _download(address: str) -> Path:
    """The file of an address, kept where torch keeps downloads; a broken download leaves nothing behind.

    Raises FileNotFoundError if it cannot be fetched, ValueError if a published file has another SHA-256 than its name
    says.
    """
    target, prefix = _place(address)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(target), hash_prefix=prefix)
    except OSError as error:  # URLError and HTTPError are OSErrors
        raise FileNotFoundError(
            f"{address} could not be fetched ({error}); check the network, or download it elsewhere and give its path"
        ) from error
    except RuntimeError as error:  # torch's, for a hash
        raise ValueError(
            f"{address} gave another file than the one published under that name ({error}); nothing was kept. Fetch "
            "it again, or download it elsewhere and give its path"
        ) from error
    return target


def _place(address: str) -> tuple[Path, str | None]:
    """Where the file of an address is kept, and the beginning of its SHA-256 if it is a published one."""
    cache, parts = Path(torch.hub.get_dir()) / "checkpoints", urlparse(address)
    name = Path(parts.path).name
    if address == SAM_ADDRESS + name and name in SAM_FILES:
        return cache / name, Path(name).stem.rpartition("_")[2]
    # Another site's file must not be taken for this one, whatever both are called.
    digest = hashlib.sha256(address.encode()).hexdigest()[:8]
    return cache / f"{parts.hostname}-{digest}" / name, None


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
