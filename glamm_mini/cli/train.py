"""`glamm-mini train RECIPE`: trains by a recipe, shows progress, can be stopped and resumed."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="What to train: backbones, storybook, ...")],
    size: Annotated[str, typer.Option(help="Size of the model: tiny, colab or 7b.")] = "tiny",
    data: Annotated[str, typer.Option(help="storybook (generated), or a folder with data sets.")] = "storybook",
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/RECIPE-SIZE if left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    set: Annotated[  # noqa: A002  the option is called --set
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
) -> None:
    """Train a model by a recipe.

    Ctrl-C saves and says how to go on. Several processes:
    torchrun --nproc-per-node N -m glamm_mini.cli.main train RECIPE ...
    """
    from accelerate import PartialState

    from glamm_mini.training import recipes
    from glamm_mini.training.stopping import TrainingInterrupted

    folder = out or Path("runs") / f"{recipe}-{size}"
    try:
        recipes.run(recipe, size=size, data=data, out=folder, resume=resume, overrides=list(set or ()))
    except TrainingInterrupted as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from None
    finally:
        if PartialState._shared_state:
            PartialState().destroy_process_group()
