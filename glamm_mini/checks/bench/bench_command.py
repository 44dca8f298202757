"""`glamm-mini bench NAME`: two ways to compute one thing against each other, or the 7B size on a GPU."""

from importlib import import_module
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from glamm_mini.cli.options import JsonFile, figures_to

BENCHMARKS = {"generation": "cached_generation", "sam": "sam_speed", "answers": "answer_speed", "7b": "whole_size"}
BENCHMARKS |= {"training": "training_step"}
"""Name -> module of glamm_mini.checks.bench."""
ONE_SIZE = {"generation": "the reference's small case", "training": "tiny"}


def bench(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    repeats: Annotated[int, typer.Option(min=1, help="How often each way is measured, in turns.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Threads on the CPU; torch's own choice if left out.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:0; a GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; 7b: bfloat16, else float32.")] = None,
    size: Annotated[str | None, typer.Option(help="Another size than the benchmark's own: tiny, colab or 7b.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure what an implementation saves, or what a size costs.

    generation: 64 tokens with a cache, against everything again at each step. sam: the ViT-B image encoder at
    1024 pixels, against segment-anything's own. answers: the tiny model from pixels to masks, first and with features
    kept. 7b: an answer and LoRA training steps at the 7B size with random weights, for a GPU with 80 GB. training: one
    step of `train storybook`, part by part.
    """
    with figures_to(json_file) as figures:
        figures |= measure(name, repeats, threads, device, dtype, size)
        Console().print(result_table(name, figures[name]))
        for note in figures[name]["notes"]:
            typer.echo(f"note: {note}")


def measure(name: str, repeats: int, threads: int | None, device: str | None, dtype: str | None, size: str | None):
    """Run one benchmark; returns its report as a dict. Raises ValueError for what it cannot be asked for."""
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark {name!r} is unknown; expected one of {', '.join(BENCHMARKS)}")
    import torch

    from glamm_mini.checks.bench.measure import Setting

    kind, before = find_dtype(name, dtype), torch.get_num_threads()
    where = find_device(name, device)
    _check_size(name, size)
    try:
        torch.set_num_threads(threads or before)
        setting = Setting(repeats, threads or before, where, kind, size)
        return import_module(f"glamm_mini.checks.bench.{BENCHMARKS[name]}").run(setting).as_dict()
    finally:
        torch.set_num_threads(before)


def find_device(name: str, given: str | None):
    """The device that was asked for, or the best there is; ValueError for one that there is not."""
    import torch

    gpu = torch.cuda.is_available()
    if given is None and name == "7b" and not gpu:
        raise ValueError(
            "`bench 7b` measures a GPU with 80 GB, and PyTorch finds no GPU here; "
            "its code runs on small sizes too: --size tiny --device cpu"
        )
    try:
        device = torch.device(given or ("cuda" if gpu else "cpu"))
    except RuntimeError:
        raise ValueError(f"device {given!r} is unknown; expected cpu, cuda or cuda:0 ...") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {given!r}; benchmarks run on cpu and cuda only")
    if device.type == "cuda" and not (gpu and (device.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"device is {given!r}, but PyTorch finds no such GPU; leave device out, or give 'cpu'")
    return device


def find_dtype(name: str, given: str | None):
    """The torch type of that name, or the benchmark's own."""
    from glamm_mini.dtypes import TYPES

    given = given or ("bfloat16" if name == "7b" else "float32")
    if given not in TYPES:
        raise ValueError(f"dtype {given!r} is unknown; expected one of {', '.join(TYPES)}")
    return TYPES[given]


def _check_size(name: str, size: str | None) -> None:
    from glamm_mini.model.config import SIZES

    if size is not None and name in ONE_SIZE:
        raise ValueError(f"`bench {name}` has one size, {ONE_SIZE[name]}; leave --size out")
    if size is not None and name != "answers" and size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")


def result_table(name: str, figures: dict) -> Table:
    """What was measured, both ways: medians, the ratio of the medians, and the largest difference of the results."""
    setting = ", ".join(f"{key} {value}" for key, value in figures["setting"].items())
    table = Table("what", title=f"{name}: {setting}", title_justify="left")
    both = any("plain" in row for row in figures["rows"].values())
    for column in ("plain", "ours", "ratio", "largest difference") if both else ("measured",):
        table.add_column(column, justify="right")
    for what, row in figures["rows"].items():
        plain, ratio = row.get("plain"), row.get("ratio")
        ours = f"{row['ours']['median']:.3g} {row['unit']}"
        cells = (
            f"{plain['median']:.3g} {row['unit']}" if plain else "-",
            ours,
            f"{ratio['median']:.2f}" if ratio else "-",
            f"{row['difference']:.2g}" if "difference" in row else "-",
        )
        table.add_row(what, *(cells if both else (ours,)))
    return table
