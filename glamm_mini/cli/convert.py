"""`glamm-mini convert SOURCE TARGET`: official checkpoints to ours and back, and LoRA merged on the way."""

from pathlib import Path
from typing import Annotated

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from typer import Argument, Option, echo

from glamm_mini.cli.options import Drop, VisionTower, check_place, screen, working


def convert(
    source: Annotated[str, Argument(help="A folder, a hub id or a bundled model, official or ours.")],
    target: Annotated[Path | None, Argument(help="The folder to write; may be left out with --check.")] = None,
    to: Annotated[str, Option(help="ours or official.")] = "ours",
    vision_tower: VisionTower = None,
    dtype: Annotated[
        str | None, Option(help="float32, bfloat16, float16, or official (as its merge script); as stored if left out.")
    ] = None,
    max_shard_size: Annotated[str, Option(help="The most that one file holds, such as 4GB.")] = "4GB",
    torch_files: Annotated[bool, Option("--torch-files", help="Write pytorch_model*.bin, for --to official.")] = False,
    lora: Annotated[Path | None, Option(help="A folder of LoRA to merge into the weights.")] = None,
    drop: Drop = None,
    check: Annotated[bool, Option("--check", help="Compare names and shapes alone; fetches no weights.")] = False,
) -> None:
    """Convert a checkpoint: official to ours, or ours to official; LoRA is merged on the way.

    The target is written whole or not at all: after Ctrl-C, run the command again.
    """
    if target is None and not check:
        raise ValueError("name the folder to write: glamm-mini convert SOURCE TARGET; or add --check")
    if check and lora:
        raise ValueError("--check compares names and shapes of weights, not of an adapter; leave --lora or --check out")
    if torch_files and to != "official":
        raise ValueError("--torch-files writes torch's files, which belong to --to official alone; leave it out")
    if not check:
        check_place(target, "TARGET", folder=True)
        if target.is_dir() and any(target.iterdir()):
            raise FileExistsError(f"{target} holds something already; give a new folder, or remove it first")
    from glamm_mini.checkpoints.convert import prepare
    from glamm_mini.checkpoints.save import shard_plan

    shard_plan({}, "{suffix}", max_shard_size)  # with --check too
    with working(f"reading the names in {source}"):
        how = {"need_tower": vision_tower is not None, "weights": "names"} if check else {"lora": lora}
        conversion = prepare(source, to, vision_tower, dtype, drop=drop or (), **how)
    if not check:
        columns = TextColumn("writing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=screen()) as progress:
            task = progress.add_task("", total=conversion.bytes)
            conversion.write(target, max_shard_size, torch_files, lambda size: progress.advance(task, size))
    echo(conversion.report)
    echo(f"to write: {conversion.bytes / 1e9:.2f} GB" if check else target)
