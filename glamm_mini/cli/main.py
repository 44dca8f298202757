"""`glamm-mini COMMAND`: finds the command's file, imports that one alone, and turns errors into one clear message.

A command is a function with Typer annotations, named as the command, in the module that COMMANDS names.
Importing only what was asked for keeps `glamm-mini --help` fast and lets a base install run every command
that needs no extra.
"""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from glamm_mini import __version__

TRACEBACK = "GLAMM_MINI_TRACEBACK"
"""Environment variable: where it is set, errors end in their whole traceback."""

MODULES_OF_EXTRAS = {
    "tensorboard": "train",
    "peft": "train",
    "pycocoevalcap": "eval",
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
    def _group(
        version: Annotated[
            bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and stop.")
        ] = False,
    ) -> None:
        pass

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
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a letter shows another one, and no error
            stream.reconfigure(errors="backslashreplace")
    try:
        build_app(wanted)(args=arguments, prog_name="glamm-mini")
    except ModuleNotFoundError as error:
        _stop(error, _missing_module(wanted, error))
    except BrokenPipeError:
        # Who read our output has gone; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt as error:
        _stop(error, "stopped", status=130)
    except (ImportError, ValueError, OSError) as error:  # ImportError: a library is too old
        _stop(error, str(error) or type(error).__name__)
    except Exception as error:
        if _is_out_of_memory(error):
            _stop(error, f"the memory is not enough ({error or type(error).__name__}); choose a smaller batch or dtype")
        again = shlex.join(["glamm-mini", *arguments])
        hint = f"This is a mistake in glamm-mini. Please report it with all that this prints: {TRACEBACK}=1 {again}"
        _stop(error, f"{type(error).__name__}: {error}", hint)


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
    return f'`glamm-mini {command}` needs the module {module!r}, which is not installed: pip install "{package}"'


def _is_out_of_memory(error: Exception) -> bool:
    """By name: torch, which has such an error for GPUs, may not be imported yet."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glamm-mini {__version__}")
        raise typer.Exit()


def _printable(text: str) -> str:
    """On one line, with the halves of letters that broken file names hold written out."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode("utf-8")


def _stop(error: BaseException, message: str, hint: str = "", status: int = 1) -> None:
    """Print one line of error, and a hint on a second; the whole traceback where it is wanted."""
    if os.environ.get(TRACEBACK):
        raise error
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(_printable(message)))
    if hint:
        console.print(Text(_printable(hint)))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
