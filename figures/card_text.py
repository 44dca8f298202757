"""The model card of the tiny model as Markdown, from what was measured."""

import os
import platform
from pathlib import Path

from card_worst import Worst
from results_table import FIXED, FULL, OFFICIAL, command_of, counts_line, figures_of, results_table
from training_records import Round

from glamm_mini.storybook.scores.diagnosis import KINDS

CAUSES = {
    "right": "mask right and words right",
    "missed": "no mask lies on it",
    "neighbour": "the words are right, the mask lies on another thing",
    "class": "the mask is there, the words name another class",
    "colour": "the class is right, the color wrong",
    "count": "the class is right, the number wrong",
    "pattern": "the class is right, the pattern wrong",
    "size": "the class is right, the size wrong",
    "words": "the mask is there, the words name no class",
    "rough": "the words are right, the mask has an IoU below 0.5",
}


def machine() -> str:
    """The processor's name and cores, the versions of Python and torch."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line.split(":", 1)[1].strip() for line in info.read_text("utf-8").splitlines() if "model name" in line]
        name = lines[0] if lines else name
    cores = os.cpu_count()
    return f"{name}, {cores} cores, {platform.system()}; Python {platform.python_version()}, torch {torch.__version__}"


def training_table(rounds: list[Round]) -> str:
    """A row a training run: its seed, steps, minutes and command."""
    lines = ["| run | seed | steps | minutes | command |", "| --- | ---: | ---: | ---: | --- |"]
    for one in rounds:
        seed = one.settings.get("seed", "-")
        lines.append(f"| {one.name} | {seed} | {one.steps} | {one.minutes:.0f} | `{one.command}` |")
    minutes = sum(one.minutes for one in rounds)
    return "\n".join([*lines, f"| together | | {sum(one.steps for one in rounds)} | {minutes:.0f} | |"])


def causes_table(counts: dict[str, int]) -> str:
    """A row a cause, the most frequent first; shares of all true phrases."""
    phrases = sum(number for kind, number in counts.items() if kind != "surplus")
    lines = ["| what became of a phrase | share | that is |", "| --- | ---: | --- |"]
    for kind in sorted(CAUSES, key=lambda kind: -counts[kind]):
        if counts[kind]:
            lines.append(f"| {KINDS.get(kind, kind)} | {counts[kind] / phrases:.1%} | {CAUSES[kind]} |")
    surplus = f"{counts['surplus']} predicted masks were surplus: they fit nothing that was not found already."
    return "\n".join([*lines, "", f"{phrases} phrases on split `test`. {surplus}"])


def worst_list(worst: list[Worst]) -> str:
    """The worst answers in words: the picture's name, its score, its cause."""
    return "\n".join(
        f"{number}. `{one.image.truth.image_id}` (score {one.score:.2f}): {one.cause}"
        for number, one in enumerate(worst, start=1)
    )


def limits(scores: dict, side: int) -> str:
    """What the model cannot do, with the measured figure where there is one."""
    test, unseen = figures_of(scores, "test", "gcg", "fixed"), figures_of(scores, "compositional", "gcg", "unseen")
    asked = figures_of(scores, "test", "vqa", "fixed")
    lines = [
        "It knows the storybook world alone: its 20 classes, 8 colors, 3 patterns, 3 sizes and the words for them. "
        "A photograph, or a word of another world, gets an answer that means nothing.",
        f"It sees every picture at {side} pixels a side at most: small and thin things lose their outline.",
        "Its scores are no measure of GLaMM: they show that the same code learns the same tasks in small.",
    ]
    if test.get("recall") is not None:
        lines.append(f"Of the phrases of a test picture, {1 - test['recall']:.0%} are lost; the table above says how.")
    if test.get("recall") is not None and unseen:
        lines.append(
            "Pairs of class and color that training never showed: mask recall "
            f"{unseen['recall']:.2f}, against {test['recall']:.2f} on what it knows."
        )
    if asked.get("accuracy") is not None:
        lines.append(f"{1 - asked['accuracy']:.0%} of its short answers to questions are wrong.")
    return "\n".join(f"- {line}" for line in lines)


def card(
    scores: dict,
    rounds: list[Round],
    backbones: list[Round],
    counts: dict[str, int],
    worst: list[Worst],
    about: dict,
    pictures: str,
) -> str:
    """The whole card. about: parameters, side (pixels); pictures: the way from the card to the folder of pictures."""
    parts = [
        "# The tiny model",
        "Written by `make card`; do not edit by hand.",
        f"GLaMM in the size `tiny`: {about['parameters'] / 1e6:.1f} million parameters, pretrained in parts and then "
        "trained on all tasks of the storybook world, from nothing but generated scenes. It answers in words and "
        'masks. Load it with `glamm_mini.load("tiny")`.',
        "## How it was made",
        f"First the three backbones, each alone (`make backbones`):\n\n{training_table(backbones)}",
        f"Then the whole model, from these backbones (`make tiny`):\n\n{training_table(rounds)}",
        "Training draws split `train`, world seed 0; no scene is seen twice, and no scene of another split. "
        "The seeds in the tables order the scenes. Minutes are wall clock.",
        f"Machine: {machine()}.",
        f"![Validation figures over the minutes of training]({pictures}/tiny_curve.png)",
        "A record holds the step of a validation; its minute is read off as if all steps took equally long.",
        "## What it scores",
        f"{counts_line(scores)} The fixed protocol:\n\n{results_table(scores, FULL, FIXED)}",
        "The split `compositional` holds pairs of class and color that training never shows. The last column is of "
        "those things alone, matched among everything in the picture.",
        f"The official protocol, which leaves out what was missed:\n\n{results_table(scores, FULL, OFFICIAL)}",
        "## What goes wrong",
        f"Each true phrase of a grounded answer has one cause, by rule:\n\n{causes_table(counts)}",
        f"## The {len(worst)} worst answers",
        "The test scenes with the lowest mean of mIoU and mask recall. Masks and colored words are the model's; the "
        "heading is the cause, by the same rules; the gray lines are the truth.",
        f"![The worst answers with their causes]({pictures}/tiny_worst.png)",
        worst_list(worst),
        f"## Limits\n\n{limits(scores, about['side'])}",
        "## Make it again\n\n```\nmake backbones\nmake tiny\nmake card\n```",
        f"One task on one split: `{command_of(scores['settings'])}`.",
    ]
    return "\n\n".join(parts) + "\n"
