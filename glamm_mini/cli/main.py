"""`glamm-mini COMMAND`: finds the command's file, imports that one alone, and turns errors into one clear message.

A command is a function with Typer annotations, named as the command, in the module that COMMANDS names.
Importing only what was asked for keeps `glamm-mini --help` fast and lets a base install run every command
that needs no extra.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

import typer
from rich.console import Console

MODULES_OF_EXTRAS = {
    "tensorboard": "train",
    "peft": "train",
    "datasets": "train",
    "pycocoevalcap": "eval",
    "gradio": "app",
    "ray": "ray",
    "bitsandbytes": "quantize",
}
"""Which extra brings a module that the base install lacks."""


class Command(NamedTuple):
    """Where a command lives and the line that `glamm-mini --help` shows for it."""

    module: str
    help: str


COMMANDS = {
    "demo": Command("glamm_mini.cli.demo", "Ask about pictures; draw the answers."),
    "train": Command("glamm_mini.cli.train", "Train a model by a recipe."),
    "predict": Command("glamm_mini.cli.evaluate", "Write a model's predictions for a task."),
    "score": Command("glamm_mini.cli.evaluate", "Score written predictions."),
    "evaluate": Command("glamm_mini.cli.evaluate", "Predict and score in one go."),
    "parity": Command("glamm_mini.checks.parity.parity_command", "Compare our numbers with the official model's."),
    "convert": Command("glamm_mini.cli.convert", "Convert official checkpoints to ours and back; merge LoRA."),
    "memory": Command("glamm_mini.course.memory.command", "Count the memory a size needs to answer and to train."),
    "bench": Command("glamm_mini.checks.bench.bench_command", "Measure caching, fused attention, the 7B size."),
}


def build_app(wanted: str | None) -> typer.Typer:
    """The Typer application with the real `wanted` command; every other command is only a line of help."""
    app = typer.Typer(
        name="glamm-mini",
        help="GLaMM in small: ask about a picture, get words and pixels.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback()
    def _group() -> None:
        """Keep sub-commands even when one command alone is registered."""

    for name, command in COMMANDS.items():
        function = load_command(name) if name == wanted else _line_of_help(command.help)
        app.command(name, help=None if name == wanted else command.help)(function)
    return app


def load_command(name: str) -> Callable[..., None]:
    """Import the function behind a command of COMMANDS."""
    return getattr(import_module(COMMANDS[name].module), name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `glamm-mini` with `arguments` (default: the process's own); ends the process with its exit status."""
    arguments = join_boxes(sys.argv[1:] if arguments is None else arguments)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    try:
        build_app(wanted)(args=arguments, prog_name="glamm-mini")
    except ModuleNotFoundError as error:
        _stop(_missing_module(wanted, error), error)
    except (ValueError, OSError) as error:
        _stop(str(error), error)


def join_boxes(arguments: Sequence[str]) -> list[str]:
    """Make one word of the four numbers behind each `--box`: Typer has no repeatable option of four values."""
    joined, rest = [], list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] == "--box":
            numbers = []
            while rest and len(numbers) < 4 and not rest[0].startswith("--"):
                numbers.append(rest.pop(0))
            joined.append(" ".join(numbers))
    return joined


def _line_of_help(text: str) -> Callable[[], None]:
    def command() -> None:
        pass

    command.__doc__ = text
    return command


def _missing_module(command: str | None, error: ModuleNotFoundError) -> str:
    module = (error.name or "").split(".")[0]
    if module == "glamm_mini" or not module:
        return f"{error}. This install of glamm-mini is incomplete: install it again."
    extra = MODULES_OF_EXTRAS.get(module)
    package = f"glamm-mini[{extra}]" if extra else "glamm-mini"
    return f"`glamm-mini {command}` needs the module {module!r}, which is not installed: pip install '{package}'"


def _stop(message: str, error: Exception) -> None:
    """Print one line of error and exit with 1; the whole traceback where GLAMM_MINI_TRACEBACK is set."""
    if os.environ.get("GLAMM_MINI_TRACEBACK"):
        raise error
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]error:[/] ", end="")
    console.print(message, markup=False)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
