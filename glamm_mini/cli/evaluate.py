"""`glamm-mini predict`, `score` and `evaluate`: ask a model about a whole split, and measure the answers."""

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from glamm_mini import registry
from glamm_mini.cli.loading import Loading, progress, with_options
from glamm_mini.evaluation import SIMILARITIES, TASKS, predict_samples, score_folder
from glamm_mini.evaluation.fields import check_choice
from glamm_mini.evaluation.predict import fingerprint
from glamm_mini.evaluation.score import PROTOCOLS

if TYPE_CHECKING:
    from accelerate import PartialState

Task = Annotated[str, typer.Argument(help=f"One of: {', '.join(TASKS)}.")]
Split = Annotated[str, typer.Option(help="The split, such as val, test or compositional.")]


@dataclass(frozen=True)
class Questions:
    """Which questions are asked, and how many at once."""

    data: Annotated[str, typer.Option(help="The data set: storybook.")] = "storybook"
    split: Split = "test"
    seed: Annotated[
        int, typer.Option(help="Seed of the pictures, and of the expressions drawn by official refseg.")
    ] = 0
    limit: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 100
    long_side: Annotated[int, typer.Option(min=32, help="Longer side of the pictures, in pixels.")] = 256
    batch_size: Annotated[int, typer.Option(min=1, help="How many questions to ask at once.")] = 16


@dataclass(frozen=True)
class Scoring:
    """How answers are scored, and where the figures go."""

    protocol: Annotated[str, typer.Option(help=f"One of: {', '.join(PROTOCOLS)}.")] = "both"
    similarity: Annotated[
        str | None,
        typer.Option(
            help=f"When two phrases mean the same, one of: {', '.join(SIMILARITIES)}. By default storybook for "
            "storybook, else bert.",
        ),
    ] = None
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the figures as one line of JSON to this file, or -.")
    ] = None
    no_meteor: Annotated[
        bool, typer.Option("--no-meteor", help="Leave METEOR out: its Java start takes ten seconds.")
    ] = False


@with_options
def predict(
    task: Task,
    out: Annotated[Path, typer.Option(help="Folder for the predictions; run again to go on.")],
    questions: Questions,
    loading: Loading,
) -> None:
    """Write a model's predictions for a task, with the ground truth beside them in OUT/ground_truth.

    Several processes, each with a GPU of its own: torchrun --nproc-per-node N -m glamm_mini.cli.main predict ...
    """
    check_arguments(task, questions.data, questions.split)
    from glamm_mini.evaluation.processes import find_processes

    _predict(find_processes(), task, out, questions, loading)


@with_options
def score(
    task: Task,
    predictions: Annotated[Path, typer.Option(help="Folder that `predict` wrote, or predictions in its formats.")],
    split: Split,
    scoring: Scoring,
    ground_truth: Annotated[
        Path | None, typer.Option(help="Folder of the ground truth; by default PREDICTIONS/ground_truth.")
    ] = None,
) -> None:
    """Score written predictions by the official and the fixed protocol, side by side."""
    check_json(scoring.json_file)
    with _clean_stdout(scoring.json_file):
        figures = _score(task, predictions, ground_truth or predictions / "ground_truth", split, scoring)
    report(figures, scoring.json_file)


@with_options
def evaluate(
    task: Task,
    questions: Questions,
    loading: Loading,
    scoring: Scoring,
    out: Annotated[Path | None, typer.Option(help="Keep the predictions in this folder.")] = None,
) -> None:
    """Predict and score in one go."""
    check_json(scoring.json_file)
    check_arguments(task, questions.data, questions.split, scoring.protocol, scoring.similarity)
    from accelerate.utils import broadcast_object_list

    from glamm_mini.evaluation.processes import find_processes

    processes = find_processes()
    figures = None
    with _clean_stdout(scoring.json_file), contextlib.ExitStack() as stack:
        if out is None and processes.is_main_process:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="glamm-mini-")))
        [out] = broadcast_object_list([out])
        _predict(processes, task, out, questions, loading)
        if processes.is_main_process:
            figures = _score(task, out, out / "ground_truth", questions.split, scoring)
    if figures is not None:
        report(figures, scoring.json_file)


def check_json(json_file: str | None) -> None:
    """Raises ValueError for a place where no file can be written, before hours are spent on what goes there."""
    if json_file not in (None, "-") and (Path(json_file).is_dir() or any(p.is_file() for p in Path(json_file).parents)):
        raise ValueError(f"--json {json_file} is a folder, or lies below a file; name a file")


