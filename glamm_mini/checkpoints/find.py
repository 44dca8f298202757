"""Where a checkpoint lies, by name, folder or hub id, and whether it is one of ours before anything of it is loaded."""

import json
import os
import re
import shutil
from pathlib import Path

from glamm_mini import paths
from glamm_mini.config import GlammConfig

WEIGHTS = "model.safetensors"
FILES = (WEIGHTS, "config.json", "tokenizer.json")
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
    if isinstance(name, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _from_hub(name)
    return paths.checkpoint_folder(str(name))


def recover(folder: Path) -> Path:
    """Put back what a kill between the two renames of `save_model` left aside; returns where the old folder goes."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    return old


def _from_hub(name: str) -> Path:
    """Download a repository of the hub, or take what was downloaded before; only files that cannot run code."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of the network, of the hub and of its cache, each of its own type
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileNotFoundError(
            f"there is no folder {name} here, and the hub gave no model of that name ({reason[0]}); check the name, "
            "or the network"
        ) from error


def check_folder(folder: Path) -> None:
    """Raises FileNotFoundError that names missing files, ValueError if the folder holds another kind of model."""
    kind = _model_type(folder / "config.json")
    if kind not in (None, GlammConfig.model_type):
        raise ValueError(
            f"{folder} holds a model of the type {kind!r}; expected {GlammConfig.model_type!r}. A language model or "
            "an official GLaMM checkpoint cannot be asked as it is: give a folder that glamm-mini has written"
        )
    missing = [name for name in FILES if not (folder / name).is_file()]
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


def _model_type(path: Path) -> str | None:
    """What a config.json says that the model is; None where it is missing, damaged or does not say."""
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return str(config.get("model_type", "unnamed")) if isinstance(config, dict) else None
