"""What a loader or a converter did: which part came from which file, as a dataclass that prints itself."""

from dataclasses import dataclass, field
from typing import Any

import torch

from glamm_mini.checkpoints.files import Stored


@dataclass
class PartReport:
    """One part of the model: its tensors, their bytes as stored, the types stored and made of them, and the files."""

    tensors: int = 0
    bytes: int = 0
    stored: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    files: list[str] = field(default_factory=list)

    @property
    def dtypes(self) -> str:
        """ "bfloat16", or "bfloat16 to float32" where a loader changed the type."""
        stored, made = ", ".join(sorted(self.stored)), ", ".join(sorted(self.made))
        return stored if stored == made else f"{stored} to {made}"


@dataclass
class LoadReport:
    """ignored: official names of computed buffers, and what a CLIP file holds beside the image encoder. kept: our
    names that the checkpoint did not hold (the vision tower, where that was allowed). parts: by the model's part.
    notes: what was assumed. second: official names that share the values of another -> that other name. dropped:
    official names left out on request."""

    ignored: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    parts: dict[str, PartReport] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    second: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)

    def add(self, name: str, entry: Stored, made: str) -> None:
        """Count one tensor under the part that its name (of ours) begins with; `made` names its new type."""
        part = self.parts.setdefault(name.split(".")[0], PartReport())
        part.tensors += 1
        part.bytes += entry.nbytes
        part.stored.add(type_name(entry.dtype))
        part.made.add(made)
        if entry.file.name not in part.files:
            part.files.append(entry.file.name)

    @property
    def loaded(self) -> int:
        """How many tensors were taken over."""
        return sum(part.tensors for part in self.parts.values())

    @property
    def bytes(self) -> int:
        """Bytes of all tensors, as they were stored."""
        return sum(part.bytes for part in self.parts.values())

    def table(self) -> Any:
        """The report as a table of rich, one line a part."""
        from rich.table import Table

        table = Table("part", "tensors", "MB stored", "type", "files", highlight=True)
        for name, part in self.parts.items():
            table.add_row(name, str(part.tensors), f"{part.bytes / 1e6:,.1f}", part.dtypes, _shortened(part.files))
        table.add_row("total", str(self.loaded), f"{self.bytes / 1e6:,.1f}", "", "", style="bold")
        return table

    def remarks(self) -> list[str]:
        """One line for what was ignored, one for what was kept or dropped, all second names, and the notes."""
        lines = [f"{len(self.ignored)} entries ignored ({_shortened(self.ignored)})"] if self.ignored else []
        lines += [f"{len(self.kept)} weights kept as they were ({_shortened(self.kept)})"] if self.kept else []
        lines += [f"{len(self.dropped)} entries dropped as asked ({_shortened(self.dropped)})"] if self.dropped else []
        lines += [f"{len(self.second)} second names of weights taken under their first:"] if self.second else []
        lines += [f"  {name} = {known}" for name, known in self.second.items()]
        return lines + self.notes

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120, highlight=False)
        with console.capture() as written:
            console.print(self.table())
        return "\n".join([written.get().rstrip(), *self.remarks()])


def type_name(dtype: torch.dtype) -> str:
    """ "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def _shortened(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} ... {names[-1]}"
