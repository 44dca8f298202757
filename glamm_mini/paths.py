"""Where the bundled files lie: in a clone, in an editable install and in an installed wheel.

A clone keeps them in `data/` beside the package; a wheel carries them inside the package as `_data/`
(pyproject.toml, `force-include`).
"""

import os
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


def given_path(value: Any, name: str) -> Path:
    """A path that a caller gave as `name`. Raises TypeError for what is no path, ValueError for an empty text, which
    would mean the folder that we are in."""
    if not isinstance(value, str | os.PathLike) or value == "":
        raise (ValueError if value == "" else TypeError)(f"{name} is {value!r}; expected the path of a folder")
    return Path(value)


def _bundled(parent: Path, name: str, what: str, fix: str) -> Path:
    there = sorted(path.name for path in parent.glob("*") if path.is_dir())
    if name in there:
        return parent / name
    raise FileNotFoundError(
        f"there is no bundled {what} {name!r} in {parent}; it holds {', '.join(there) or 'none yet'}. "
        f"Check the name, or {fix}."
    )
