"""`glamm-mini predict`, `score` and `evaluate`: ask a model about a whole split, and measure the answers."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table
from typer import Argument, Option, echo

from glamm_mini import registry
from glamm_mini.cli.options import JsonFile, Loading, check_place, figures_to, progress, screen, with_options
from glamm_mini.evaluation import SIMILARITIES, TASKS, predict_samples, score_folder
from glamm_mini.evaluation.predict import compare_settings, fingerprint
from glamm_mini.evaluation.records import SETTINGS
from glamm_mini.evaluation.score import PROTOCOLS

Task = Annotated[str, Argument(help=f"One of: {', '.join(TASKS)}.")]
Split = Annotated[str, Option(help="The split, such as val, test or compositional.")]


@dataclass(frozen=True)
class Questions:
    """Which questions are asked, and how many at once."""

    data: Annotated[str, Option(help="The data set: storybook.")] = "storybook"
    split: Split = "test"
    seed: Annotated[
        int, Option(min=0, max=2**64 - 1, help="Seed of the pictures, and of the expressions drawn by official refseg.")
    ] = 0
    limit: Annotated[int, Option(min=1, max=10**6, help="How many pictures.")] = 100
    long_side: Annotated[int, Option(min=32, max=8192, help="Longer side of the pictures, in pixels.")] = 256
    batch_size: Annotated[int, Option(min=1, help="How many questions to ask at once.")] = 16


@dataclass(frozen=True)
class Scoring:
    """How answers are scored, and where the figures go."""

    protocol: Annotated[str, Option(help=f"One of: {', '.join(PROTOCOLS)}.")] = "both"
    similarity: Annotated[
        str | None,
        Option(
            help=f"When two phrases mean the same, one of: {', '.join(SIMILARITIES)}. By default storybook for "
            "storybook, else bert."
        ),
    ] = None
    json_file: JsonFile = None
    no_meteor: Annotated[bool, Option("--no-meteor", help="Leave METEOR out: its Java start takes ten seconds.")] = (
        False
    )


@with_options
def predict(
    task: Task,
    out: Annotated[Path, Option(help="Folder for the predictions; run again to go on.")],
    questions: Questions,
    loading: Loading,
) -> None:
    """Write a model's predictions for a task, with the ground truth beside them in OUT/ground_truth.

    Several processes, each with a GPU of its own: torchrun --nproc-per-node N -m glamm_mini.cli.main predict ...
    """
    check_arguments(task, questions.data, questions.split)
    _predict(task, out, questions, loading)


@with_options
def score(
    task: Task,
    predictions: Annotated[Path, Option(help="Folder that `predict` wrote, or predictions in its formats.")],
    split: Split,
    scoring: Scoring,
    ground_truth: Annotated[
        Path | None, Option(help="Folder of the ground truth; by default PREDICTIONS/ground_truth.")
    ] = None,
) -> None:
    """Score written predictions by the official and the fixed protocol, side by side."""
    with figures_to(scoring.json_file) as figures:
        figures |= _score(task, predictions, ground_truth or predictions / "ground_truth", split, scoring)


@with_options
def evaluate(
    task: Task,
    questions: Questions,
    loading: Loading,
    scoring: Scoring,
    out: Annotated[Path | None, Option(help="Keep the predictions in this folder.")] = None,
) -> None:
    """Predict and score in one go."""
    check_arguments(task, questions.data, questions.split, scoring.protocol, scoring.similarity)
    processes = os.environ.get("WORLD_SIZE", "1")
    if out is None and os.environ.get("LOCAL_WORLD_SIZE", processes) != processes:
        raise ValueError("several machines write the predictions: name a folder that all of them share with --out")
    with figures_to(scoring.json_file) as figures, TemporaryDirectory(prefix="glamm-mini-") as passing:
        out = out or Path(passing)
        if _predict(task, out, questions, loading, kept=out != Path(passing)):
            figures |= _score(task, out, out / "ground_truth", questions.split, scoring)


def check_arguments(task: str, data: str, split: str, protocol: str = "both", similarity: str | None = None) -> None:
    """Raises ValueError for what can be known to be wrong before a model is loaded."""
    known = {"task": TASKS, "data": registry.names("data")}
    known["split"] = registry.find("data", data).SPLITS if data in known["data"] else ()
    known |= {"protocol": PROTOCOLS, "similarity": (None, *SIMILARITIES)}
    for (name, choices), given in zip(known.items(), (task, data, split, protocol, similarity), strict=True):
        if given not in choices:
            listed = ", ".join(filter(None, choices))
            more = " For predictions that you have as files, use `glamm-mini score`." if name == "data" else ""
            raise ValueError(f"Unknown {name} {given!r}; choose one of: {listed}.{more}")


def _predict(task: str, out: Path, questions: Questions, loading: Loading, kept: bool = True) -> bool:
    """Write predictions, in all processes to the folder of the first, which is `kept`; returns whether it is this."""
    check_place(out, "--out", folder=True)
    if not (out / SETTINGS).is_file():
        compare_settings(out, {})
    from accelerate.utils import broadcast_object_list

    from glamm_mini.evaluation.processes import choose_device, find_processes

    processes = find_processes()
    [out] = broadcast_object_list([out])
    q, source = questions, registry.find("data", questions.data)
    settings = {"task": task, "world": source.VERSION, **loading.settings(), **vars(q)}
    del settings["batch_size"]  # changes no answer
    glamm = replace(loading, device=choose_device(loading.device, processes)).load()
    settings["weights"] = fingerprint(glamm)
    rank, world = processes.process_index, processes.num_processes
    with progress(f"predict {task}", len(range(rank, q.limit, world)), out if kept else None) as advance:
        samples = source.evaluation_samples(task, q.split, q.seed, q.limit, long_side=q.long_side)
        predict_samples(
            task, glamm, samples, out, q.split, settings, seed=q.seed, batch_size=q.batch_size,
            rank=rank, world=world, wait=processes.wait_for_everyone, advance=advance,
        )  # fmt: skip
    return processes.is_main_process


def _score(task: str, predictions: Path, ground_truth: Path, split: str, scoring: Scoring) -> dict:
    """The figures, which are shown too."""
    shown = partial(track, description=f"score {task}", console=screen())
    how = {"protocol": scoring.protocol, "similarity": scoring.similarity, "meteor": not scoring.no_meteor}
    figures = score_folder(task, predictions, ground_truth, split, **how, progress=shown)
    Console().print(result_table(task, figures[task]))
    if "kinds" in figures[task]:
        Console().print(kinds_table(figures[task]["kinds"]))
    echo("\n".join([counted(figures[task]), *(f"note: {note}" for note in figures[task]["notes"])]))
    return figures


COUNTS = ("images", "regions", "expressions", "questions", "missing_predictions")


def counted(values: dict) -> str:
    """What the figures stand on: "300 images, 0 missing predictions, similarity storybook"."""
    parts = [f"{values[name]} {name.replace('_', ' ')}" for name in COUNTS if name in values]
    return ", ".join(parts + ([f"similarity {values['similarity']}"] if "similarity" in values else []))


def result_table(task: str, values: dict) -> Table:
    """The figures of a task: a row a figure; official, fixed and, where there are any, unseen things side by side."""
    others = (*COUNTS, "notes", "similarity", "official", "fixed", "unseen", "kinds")
    fixed = values.get("fixed") or {name: value for name, value in values.items() if name not in others}
    columns = {"official": values.get("official"), "fixed": fixed, "unseen things": values.get("unseen")}
    columns = {name: column for name, column in columns.items() if column}
    table = Table("figure", *(Column(name, justify="right") for name in columns), title=task)
    for figure in dict.fromkeys(figure for column in (fixed, *columns.values()) for figure in column):
        table.add_row(figure, *(_cell(column.get(figure, "")) for column in columns.values()))
    return table


def kinds_table(kinds: dict[str, dict]) -> Table:
    """The fixed figures of each kind of question or expression: a row a kind."""
    names = next(iter(kinds.values()))
    table = Table("kind", *(Column(name, justify="right") for name in names))
    for kind, values in kinds.items():
        table.add_row(escape(kind), *map(_cell, values.values()))
    return table


def _cell(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
