"""Files that a command writes into a folder of the user: nothing that it did not write itself is ever replaced."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

RECORD = ".glamm-mini.json"
"""In each folder of outputs: what was written there, name to SHA-256."""


class Outputs:
    """The files of one folder. Raises ValueError if its record is not one of ours."""

    def __init__(self, folder: Path):
        self.folder, self.written = folder, {}
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; --out needs a folder")
        record = folder / RECORD
        if os.path.lexists(record):
            try:
                found = json.loads(record.read_text("utf-8"))
                self.written = {str(name): str(digest) for name, digest in found.items()}
            except (ValueError, AttributeError) as error:
                raise ValueError(f"{record} is damaged; delete it, or choose another folder") from error

    def check(self, names: Iterable[str]) -> None:
        """Raises ValueError that names the first file that is there already and was not written by us as it is now."""
        for name in names:
            path = self.folder / name
            if not os.path.lexists(path):
                continue
            known = self.written.get(name)
            if known is None or not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != known:
                raise ValueError(
                    f"{path} is there already, and glamm-mini has not written it, or it was changed since; name "
                    "another folder with --out, or move the file away"
                )

    def write(self, name: str, content: bytes) -> Path:
        """Write one file, whole or not at all; returns its path. Raises ValueError as `check`."""
        self.check([name])
        self.folder.mkdir(parents=True, exist_ok=True)
        # The record comes first: a kill in between leaves no file that a second run would take for the user's.
        self.written[name] = hashlib.sha256(content).hexdigest()
        _replace(self.folder / RECORD, (json.dumps(self.written, indent=1) + "\n").encode())
        return _replace(self.folder / name, content)


def _replace(path: Path, content: bytes) -> Path:
    fresh = path.with_name(f".{path.name}.writing")
    fresh.write_bytes(content)
    os.replace(fresh, path)
    return path
