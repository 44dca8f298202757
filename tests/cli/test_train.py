"""`glamm-mini train`: what it hands to a recipe, what it says at the end."""

import json
import shlex

import pytest
import typer
from typer.testing import CliRunner

from glamm_mini.cli.demo import demo
from glamm_mini.cli.train import how_to_go_on, train
from glamm_mini.training import recipes
from glamm_mini.training.trainer import TrainingInterrupted


@pytest.fixture
def app():
    app = typer.Typer()
    app.command()(train)
    return app


@pytest.fixture
def calls(monkeypatch, tmp_path):
    calls = []

    def run(recipe, size, data, out, resume, overrides, start):
        calls.append((recipe, size, data, out, resume, overrides, start))
        if resume:
            raise TrainingInterrupted("stopped after step 3 of 9")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "config.json").touch()
        return tmp_path / "made"

    monkeypatch.setattr(recipes, "run", run)
    return calls


def test_the_command_hands_everything_to_the_recipe_and_says_how_to_ask(app, calls, tmp_path):
    arguments = ["storybook", "--out", str(tmp_path / "run"), "--set", "steps=3", "--set", "lr=1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert calls == [("storybook", "tiny", "storybook", tmp_path / "run", False, ["steps=3", "lr=1"], None)]
    assert f"glamm-mini demo picture.png --model {tmp_path / 'made'}" in done.output.replace("\n", " ")


def test_a_run_that_does_not_exist_yet_begins_with_resume(app, calls, tmp_path):
    """The launch lines carry it, so that each may be given again."""
    begun = CliRunner().invoke(app, ["storybook", "--resume", "--out", str(tmp_path / "new")])
    assert begun.exit_code == 130 and calls[0][3:5] == (tmp_path / "new", True)


def test_a_stop_on_request_ends_with_130_and_its_words(app, calls, tmp_path):
    stopped = CliRunner().invoke(app, ["storybook", "--resume", "--out", str(tmp_path / "run")])
    assert stopped.exit_code == 130 and "stopped after step 3" in stopped.output


def test_other_processes_than_the_first_say_nothing(app, calls, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert CliRunner().invoke(app, ["storybook", "--out", str(tmp_path / "run")]).output == ""


def command_of(words: str) -> list[str]:
    return shlex.split(words.splitlines()[1])


def test_each_kind_of_result_has_its_command(tmp_path):
    folder = tmp_path / "a run" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").touch()
    for name in ("encoder", "language", "segmenter"):  # a processor's configuration lies beside the backbones, too
        (folder / f"{name}.training.json").touch()
        said = how_to_go_on(folder)
        assert "backbones lie in" in said and "demo" not in said
        assert ("train storybook" in said) == (name == "segmenter")
    assert command_of(said) == ["glamm-mini", "train", "storybook", "--set", f"backbones={folder}"]
    for path in folder.glob("*.training.json"):
        path.unlink()
    words = command_of(how_to_go_on(folder))
    assert words == ["glamm-mini", "demo", "picture.png", "--model", str(folder)]
    one = typer.Typer()
    one.command()(demo)
    context = typer.main.get_command(one).make_context("demo", words[2:])
    assert context.params["model"] == str(folder) and [*map(str, context.params["images"])] == ["picture.png"]
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "training.json").write_text(json.dumps({"start": "my models/tiny"}))
    merged = str(tmp_path / "merged")
    assert command_of(how_to_go_on(lora)) == ["glamm-mini", "convert", "my models/tiny", merged, "--lora", str(lora)]


def test_the_help_says_where_all_settings_stand(app):
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert "--show" in text and "lora.rank" in text
