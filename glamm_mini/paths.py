"""Where the bundled files lie: in a clone, in an editable install and in an installed wheel.

A clone keeps them in `data/` beside the package; a wheel carries them inside the package as `_data/`
(pyproject.toml, `force-include`).
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent


def data_folder() -> Path:
    """The folder that holds `checkpoints/` and `samples/`.

    Raises FileNotFoundError when neither the clone's nor the wheel's folder exists.
    """
    wheel, clone = _PACKAGE / "_data", _PACKAGE.parent / "data"
    for folder in (wheel, clone):
        if (folder / "checkpoints").is_dir() or (folder / "samples").is_dir():
            return folder
    raise FileNotFoundError(
        f"glamm-mini's bundled data is missing: looked in {wheel} and {clone}. "
        "Reinstall the package, or run it from a clone (pip install -e .)."
    )


def checkpoint_folder(name: str) -> Path:
    """The folder of a bundled checkpoint, such as "tiny" or "backbones".

    Raises FileNotFoundError that lists the bundled checkpoints when there is none of that name.
    """
    return _bundled(data_folder() / "checkpoints", name, "checkpoint", "train it with `make backbones` and `make tiny`")


def samples_folder() -> Path:
    """The folder of the bundled pictures, `*.png`. Raises FileNotFoundError when it is missing."""
    return _bundled(data_folder(), "samples", "folder", "render the pictures with `make samples`")


def parity_folder() -> Path:
    """The folder of the official model's expected numbers. Raises FileNotFoundError when it is missing."""
    return _bundled(data_folder(), "parity", "folder", "reinstall the package")


def folder_path(given: Any, what: str) -> Path:
    """The path of a folder, there or not. ValueError that names `what` for what is no path, or the empty one, which
    would mean the folder that we are in."""
    with suppress(TypeError, ValueError, RuntimeError):  # the last before Python 3.13, of links in a circle
        if os.fspath(given) and "\0" not in os.fspath(given) and Path(given).resolve():
            return Path(given)
    raise ValueError(f"{what} is {given!r}; expected the path of a folder")


def place_to_save(given: Any, what: str) -> Path:
    """The folder that transformers' `save_pretrained` may write into. ValueError for what is none, FileExistsError for
    one that holds another kind of model."""
    folder = folder_path(given, "save_directory")
    if folder.is_file():  # transformers would write nothing, and go on
        raise ValueError(f"{folder} is a file; {what} is saved to a folder")
    if (folder / "config.json").exists() and not holds_our_model(folder):
        raise FileExistsError(f"{folder} holds config.json of something else; choose another folder")
    return folder


def write_whole(path: Path, content: bytes | str) -> Path:
    """Write a file so that a kill, or a full disk, leaves the old one or the new one; returns its path."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(fresh, path)
    return path


def holds_our_model(folder: Path) -> bool:
    """Whether config.json in the folder is one of a GLaMM in our format."""
    try:
        return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") == "glamm_mini"
    except (OSError, ValueError, AttributeError):
        return False


def _bundled(parent: Path, name: str, what: str, fix: str) -> Path:
    there = sorted(path.name for path in parent.glob("*") if path.is_dir())
    if name in there:
        return parent / name
    raise FileNotFoundError(
        f"there is no bundled {what} {name!r} in {parent}; it holds {', '.join(there) or 'none yet'}. "
        f"Check the name, or {fix}."
    )
