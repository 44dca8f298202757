"""What commands share: how they load their model, by which options, and what they show while they work.

That goes to standard error, and names in it are never read as markup.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, get_type_hints

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

VisionTower = Annotated[
    str | None, typer.Option(help="Folder or hub id of CLIP, which official checkpoints leave out.")
]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="PREFIX", help="Leave out official names that begin so; may be repeated."),
]


@dataclass(frozen=True)
class Loading:
    """What a user said about loading, see `glamm_mini.load` for each field, and about the length of answers."""

    model: Annotated[str, typer.Option(help="A bundled model, a folder or a hub id; official or ours.")] = "tiny"
    device: Annotated[
        str | None,
        typer.Option(help="Such as cuda:0; auto: GPUs, then memory, then disk. A GPU if left out, where there is one."),
    ] = None
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, or stored: each weight's own.")] = "float32"
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit for the language model's weights.")] = None
    vision_tower: VisionTower = None
    offload_folder: Annotated[
        Path | None, typer.Option(help="Folder for weights that find no memory, with --device auto.")
    ] = None
    drop: Drop = None
    lora: Annotated[Path | None, typer.Option(help="An adapter's folder, put beside the weights and not merged.")] = (
        None
    )
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Where answers are cut; 256 tokens, or 512 of an official model.")
    ] = None

    def load(self):
        """The assistant. Raises as `glamm_mini.load` does."""
        import glamm_mini

        assistant = glamm_mini.load(
            self.model,
            device=self.device,
            dtype=self.dtype,
            quantize=self.quantize,
            vision_tower=self.vision_tower,
            offload_folder=self.offload_folder,
            drop=tuple(self.drop or ()),
            lora=self.lora,
        )
        assistant.max_new_tokens = self.max_new_tokens
        return assistant

    def settings(self) -> dict:
        """What answers depend on, for the settings beside results; where the weights lie changes none."""
        own = {"model": self.model, "dtype": self.dtype, "quantize": self.quantize, "vision_tower": self.vision_tower}
        own |= {"drop": list(self.drop or ()), "max_new_tokens": self.max_new_tokens}
        return own | ({"lora": str(self.lora)} if self.lora else {})


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a parameter for each field of the dataclasses among its parameters, as Typer wants them."""
    groups, expanded = {}, []
    for parameter in signature(command, eval_str=True).parameters.values():
        group = parameter.annotation
        if is_dataclass(group):
            groups[parameter.name] = group
            hints = get_type_hints(group, include_extras=True)
            for one in fields(group):
                default = Parameter.empty if one.default is MISSING else one.default
                expanded.append(
                    Parameter(one.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[one.name])
                )
        else:
            expanded.append(parameter.replace(kind=Parameter.KEYWORD_ONLY) if groups else parameter)
    own = signature(command).replace(parameters=expanded)

    @wraps(command)
    def run(*args, **kwargs) -> None:
        bound = own.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        made = {name: group(**{f.name: given.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**given, **made)

    run.__signature__ = own
    run.__annotations__ = {one.name: one.annotation for one in expanded}
    del run.__wrapped__
    return run


def working(text: str):
    """A context that shows `text` while something is done whose length is not known."""
    return Console(stderr=True).status(Text(text))


@contextlib.contextmanager
def progress(title: str, total: int, show: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar; gives a function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns += (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not show) as bar:
        work = bar.add_task(escape(title), total=total)
        yield lambda count: bar.advance(work, count)