def check_arguments(task: str, data: str, split: str, protocol: str = "both", similarity: str | None = None) -> None:
    """Raises ValueError for what can be known to be wrong before a model is loaded."""
    check_choice("task", task, TASKS)
    if data not in registry.names("data"):
        raise ValueError(
            f"Unknown data {data!r}: predictions can be made on {', '.join(registry.names('data'))}. For predictions "
            "and ground truth that you already have as files, use `glamm-mini score`."
        )
    splits = registry.find("data", data).SPLITS
    if split not in splits:
        raise ValueError(f"Unknown split {split!r} of {data}; choose one of: {', '.join(splits)}.")
    if protocol not in PROTOCOLS:
        raise ValueError(f"Unknown protocol {protocol!r}; choose one of: {', '.join(PROTOCOLS)}.")
    if similarity is not None and similarity not in SIMILARITIES:
        raise ValueError(f"Unknown similarity {similarity!r}; choose one of: {', '.join(SIMILARITIES)}.")


def _predict(processes: "PartialState", task: str, out: Path, questions: Questions, loading: Loading) -> None:
    from glamm_mini.evaluation.processes import choose_device

    q, source = questions, registry.find("data", questions.data)
    settings = {"task": task, **loading.settings(), "data": q.data, "world": source.VERSION, "split": q.split}
    settings |= {"seed": q.seed, "limit": q.limit, "long_side": q.long_side}
    glamm = replace(loading, device=choose_device(loading.device, processes)).load()
    settings["weights"] = fingerprint(glamm)
    rank, world = processes.process_index, processes.num_processes
    own = len(range(rank, q.limit, world))
    with progress(f"predict {task}", own, processes.is_main_process) as advance:
        samples = source.evaluation_samples(task, q.split, q.seed, q.limit, long_side=q.long_side)
        predict_samples(
            task, glamm, samples, out, q.split, settings, seed=q.seed, batch_size=q.batch_size,
            rank=rank, world=world, wait=processes.wait_for_everyone, advance=advance,
        )  # fmt: skip


def _score(task: str, predictions: Path, ground_truth: Path, split: str, scoring: Scoring) -> dict:
    def shown(items: list) -> Iterator:
        with progress(f"score {task}", len(items)) as advance:
            for item in items:
                yield item
                advance(1)

    how = scoring.protocol, scoring.similarity
    return score_folder(task, predictions, ground_truth, split, *how, meteor=not scoring.no_meteor, progress=shown)


@contextlib.contextmanager
def _clean_stdout(json_file: str | None):
    """With `--json -` standard output holds the JSON line alone; all that libraries print goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr) if json_file == "-" else contextlib.nullcontext():
        yield


def report(figures: dict, json_file: str | None) -> None:
    """Show a table (on standard error where standard output is for the JSON line) and write the JSON line."""
    console = Console(stderr=json_file == "-")
    for task, values in figures.items():
        console.print(result_table(task, values))
        console.print(counted(values), markup=False, highlight=False, soft_wrap=True)
        for note in values["notes"]:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    if json_file is None:
        return
    line = json.dumps(figures, allow_nan=False)
    if json_file == "-":
        print(line)
    else:
        Path(json_file).parent.mkdir(parents=True, exist_ok=True)
        Path(json_file).write_text(line + "\n", "utf-8")


COUNTS = ("images", "regions", "expressions", "questions", "missing_predictions")


def counted(values: dict) -> str:
    """What the figures stand on: "300 images, 0 missing predictions, similarity storybook"."""
    parts = [f"{values[name]} {name.replace('_', ' ')}" for name in COUNTS if name in values]
    return ", ".join(parts + ([f"similarity {values['similarity']}"] if "similarity" in values else []))


def result_table(task: str, values: dict) -> Table:
    """The figures of a task: a row a figure; official, fixed and, where there are any, unseen things side by side."""
    official = values.get("official") or {}
    others = (*COUNTS, "notes", "similarity", "official", "fixed", "unseen")
    fixed = values.get("fixed") or {name: value for name, value in values.items() if name not in others}
    unseen = values.get("unseen") or {}
    columns = {"official": official, "fixed": fixed, "unseen things": unseen}
    columns = {name: column for name, column in columns.items() if column}
    table = Table("figure", title=task)
    for name in columns:
        table.add_column(name, justify="right")
    for figure in dict.fromkeys([*fixed, *official, *unseen]):
        cells = (_cell(column[figure]) if figure in column else "" for column in columns.values())
        table.add_row(figure, *cells)
    return table


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
