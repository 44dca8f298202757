"""Writes the results table of README.md from scores.json: python figures/results_table.py [--readme README.md]"""

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCORES = ROOT / "data" / "checkpoints" / "tiny" / "scores.json"
START, END = "<!-- results -->", "<!-- end results -->"

TASKS = {
    "gcg": "grounded conversation",
    "refseg": "referring segmentation",
    "regcap": "region captions",
    "caption": "captions",
    "grounding": "phrase grounding",
    "vqa": "questions",
}
NAMES = {
    "miou": "mIoU",
    "recall": "mask recall",
    "precision": "mask precision",
    "ap50": "AP50",
    "pq": "PQ",
    "phrase_accuracy": "phrase right where the mask is",
    "ciou": "cIoU",
    "giou": "gIoU",
    "p50": "P@0.5",
    "false_alarms": "absent things that got a mask",
    "missed": "expressions that got none",
    "class_accuracy": "class right",
    "colour": "color right",
    "exact": "class, color, pattern, size right",
    "class_recall": "classes named",
    "class_precision": "named classes that are there",
    "accuracy": "accuracy",
    "meteor": "METEOR",
    "cider": "CIDEr",
}
SHORT = {
    "gcg": ("miou", "recall", "ap50", "phrase_accuracy"),
    "refseg": ("ciou", "giou", "false_alarms"),
    "regcap": ("class_accuracy", "exact"),
    "caption": ("class_recall", "cider"),
    "grounding": ("miou", "recall"),
    "vqa": ("accuracy",),
}
FULL = {task: tuple(NAMES) for task in TASKS}

Column = tuple[str, str, str]
FIXED: tuple[Column, ...] = (
    ("val", "val", "fixed"),
    ("test", "test", "fixed"),
    ("compositional", "compositional", "fixed"),
    ("unseen things alone", "compositional", "unseen"),
)
"""Columns: heading, split, and which of its figures."""
OFFICIAL: tuple[Column, ...] = tuple((split, split, "official") for split in ("val", "test", "compositional"))
README: tuple[Column, ...] = (
    ("test, official", "test", "official"),
    *((f"{heading}, fixed", split, part) for heading, split, part in FIXED[1:]),
)


def figures_of(scores: dict, split: str, task: str, part: str) -> dict:
    """The figures of a task by name; part is "fixed", "official" or "unseen". Empty where there are none."""
    values = scores["splits"].get(split, {}).get(task, {})
    if part == "fixed" and task != "gcg":  # there the fixed figures stand at the top
        return {name: value for name, value in values.items() if not isinstance(value, (dict, list, str))}
    return values.get(part) or {}


def results_table(scores: dict, figures: dict[str, tuple[str, ...]], columns: tuple[Column, ...]) -> str:
    """A Markdown table: one row a figure that any column has, "-" where a column lacks it."""
    head = ["task", "figure", *(heading for heading, _, _ in columns)]
    lines = [head, ["---", "---", *("---:" for _ in columns)]]
    for task, names in figures.items():
        title = f"{TASKS[task]} (`{task}`)"
        for name in names:
            values = [figures_of(scores, split, task, part).get(name) for _, split, part in columns]
            if any(value is not None for value in values):
                lines.append([title, NAMES[name], *("-" if value is None else f"{value:.3f}" for value in values)])
                title = ""
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def counts_line(scores: dict) -> str:
    """What the figures stand on, and the command that gives them again."""
    settings = scores["settings"]
    unseen = scores["splits"].get("compositional", {})
    sizes = [f"{unseen[t]['unseen'][n]} {n} of `{t}`" for t, n in _UNSEEN_COUNTS if "unseen" in unseen.get(t, {})]
    splits = ", ".join(f"`{split}`" for split in scores["splits"])
    lines = f"{settings['limit']} scenes a split ({splits}), seed {settings['seed']}, by `{command_of(settings)}`."
    return f"{lines} Unseen things alone: {', '.join(sizes)}." if sizes else lines


_UNSEEN_COUNTS = (("gcg", "phrases"), ("grounding", "phrases"), ("refseg", "expressions"), ("regcap", "regions"))


def command_of(settings: dict) -> str:
    """The command that measures one task on one split."""
    return (
        f"glamm-mini evaluate TASK --model {settings['model']} --data storybook --split SPLIT "
        f"--seed {settings['seed']} --limit {settings['limit']}"
    )


def readme_part(scores: dict) -> str:
    """All that stands between the two marks of README.md."""
    return f"{results_table(scores, SHORT, README)}\n\n{counts_line(scores)}"


def read_scores(path: Path = SCORES) -> dict:
    """The measured figures. Raises ValueError if the file is of another form."""
    scores = json.loads(Path(path).read_text("utf-8"))
    if not {"settings", "splits"} <= set(scores):
        raise ValueError(f"{path} holds no settings and splits; make it again: make card")
    return scores


def between_marks(text: str) -> str:
    """What stands between the marks. Raises ValueError unless each mark is there once, START first."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(f"the README needs the line {START} and below it the line {END}, each once")
    return text[text.index(START) + len(START) : text.index(END)].strip()


def with_table(text: str, table: str) -> str:
    """The text with what stands between its marks replaced. Raises ValueError as `between_marks`."""
    between_marks(text)
    return f"{text[: text.index(START)]}{START}\n\n{table}\n\n{text[text.index(END) :]}"


def main() -> None:
    """Replace the table in the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--scores", type=Path, default=SCORES)
    options = parser.parse_args()
    try:
        text = with_table(options.readme.read_text("utf-8"), readme_part(read_scores(options.scores)))
    except ValueError as problem:
        raise SystemExit(f"error: {options.readme}: {problem}") from problem
    options.readme.write_text(text, "utf-8")
    print(f"{options.readme}: wrote the table of {options.scores}")


if __name__ == "__main__":
    main()
