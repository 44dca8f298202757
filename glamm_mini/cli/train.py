"""`glamm-mini train RECIPE`: trains by a recipe, shows progress, can be stopped and resumed."""

import json
import shlex
from pathlib import Path
from typing import Annotated

from rich import box
from rich.console import Console
from rich.table import Column, Table
from typer import Argument, Exit, Option, echo

from glamm_mini.cli.options import check_place


def train(
    recipe: Annotated[str | None, Argument(help="What to train: storybook, gcg, ...; --list names all.")] = None,
    size: Annotated[str, Option(help="Size of the model: tiny, colab or 7b.")] = "tiny",
    data: Annotated[
        str, Option(help="storybook, the embedded world; readers of public data sets are to come.")
    ] = "storybook",
    out: Annotated[Path | None, Option(help="Folder of the run; runs/RECIPE-SIZE if left out.")] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    overrides: Annotated[
        list[str] | None,
        Option(
            "--set", metavar="KEY=VALUE", help="Change a setting; may be repeated. RECIPE --show lists all of them."
        ),
    ] = None,
    start: Annotated[
        str | None, Option("--from", metavar="MODEL", help="Fine-tune a folder, a hub id, or `parts`.")
    ] = None,
    list_recipes: Annotated[bool, Option("--list", help="List the recipes, and stop.")] = False,
    show: Annotated[bool, Option("--show", help="Print all settings of the recipe and what they mean.")] = False,
) -> None:
    """Train a model by a recipe.

    Ctrl-C saves and says how to go on. `glamm-mini train RECIPE --show` lists what --set can change: steps, lr,
    scenes, lora.rank, merge ... Several processes:
    torchrun --nproc-per-node N -m glamm_mini.cli.main train RECIPE ...
    """
    if list_recipes:
        return _list(size)
    if recipe is None:
        raise ValueError("no recipe was named; `glamm-mini train --list` names all")
    from glamm_mini.training.run_folder import check_free, first_process

    folder = out or Path("runs") / f"{recipe}-{size}"
    if not show and first_process():  # torch and the model take long to load
        check_place(folder, "--out", folder=True)
        check_free(folder, resume)

    from accelerate import PartialState

    from glamm_mini.training import recipes
    from glamm_mini.training.trainer import TrainingInterrupted

    if show:
        return echo(recipes.describe(recipe, size, overrides or [], start))
    try:
        made = recipes.run(recipe, size, data, folder, resume, overrides or [], start)
        if first_process():
            echo(how_to_go_on(made))
    except TrainingInterrupted as stopped:
        echo(str(stopped), err=True)
        raise Exit(130) from None
    finally:
        if PartialState._shared_state:
            PartialState().destroy_process_group()


def how_to_go_on(made: Path) -> str:
    """What a training has made, and the command that uses it."""
    quoted = shlex.quote(str(made))
    if backbones := sorted(path.name for path in made.glob("*.training.json")):
        storybook = f"glamm-mini train storybook --set backbones={quoted}"
        more = f"Train GLaMM from them:\n  {storybook}" if len(backbones) == 3 else "GLaMM is trained from all three."
        return f"The backbones lie in {made}. {more}"
    if (made / "config.json").is_file():
        return f"The model lies in {made}. Ask it:\n  glamm-mini demo picture.png --model {quoted}"
    base = shlex.quote(json.loads((made / "training.json").read_text("utf-8"))["start"])
    merged = shlex.quote(str(made.parent / "merged"))
    return f"LoRA lies in {made}. Put it into its model:\n  glamm-mini convert {base} {merged} --lora {quoted}"


def _list(size: str) -> None:
    """A table of all recipes at one size."""
    from glamm_mini.training.recipes import read_recipe, recipe_names

    numbers = [Column(name, justify="right") for name in ("steps", "samples\na step")]
    columns = Column("recipe", no_wrap=True), "what is trained", Column("from", no_wrap=True), *numbers
    table = Table(*columns, title=f"Recipes at size {size}", title_justify="left", box=box.SIMPLE_HEAD)
    for recipe in (read_recipe(name, size) for name in recipe_names()):
        if size != "tiny" and not recipe.data:
            continue  # makes the tiny model alone
        stages = recipe.stages.values() or [recipe.settings]
        steps = " + ".join(str(stage.steps) for stage in stages)
        samples = " ".join(str(s.batch_size * s.accumulation * recipe.processes) for s in stages)
        start = (recipe.start or "nothing").replace("/", "/\n", 1)  # a hub id is too long for a narrow terminal
        table.add_row(recipe.name, recipe.title, start, steps, samples)
    Console().print(table)
