"""Where a checkpoint lies, by name, folder or hub id, and of which kind it is, before anything of it is loaded."""

import json
import os
import re
import shutil
from pathlib import Path

from glamm_mini import paths
from glamm_mini.model.config import GlammConfig

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILES = (WEIGHTS, "config.json", "tokenizer.json")
OFFICIAL_TYPES = ("llava", "glamm", "lisa")
"""What an official config.json may say under model_type; a released one was never at hand to look."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ("*.json", "*.safetensors", "tokenizer.model")
TORCH = ("pytorch_model*.bin",)
"""Fetched only where a repository has no safetensors; read with `weights_only`, so that nothing in them can run."""

PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what `torch.save` and `pickle` write."""


def find_folder(name: str | Path) -> Path:
    """The folder of a checkpoint: a folder itself, a bundled name such as "tiny", or "owner/name" on the hub.

    Raises ValueError for no name, FileNotFoundError that says where was looked.
    """
    if name is None or not str(name).strip():
        raise ValueError(f"no model was named, but {name!r}; give a bundled name such as 'tiny', a folder or a hub id")
    path = Path(name)
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file; give the folder that holds {', '.join(FILES)}")
    if path.name and not path.exists():
        recover(path)
    if path.is_dir():
        return path
    if isinstance(name, str) and HUB_ID.fullmatch(name):
        return from_hub(name)
    return paths.checkpoint_folder(str(name))


def recover(folder: Path) -> Path:
    """Put back what a kill between the two renames of `save_model` left aside; returns where the old folder goes."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    return old


def from_hub(name: str) -> Path:
    """The folder of a hub repository "owner/name", downloaded or taken from the cache; only files that run no code.

    Raises FileNotFoundError if the hub gives none, and without asking it if the owner's name is a local folder's.
    """
    from huggingface_hub import snapshot_download

    owner = Path(name).parent
    if owner.is_dir():
        raise FileNotFoundError(
            f"there is no folder {name}, although {owner} is a folder here; check the name. The hub was not asked: if "
            "a model of the hub was meant, download it elsewhere and give its folder"
        )

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=list(WANTED + TORCH)))
        return folder
    except Exception as error:  # of the network, of the hub and of its cache, each of its own type
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(
            f"there is no folder {name} here, and the hub gave no model of that name ({reason[0]}); check the name or "
            "the network, or download it elsewhere and give the folder"
        ) from error


def is_official(folder: Path) -> bool:
    """Whether the folder's config.json is one of an official GLaMM checkpoint."""
    config = _read_config(folder / "config.json")
    names = config.get("architectures") or ()
    return config.get("model_type") in OFFICIAL_TYPES or any("GLaMM" in str(name) for name in names)


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError that names missing files of a checkpoint of ours, ValueError if the folder holds
    another kind of model."""
    config = _read_config(folder / "config.json")
    kind = str(config.get("model_type", "unnamed"))
    if config and kind != GlammConfig.model_type:
        raise ValueError(
            f"{folder} holds a model of the type {kind!r}; expected {GlammConfig.model_type!r}, or an official GLaMM "
            "checkpoint. A language model cannot be asked about pictures: give a folder that glamm-mini has written"
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
    if WEIGHTS in missing and (folder / INDEX).is_file():
        missing.remove(WEIGHTS)
    if missing:
        raise FileNotFoundError(
            f"{folder} is no GLaMM checkpoint: {', '.join(missing)} missing; train one (make tiny) or copy it whole"
        )


def check_no_pickle(path: Path) -> None:
    """Raises ValueError if a file is a pickle, whatever its name: reading one can run any code."""
    with path.open("rb") as file:
        head = file.read(9)
        # Safetensors opens with a length in eight bytes, some of which look like a pickle's, and then a brace.
        if head.startswith(PICKLES) and head[8:] != b"{":
            raise ValueError(
                f"{path} is a pickle and no safetensors file; it is not read, for pickles can run code. Save the "
                "weights again with save_model"
            )


def _read_config(path: Path) -> dict:
    """What a config.json says; empty where it is missing or damaged."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
