"""The tiny model's card and the README's table: made from records and measured scores by scripts of `figures`."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_fakes import Careless, StorybookOracle, run, samples
from PIL import Image

import glamm_mini
from glamm_mini.storybook import data_source

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "figures"))

import card_curve  # noqa: E402  the scripts stand beside the package, not in it
import card_worst  # noqa: E402
import model_card  # noqa: E402
import results_table as table  # noqa: E402
import training_records  # noqa: E402

TINY = ROOT / "data" / "checkpoints" / "tiny"
SCORES = {
    "settings": {"model": "tiny", "seed": 7, "limit": 5},
    "splits": {
        "test": {
            "gcg": {"official": {"miou": 0.75}, "fixed": {"miou": 0.5, "recall": 0.25}, "notes": []},
            "vqa": {"accuracy": 0.4, "official": None, "questions": 5},
        },
        "compositional": {"gcg": {"fixed": {"miou": 0.4}, "unseen": {"miou": 0.125, "phrases": 9}}},
    },
}


def record(out: str, seconds: int, steps: list[int], start: str = "", last: int = 10) -> dict:
    command = f"glamm-mini train storybook --out {out}" + (f" --set start={start}" if start else "")
    validation = [{"step": step, "gcg_miou": step / 20, "vqa_accuracy": 0.5} for step in steps]
    return {
        "command": command,
        "settings": {"steps": 99, "seed": 4},
        "seconds": seconds,
        "validation": validation,
        "last": {"step": last, "loss": 1.0},
    }


@pytest.fixture
def records(tmp_path) -> Path:
    """Two rounds; by name the later one comes first."""
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "a.training.json").write_text(json.dumps(record("runs/b", 600, [10], start="runs/a")))
    (folder / "training-round-1.json").write_text(json.dumps(record("runs/a", 1200, [5, 10])))
    return folder


# --- the README's table -------------------------------------------------------------------------------------------


def test_a_cell_comes_from_its_split_and_protocol():
    text = table.results_table(SCORES, {"gcg": ("miou", "recall", "pq"), "vqa": ("accuracy",)}, table.README)
    head, _, *rows = text.splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == [
        "task", "figure", "test, official", "test, fixed", "compositional, fixed", "unseen things alone, fixed",
    ]  # fmt: skip
    assert rows == [
        "| grounded conversation (`gcg`) | mIoU | 0.750 | 0.500 | 0.400 | 0.125 |",
        "| | mask recall | - | 0.250 | - | - |",
        "| questions (`vqa`) | accuracy | - | 0.400 | - | - |",
    ]
    assert "seed 7" in table.counts_line(SCORES) and "9 phrases of `gcg`" in table.counts_line(SCORES)


def test_the_table_is_written_between_its_marks_and_nowhere_else():
    text = f"before\n{table.START}\nold\n{table.END}\nafter\n"
    new = table.with_table(text, "| new |")
    assert new == f"before\n{table.START}\n\n| new |\n\n{table.END}\nafter\n"
    assert table.with_table(new, "| new |") == new and table.between_marks(new) == "| new |"
    for broken in ("no marks", f"{table.END}\n{table.START}", f"{table.START}\n{table.START}\n{table.END}"):
        with pytest.raises(ValueError, match="the README needs the line"):
            table.with_table(broken, "| new |")


def test_scores_of_another_form_are_refused(tmp_path):
    (tmp_path / "scores.json").write_text('{"gcg": {}}')
    with pytest.raises(ValueError, match="make card"):
        table.read_scores(tmp_path / "scores.json")


def test_the_readme_shows_the_measured_scores():
    written = table.between_marks((ROOT / "README.md").read_text("utf-8"))
    assert written == table.readme_part(table.read_scores()), "the README's table is old: make table"


def test_the_card_shows_the_measured_scores():
    path = TINY / "README.md"
    assert path.is_file(), "there is no card: make card"
    text, scores = path.read_text("utf-8"), table.read_scores()
    for columns in (table.FIXED, table.OFFICIAL):
        assert table.results_table(scores, table.FULL, columns) in text, "the card is old: make card"
    for name in ("tiny_curve.png", "tiny_worst.png"):
        assert name in text and (ROOT / "figures" / name).stat().st_size < 300_000


# --- records and curve --------------------------------------------------------------------------------------------


def test_rounds_follow_each_other_and_minutes_add_up(records):
    rounds = training_records.read_rounds(records)
    assert [one.name for one in rounds] == ["training-round-1", "a"]
    assert [(one.minutes, one.steps) for one in rounds] == [(20, 10), (10, 10)]
    minutes = [minute for minute, _ in training_records.whole_curve(rounds)]
    assert minutes == [10, 20, 30]
    with pytest.raises(ValueError, match="no training record"):
        training_records.read_rounds(records.parent)


def test_names_at_the_lines_ends_stand_apart():
    moved = card_curve.spread([0.5, 0.9, 0.51, 0.52], 0.1)
    assert moved == pytest.approx([0.41, 0.9, 0.51, 0.61])
    assert card_curve.spread([0.1, 0.9], 0.1) == [0.1, 0.9]
    assert min(np.diff(sorted(card_curve.spread([0.4, 0.5, 0.5, 0.58, 0.6], 0.06)))) >= 0.06 - 1e-9


def test_the_curve_is_drawn(records, tmp_path):
    card_curve.draw_curve(training_records.read_rounds(records), tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1000, 520)
    assert (tmp_path / "curve.png").stat().st_size < 300_000


# --- the worst answers --------------------------------------------------------------------------------------------


@pytest.fixture
def careless(tmp_path) -> Path:
    run("gcg", Careless("gcg"), tmp_path / "gcg")
    return tmp_path / "gcg"


def test_the_worst_come_first_with_their_cause(careless):
    worst = card_worst.worst_of(card_worst.read_images(careless, "test"), 3)
    scores = [one.score for one in worst]
    assert scores == sorted(scores) and scores[0] < 0.5
    assert all(one.cause.startswith("missed: ") for one in worst)  # Careless forgets each second mask


def test_the_sheet_is_drawn(careless, tmp_path):
    worst = card_worst.worst_of(card_worst.read_images(careless, "test"), 3)
    card_worst.draw_worst(worst, samples("gcg"), careless, tmp_path / "worst.png")
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width == 2 * card_worst.WIDTH + 3 * 12
    assert (tmp_path / "worst.png").stat().st_size < 300_000


def test_a_prediction_is_drawn_as_it_was_said(careless):
    record = json.loads((careless / "picture_000.json").read_text())
    answer = card_worst.answer_of(record, np.zeros((48, 64, 3), np.uint8))
    assert answer.caption == record["caption"] and len(answer.phrases) == 1
    [phrase] = answer.phrases
    assert answer.caption[slice(*phrase.span)] == phrase.text and phrase.mask.shape == (48, 64)


# --- the whole card -----------------------------------------------------------------------------------------------


def test_one_command_makes_everything(records, tmp_path, monkeypatch):
    oracle, evaluation_samples = StorybookOracle(), data_source.evaluation_samples
    oracle.processor = SimpleNamespace(config=SimpleNamespace(grounding=SimpleNamespace(image_size=128)))
    oracle.model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: 3_600_000)])

    def small(task, split, seed, limit, long_side=64):
        return oracle.watch(evaluation_samples(task, split, seed, limit, long_side=64))

    for module in (glamm_mini, model_card):
        monkeypatch.setattr(module, "load", lambda name, **how: oracle, raising=False)
    for module in (data_source, model_card):
        monkeypatch.setattr(module, "evaluation_samples", small)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    target, out = tmp_path / "target", tmp_path / "out"
    arguments = ["--limit", "2", "--no-meteor", "--out", out, "--records", records, "--target", target]
    arguments += ["--pictures", tmp_path / "pictures"]
    monkeypatch.setattr(sys, "argv", ["model_card.py", *map(str, arguments)])
    for _ in range(2):  # the second time all predictions are there
        model_card.main()
    scores = table.read_scores(target / "scores.json")
    assert set(scores["splits"]) == {"val", "test", "compositional"}
    assert scores["splits"]["test"]["gcg"]["fixed"]["recall"] == 1.0
    assert scores["splits"]["compositional"]["regcap"]["unseen"]["class_accuracy"] == 1.0
    text = (target / "README.md").read_text("utf-8")
    for part in ("3.6 million", "training-round-1", "cores", "../pictures/tiny_curve.png", "nothing wrong", "--seed 7"):
        assert part in text
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"tiny_curve.png", "tiny_worst.png"}
