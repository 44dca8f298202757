"""The public surface is frozen: names and signatures of the package, and the flags of every command.

A change that is meant is written down by: python tests/cli/test_public.py
"""

import importlib
import inspect
import json
from pathlib import Path

import typer

import glamm_mini
from glamm_mini.assistant.generation import Options
from glamm_mini.cli import main as cli

FILE = Path(__file__).resolve().parents[1] / "files" / "public.json"
OURS = ("Assistant", "Chat", "GroundedAnswer", "GroundedPhrase", "Request")
"""Classes whose methods are frozen too; those of the others are transformers'."""


def parameters(function) -> str:
    """Names with their defaults, without annotations: what a call must write."""
    shown = []
    for one in inspect.signature(function).parameters.values():
        default = "" if one.default is one.empty else f"={_short(one.default)}"
        shown.append({one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "") + one.name + default)
    return ", ".join(shown)


def _short(default) -> str:
    return repr(default) if isinstance(default, (str, int, float, bool, tuple, type(None))) else "..."


def names() -> dict:
    """The public names of the package; of functions and of our classes also what they take."""
    found = {}
    for name in sorted(glamm_mini.__all__):
        value = getattr(glamm_mini, name)
        if inspect.isfunction(value):
            found[name] = parameters(value)
        elif name in OURS:
            members = [n for n in dir(value) if not n.startswith("_")]
            own = {n: parameters(getattr(value, n)) for n in members if inspect.isfunction(getattr(value, n))}
            rest = [n for n in members if n not in own]
            found[name] = {"takes": parameters(value), **own, "holds": sorted(rest)}
        else:
            found[name] = "name"
    return found


def flags() -> dict[str, dict[str, str]]:
    """Of every command, its arguments and options with their defaults."""
    found = {}
    for name in cli.COMMANDS:
        app = typer.Typer()
        app.command()(cli.load_command(name))
        command = typer.main.get_command(app)
        own = {}
        for one in command.params:
            key = one.name.upper() if one.param_type_name == "argument" else "/".join([*one.opts, *one.secondary_opts])
            own[key] = "required" if one.required else str(one.default)
        found[name] = dict(sorted(own.items()))
    return found


def surface() -> dict:
    """All of it, as it is."""
    importlib.invalidate_caches()
    return {"names": names(), "options": sorted(Options.__annotations__), "commands": flags()}


def test_nothing_public_changes_unnoticed():
    expected, now = json.loads(FILE.read_text("utf-8")), surface()
    for part in expected:
        assert now[part] == expected[part], f"{part} changed; if that is meant: python tests/cli/test_public.py"
    assert now == expected


def test_every_call_of_the_assistant_takes_the_same_options():
    asking = ("ask", "describe", "segment", "describe_region", "caption", "ground", "answer_batch")
    for function in [getattr(glamm_mini.Assistant, name) for name in asking] + [glamm_mini.Chat.say]:
        assert parameters(function).endswith(", **options")


if __name__ == "__main__":
    FILE.write_text(json.dumps(surface(), indent=1) + "\n", "utf-8")
    print(FILE)
