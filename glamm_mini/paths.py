"""Where the bundled files lie: in a clone, in an editable install and in an installed wheel.

A clone keeps them in `data/` beside the package; a wheel carries them inside the package as `_data/`
(pyproject.toml, `force-include`).
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder() -> Path:
    """The folder that holds `checkpoints/` and `samples/`.

    Raises FileNotFoundError when neither the clone's nor the wheel's folder exists.
    """
    candidates = (_PACKAGE / "_data", _PACKAGE.parent / "data")
    for folder in candidates:
        if (folder / "checkpoints").is_dir() or (folder / "samples").is_dir():
            return folder
    looked = " and ".join(str(folder) for folder in candidates)
    raise FileNotFoundError(
        f"glamm-mini's bundled data is missing: looked in {looked}. "
        "Reinstall the package, or run it from a clone (pip install -e .)."
    )


def checkpoint_folder(name: str) -> Path:
    """The folder of a bundled checkpoint, such as "tiny" or "backbones".

    Raises FileNotFoundError that lists the bundled checkpoints when there is none of that name.
    """
    return _child(data_folder() / "checkpoints", name, "checkpoint", "train it with `make backbones` and `make tiny`")


def samples_folder() -> Path:
    """The folder of the bundled pictures, `*.png`. Raises FileNotFoundError when it is missing."""
    return _child(data_folder(), "samples", "folder", "render the pictures with `make samples`")


def parity_folder() -> Path:
    """The folder of the official model's expected numbers. Raises FileNotFoundError when it is missing."""
    return _child(data_folder(), "parity", "folder", "reinstall the package")


def _child(parent: Path, name: str, what: str, fix: str) -> Path:
    folder = parent / name
    plain = name not in ("", ".", "..") and Path(name).name == name
    if plain and folder.is_dir():
        return folder
    there = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    raise FileNotFoundError(
        f"there is no bundled {what} {name!r} in {parent}; it holds {', '.join(there) or 'none yet'}. "
        f"Check the name, or {fix}."
    )
