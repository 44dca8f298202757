"""`glamm-mini predict`, `score`, `evaluate`: one line of JSON, a table for people, one clear line for mistakes."""

import json
import shutil

import pytest
from evaluation_fakes import StorybookOracle

import glamm_mini.assistant
from glamm_mini.cli.main import main
from glamm_mini.datasets.storybook import dataset

SMALL = ["--split", "test", "--seed", "7", "--limit", "3", "--long-side", "64", "--no-meteor"]


@pytest.fixture(autouse=True)
def oracle(monkeypatch):
    """`load` gives an oracle, Java is away."""
    fake, evaluation_samples = StorybookOracle(), dataset.evaluation_samples
    monkeypatch.setattr(glamm_mini.assistant, "load", lambda name, device=None, dtype=None: fake)
    monkeypatch.setattr(dataset, "evaluation_samples", lambda *a, **k: fake.watch(evaluation_samples(*a, **k)))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return fake


def command(*arguments: object) -> int:
    """Run a command; gives its exit status."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_json_on_stdout_is_one_line_and_nothing_else(capsys):
    assert command("evaluate", "gcg", *SMALL, "--json", "-") == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    figures = json.loads(out)["gcg"]
    assert figures["fixed"]["recall"] == figures["official"]["recall"] == 1.0
    assert figures["similarity"] == "storybook" and figures["images"] == 3
    assert "official" in err and "fixed" in err  # the table


def test_predict_then_score_is_evaluate(tmp_path, capsys):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    assert command("predict", "refseg", *SMALL[:-1], "--out", tmp_path / "out") == 0
    assert command("score", "refseg", "--predictions", tmp_path / "out", "--split", "test", "--json", one) == 0
    assert command("evaluate", "refseg", *SMALL, "--json", two) == 0
    assert one.read_text() == two.read_text() and one.read_text().count("\n") == 1
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert (settings["split"], settings["seed"], settings["limit"]) == ("test", 7, 3)
    assert "giou" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["evaluate", "gcc"], "Unknown task 'gcc'"),
        (["evaluate", "gcg", "--split", "tset"], "Unknown split 'tset'"),
        (["evaluate", "gcg", "--data", "coco"], "Unknown data 'coco'"),
        (["evaluate", "gcg", "--protocol", "old"], "Unknown protocol 'old'"),
        (["evaluate", "gcg", "--similarity", "gpt"], "Unknown similarity 'gpt'"),
        (["score", "gcg", "--predictions", "nowhere", "--split", "test"], "No ground truth"),
    ],
)
def test_a_mistake_gives_one_clear_error(arguments, message, capsys):
    assert command(*arguments) == 1
    out, err = capsys.readouterr()
    assert message in err and "Traceback" not in err and out == ""


def test_every_figure_has_a_row(capsys):
    assert command("evaluate", "caption", *SMALL) == 0
    out = capsys.readouterr().out
    for name in ("meteor", "cider", "class_recall", "class_precision", "note:"):
        assert name in out
