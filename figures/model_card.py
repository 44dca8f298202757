"""Measures the tiny model on all splits and writes its card: python figures/model_card.py [--limit 300] [--seed 7]

Predictions are kept in OUT, so that a stopped run goes on where it was. Two processes share the work:
python -m torch.distributed.run --standalone --nproc-per-node 2 figures/model_card.py
"""

import argparse
import json
import os
from pathlib import Path

from card_curve import draw_curve
from card_text import card
from card_worst import draw_worst, read_images, worst_of
from training_records import read_rounds

from glamm_mini.assistant.assistant import load
from glamm_mini.cli import evaluate
from glamm_mini.evaluation import TASKS, score_folder
from glamm_mini.evaluation.predict import fingerprint
from glamm_mini.evaluation.processes import find_processes
from glamm_mini.storybook.dataset import evaluation_samples
from glamm_mini.storybook.language.vocabulary import WORLD_VERSION
from glamm_mini.storybook.scores.diagnosis import tally

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "data" / "checkpoints"
SPLITS = ("val", "test", "compositional")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--limit", type=int, default=300, help="scenes a split and task")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--no-meteor", action="store_true", help="leave METEOR out, which needs Java")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "card", help="folder of the predictions")
    parser.add_argument("--records", type=Path, default=CHECKPOINTS / "tiny", help="folder of the training records")
    parser.add_argument("--target", type=Path, default=CHECKPOINTS / "tiny", help="folder of scores.json and README.md")
    parser.add_argument("--pictures", type=Path, default=ROOT / "figures", help="folder of the pictures")
    return parser.parse_args()


def predict_all(folder: Path, options: argparse.Namespace, show: bool) -> None:
    """Ask about every split and task; what is there already is kept."""
    asked = [(split, task) for split in SPLITS for task in TASKS]
    for number, (split, task) in enumerate(asked, start=1):
        if show:
            print(f"{number} of {len(asked)}: {split}, {task}", flush=True)
        place = folder / split / task
        evaluate.predict(
            task=task, out=place, model=options.model, split=split, seed=options.seed, limit=options.limit, device="cpu"
        )


def score_all(folder: Path, options: argparse.Namespace, weights: str) -> dict:
    """The figures of every split and task, and what they depend on."""
    settings = {"model": options.model, "weights": weights, "data": "storybook", "world": WORLD_VERSION}
    settings |= {"seed": options.seed, "limit": options.limit}
    splits: dict[str, dict] = {}
    for split in SPLITS:
        splits[split] = {}
        for task in TASKS:
            print(f"score {split}, {task}", flush=True)
            place = folder / split / task
            truth = place / "ground_truth"
            splits[split] |= score_folder(task, place, truth, split, meteor=not options.no_meteor)
    return {"settings": settings, "splits": splits}


def write_card(folder: Path, options: argparse.Namespace, scores: dict, about: dict) -> None:
    """scores.json, the two pictures, and the card that shows them."""
    options.target.mkdir(parents=True, exist_ok=True)
    (options.target / "scores.json").write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n", "utf-8")
    rounds, backbones = read_rounds(options.records), read_rounds(CHECKPOINTS / "backbones")
    draw_curve(rounds, options.pictures / "tiny_curve.png")
    place = folder / "test" / "gcg"
    images = read_images(place, "test")
    worst = worst_of(images)
    names = {one.image.truth.image_id for one in worst}
    samples = evaluation_samples("gcg", "test", options.seed, options.limit)
    draw_worst(worst, [s for s in samples if s.image_id in names], place, options.pictures / "tiny_worst.png")
    way = Path(os.path.relpath(options.pictures, options.target)).as_posix()
    text = card(scores, rounds, backbones, tally(images), worst, about, way)
    (options.target / "README.md").write_text(text, "utf-8")


def main() -> None:
    """Predict with all processes; the first scores and writes."""
    options = read_options()
    processes = find_processes()
    glamm = load(options.model, device="cpu")
    weights = fingerprint(glamm)
    about = {
        "parameters": sum(parameter.numel() for parameter in glamm.model.parameters()),
        "side": glamm.processor.config.grounding.image_size,
    }
    # Other weights or settings have a folder of their own, so that nothing old is mixed in or in the way.
    folder = options.out / f"{weights}_seed{options.seed}_limit{options.limit}"
    predict_all(folder, options, processes.is_main_process)
    if processes.is_main_process:
        scores = score_all(folder, options, weights)
        write_card(folder, options, scores, about)
        for name in ("scores.json", "README.md"):
            print(options.target / name)
        for name in ("tiny_curve.png", "tiny_worst.png"):
            print(options.pictures / name)


if __name__ == "__main__":
    main()
