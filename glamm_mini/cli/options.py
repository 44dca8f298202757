"""What commands share: options, how they load their model, what they show while they work, where they write.

What is shown goes to standard error, and names in it are never read as markup.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress
from rich.text import Text
from typer import Option, echo

from glamm_mini.training.run_folder import first_process

VisionTower = Annotated[str | None, Option(help="Folder or hub id of CLIP, which official checkpoints leave out.")]
Drop = Annotated[
    list[str] | None, Option(metavar="PREFIX", help="Leave out official names that begin so; may be repeated.")
]
JsonFile = Annotated[str | None, Option("--json", help="Write the figures as one line of JSON to this file, or -.")]


@dataclass(frozen=True)
class Loading:
    """What a user said about loading, see `glamm_mini.load` for each field, and about the length of answers."""

    model: Annotated[str, Option(help="A bundled model, a folder or a hub id; official or ours.")] = "tiny"
    device: Annotated[
        str | None,
        Option(help="Such as cuda:0; auto: GPUs, then memory, then disk. A GPU if left out, where there is one."),
    ] = None
    dtype: Annotated[str, Option(help="float32, bfloat16, float16, or stored: each weight's own.")] = "float32"
    quantize: Annotated[str | None, Option(help="4bit or 8bit for the language model's weights.")] = None
    vision_tower: VisionTower = None
    offload_folder: Annotated[
        Path | None, Option(help="Folder for weights that find no memory, with --device auto.")
    ] = None
    drop: Drop = None
    lora: Annotated[Path | None, Option(help="An adapter's folder, put beside the weights and not merged.")] = None
    max_new_tokens: Annotated[
        int | None, Option(min=1, max=10**6, help="Where answers are cut; 256 tokens, or 512 of an official model.")
    ] = None

    def load(self):
        """The assistant. Raises as `glamm_mini.load` does."""
        import glamm_mini

        how = vars(self) | {"drop": tuple(self.drop or ())}
        del how["model"], how["max_new_tokens"]
        with working(f"loading the model {self.model!r}"):
            assistant = glamm_mini.load(self.model, **how)
        assistant.max_new_tokens = self.max_new_tokens
        return assistant

    def settings(self) -> dict:
        """What answers depend on, for the settings beside results; where the weights lie changes none."""
        own = vars(self) | {"drop": list(self.drop or ()), "lora": str(self.lora)}
        left_out = {"device", "offload_folder"} | (set() if self.lora else {"lora"})
        return {name: value for name, value in own.items() if name not in left_out}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of the dataclasses among its parameters; it takes keywords alone."""
    own = signature(command, eval_str=True).parameters.values()
    groups = {one.name: one.annotation for one in own if is_dataclass(one.annotation)}
    each = [signature(groups[one.name]).parameters.values() if one.name in groups else [one] for one in own]

    @wraps(command)
    def run(**given) -> None:
        for name, group in groups.items():
            given[name] = group(**{one.name: given.pop(one.name) for one in fields(group) if one.name in given})
        command(**given)

    run.__signature__ = Signature([one.replace(kind=one.KEYWORD_ONLY) for part in each for one in part])
    return run


def check_place(place: Path, option: str, folder: bool, new: bool = False) -> None:
    """Refuse a place where a file or a folder cannot be written, before hours are spent on what goes there.

    Raises ValueError, which names the option, for a file in the place of a folder or the other way round, for a place
    below a file, for one that may not be written, for what is there, if it is to be `new`, and for a name of something
    new with a line break or another control character.
    """
    if any(ord(letter) < 32 for letter in str(place)) and not os.path.lexists(place):
        raise ValueError(f"{option} {str(place)!r} holds a control character, such as a line break; leave it out")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        place.lstat()  # a name that is too long is an error of its own
    there = next(path for path in (place.absolute(), *place.absolute().parents) if os.path.lexists(path))
    itself, wanted = there == place.absolute(), "folder" if folder else "file"
    faults = {
        "is there already": itself and new,
        f"is there already and is no {wanted}": itself and there.is_dir() != folder,
        f"lies below {there}, which is no folder": not itself and not there.is_dir(),
        f"cannot be written: there is no right to write in {there}": not os.access(there, os.W_OK),
    }
    for fault, found in faults.items():
        if found:
            raise ValueError(f"{option} {place} {fault}; name another {wanted}")


@contextlib.contextmanager
def figures_to(json_file: str | None) -> Iterator[dict]:
    """Gives a dict of figures to fill, which is written as one line of JSON to a file or, for "-", to standard output.

    That holds the line alone: all that is printed inside goes to standard error. A dict that stays empty is not
    written. Raises ValueError for a place where no file can be.
    """
    figures: dict = {}
    if json_file not in (None, "-"):
        check_place(Path(json_file), "--json", folder=False)
    with contextlib.redirect_stdout(sys.stderr if json_file == "-" else sys.stdout):
        yield figures
    if figures and json_file == "-":
        echo(json.dumps(figures, allow_nan=False))
    elif figures and json_file is not None:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(json.dumps(figures, allow_nan=False) + "\n", "utf-8")


def screen() -> Console:
    """Where work is shown: standard error, of the first process alone."""
    return Console(stderr=True, quiet=not first_process())


def working(text: str):
    """A context that shows `text` while something is done whose length is not known."""
    return screen().status(Text(text))


@contextlib.contextmanager
def progress(title: str, total: int, kept: Path | None = None) -> Iterator[Callable[[int], None]]:
    """A bar; gives a function that moves it on. kept: what holds the work done so far, for who stops it by Ctrl-C."""
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=screen()) as bar:
        work = bar.add_task(escape(title), total=total)
        try:
            yield lambda count: bar.advance(work, count)
        except KeyboardInterrupt:
            if kept:
                told = Text(f"stopped; {kept} keeps what is done: run the same again to go on")
                bar.console.print(told, soft_wrap=True)
            raise
