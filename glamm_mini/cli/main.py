"""`glamm-mini COMMAND`: finds the command's file, imports that one alone, and turns errors into one clear message.

A command is a function with Typer annotations, named as the command, in the module that COMMANDS names.
Importing only what was asked for keeps `glamm-mini --help` fast and lets a base install run every command
that needs no extra.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pkgutil import resolve_name
from typing import Annotated

import typer
from typer import Option

from glamm_mini import __version__

TRACEBACK = "GLAMM_MINI_TRACEBACK"
"""Environment variable: where it is set, errors end in their whole traceback."""

MODULES_OF_EXTRAS = {"tensorboard": "train", "peft": "train", "pycocoevalcap": "eval", "bitsandbytes": "quantize"}
"""Which extra brings a module that the base install lacks."""

COMMANDS = {
    "demo": ("glamm_mini.cli.demo", "Ask about pictures; draw the answers."),
    "train": ("glamm_mini.cli.train", "Train a model by a recipe."),
    "predict": ("glamm_mini.cli.evaluate", "Write a model's predictions for a task."),
    "score": ("glamm_mini.cli.evaluate", "Score written predictions."),
    "evaluate": ("glamm_mini.cli.evaluate", "Predict and score in one go."),
    "parity": ("glamm_mini.checks.parity.parity_command", "Compare our numbers with the official model's."),
    "convert": ("glamm_mini.cli.convert", "Convert official checkpoints to ours and back; merge LoRA."),
    "memory": ("glamm_mini.course.memory.command", "Count the memory a size needs to answer and to train."),
    "bench": ("glamm_mini.checks.bench.bench_command", "Measure caching, fused attention, the 7B size."),
}
"""Where a command lives, and the line that `glamm-mini --help` shows for it."""


def build_app(wanted: str | None) -> typer.Typer:
    """The Typer application with the real `wanted` command; every other command is only a line of help."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

    @app.callback()
    def _group(
        version: Annotated[
            bool, Option("--version", callback=_print_version, is_eager=True, help="Print the version, and stop.")
        ] = False,
    ) -> None:
        """GLaMM in small: ask about a picture, get words and pixels."""

    for name, (_, line) in COMMANDS.items():
        if name == wanted:
            app.command(name)(load_command(name))
        else:
            app.command(name, help=line)(lambda: None)
    return app


def load_command(name: str) -> Callable[..., None]:
    """Import the function behind a command of COMMANDS."""
    return resolve_name(f"{COMMANDS[name][0]}:{name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `glamm-mini` with `arguments` (default: the process's own); ends the process with its exit status."""
    arguments = join_boxes(sys.argv[1:] if arguments is None else arguments)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows another one, and no error
            stream.reconfigure(errors="backslashreplace")
    try:
        check_given(arguments)
        build_app(wanted)(args=arguments, prog_name="glamm-mini")
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(TRACEBACK):
            raise
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo("\n".join(map(_printable, explain(error, arguments, wanted))), err=True)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


def check_given(arguments: Sequence[str]) -> None:
    """Raises ValueError for an empty value, which as a path would mean the folder that we are in."""
    for before, word in pairwise(("glamm-mini", *arguments)):
        if not word or re.fullmatch(r"--[\w-]+=", word):
            raise ValueError(f"an empty value follows {word or before}; give a value, or leave it out")


def join_boxes(arguments: Sequence[str]) -> list[str]:
    """Make one word of the four numbers behind each `--box`: Typer has no repeatable option of four values."""
    joined, rest = [], list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] == "--box":
            box = ""
            while rest and len(box.replace(",", " ").split()) < 4 and not rest[0].startswith("--"):
                box = f"{box} {rest.pop(0)}".lstrip()
            joined.append(box)
    return joined


def explain(error: BaseException, arguments: Sequence[str], command: str | None) -> tuple[str, ...]:
    """What to say about an error of a command line: one text, and for a mistake of ours how to report it."""
    said = str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return ("stopped",)
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").split(".")[0]
        if module in ("glamm_mini", ""):
            return (f"{error}. This install of glamm-mini is incomplete: install it again.",)
        package = f"glamm-mini[{MODULES_OF_EXTRAS[module]}]" if module in MODULES_OF_EXTRAS else "glamm-mini"
        return (f'`glamm-mini {command}` needs the module {module!r}, which is not installed: pip install "{package}"',)
    if isinstance(error, ImportError | ValueError | OSError):  # ImportError: a library is too old
        return (said,)
    # By name: torch, which has such an error for GPUs, may not be imported yet. For CPUs it has a RuntimeError.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if known or re.search("DefaultCPUAllocator|Storage size calculation overflowed", said):
        return (f"the memory is not enough ({said}); choose a smaller batch, size or dtype",)
    again = f"{TRACEBACK}=1 {shlex.join(['glamm-mini', *arguments])}"
    hint = f"This is a mistake in glamm-mini. Please report it with all that this prints: {again}"
    return f"{type(error).__name__}: {error}", hint


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glamm-mini {__version__}")
        raise typer.Exit()


def _printable(text: str) -> str:
    """On one line, with the halves of letters that broken file names hold written out."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode("utf-8")


if __name__ == "__main__":
    main()
