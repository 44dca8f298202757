"""`glamm-mini memory`: what a size needs on one device, part by part; nothing is allocated or downloaded."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Sharding(StrEnum):
    """How devices divide a training."""

    none = "none"
    ddp = "ddp"
    zero2 = "zero2"
    zero3 = "zero3"
    full = "full"


def memory(
    size: Annotated[str, typer.Option(help="tiny, colab, 7b, or a folder of a GLaMM, ours or official.")] = "7b",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16, 8bit or 4bit.")] = "bfloat16",
    trained: Annotated[
        str, typer.Option(help="none (to answer), official, all, or pieces of names, a comma each.")
    ] = "none",
    batch: Annotated[int, typer.Option(min=1, max=10**6, help="Rows per device, a picture each.")] = 1,
    text: Annotated[int, typer.Option(min=1, max=10**6, help="Tokens of a row beside the image.")] = 192,
    new: Annotated[int, typer.Option(min=1, max=10**6, help="Tokens of an answer.")] = 100,
    boxes: Annotated[int, typer.Option(min=0, max=10**6, help="Boxes of a row.")] = 1,
    masks: Annotated[int, typer.Option(min=0, max=10**6, help="Masks of a row.")] = 3,
    shard: Annotated[int, typer.Option(min=1, max=10**6, help="How many devices train together.")] = 1,
    sharding: Annotated[Sharding, typer.Option(help="How these divide the training.")] = Sharding.full,
    checkpointing: Annotated[bool, typer.Option(help="Compute layers again instead of keeping them.")] = True,
) -> None:
    """Count what a size needs in memory on one device, to answer and to train.

    Beside it the GPU's own libraries take about 0.5 GB, and memory is never packed without gaps: leave a tenth free.
    """
    from glamm_mini.model.config import SIZES

    if size not in SIZES and not (Path(size) / "config.json").is_file():
        raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}, or a folder with config.json")
    config = _config(size)
    named = ("all", "none", "official")
    learns = trained != "none"
    report = config.memory_report(
        dtype,
        trained if trained in named else tuple(piece.strip() for piece in trained.split(",")),
        batch=batch,
        text_tokens=text,
        new_tokens=new,
        boxes=boxes,
        masks=masks,
        devices=shard,
        sharding=sharding.value if shard > 1 else "none",
        checkpointing=checkpointing and learns,
    )
    typer.echo(report)


def _config(size: str):
    """The configuration of a size, or of a folder; an official one stands partly in the shapes of its weights."""
    from glamm_mini.checkpoints.source import open_checkpoint
    from glamm_mini.model.config import SIZES, GlammConfig

    if size in SIZES:
        return GlammConfig.of_size(size)
    return open_checkpoint(size, need_tower=False, weights="none").config
