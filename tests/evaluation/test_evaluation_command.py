"""`glamm-mini predict`, `score`, `evaluate`: one line of JSON, a table for people, one clear line for mistakes."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from evaluation_fakes import StorybookOracle

import glamm_mini
from glamm_mini.cli.main import main
from glamm_mini.evaluation.processes import choose_device, find_processes
from glamm_mini.storybook import data_source

SMALL = ["--split", "test", "--seed", "7", "--limit", "3", "--long-side", "64", "--no-meteor"]


@pytest.fixture(autouse=True)
def oracle(monkeypatch):
    """`load` gives an oracle that remembers how it was loaded, Java is away."""
    fake, evaluation_samples = StorybookOracle(), data_source.evaluation_samples
    fake.loaded = []
    monkeypatch.setattr(glamm_mini, "load", lambda *a, **k: fake.loaded.append((*a, k)) or fake, raising=False)
    monkeypatch.setattr(data_source, "evaluation_samples", lambda *a, **k: fake.watch(evaluation_samples(*a, **k)))
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


def test_the_model_is_loaded_as_told_and_the_settings_say_how(oracle, tmp_path, capsys):
    words = ["predict", "caption", *SMALL[:-1], "--out", tmp_path / "out"]
    how = ["--dtype", "bfloat16", "--quantize", "8bit", "--vision-tower", "clip", "--drop", "model.odd."]
    assert command(*words, *how, "--device", "cuda:3") == 0
    [(name, given)] = oracle.loaded
    written = {"dtype": "bfloat16", "quantize": "8bit", "vision_tower": "clip"}
    assert name == "tiny"
    assert given == written | {"device": "cuda:3", "offload_folder": None, "drop": ("model.odd.",), "lora": None}
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert {key: settings[key] for key in written} == written and settings["drop"] == ["model.odd."]
    assert command(*words, *how, "--device", "cpu") == 0, "answers do not hang on the device: the run goes on"
    assert command(*words) == 1
    assert "dtype was 'bfloat16', is 'float32'; quantize was '8bit', is None" in capsys.readouterr().err


def test_a_folder_whose_settings_do_not_say_how_the_model_was_loaded_goes_on(tmp_path, capsys):
    words = ["predict", "caption", *SMALL[:-1], "--out", tmp_path / "out"]
    assert command(*words) == 0
    path = tmp_path / "out" / "settings.json"
    settings = json.loads(path.read_text())
    loading = {key: settings.pop(key) for key in ("dtype", "quantize", "vision_tower", "drop")}
    assert loading == {"dtype": "float32", "quantize": None, "vision_tower": None, "drop": []}
    path.write_text(json.dumps(settings))
    assert command(*words, "--dtype", "bfloat16") == 1
    assert "dtype was 'float32', is 'bfloat16'" in capsys.readouterr().err
    assert command(*words) == 0


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    def process(rank: int, world: int = 4) -> SimpleNamespace:
        return SimpleNamespace(local_process_index=rank, num_processes=world)

    assert choose_device(None, process(0, 1)) is None and choose_device("auto", process(0, 1)) == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None, process(1)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(None, process(rank)) for rank in range(4)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert choose_device("cpu", process(1)) == "cpu"
    with pytest.raises(ValueError, match="'auto'.* 4 processes"):
        choose_device("auto", process(1))


def test_several_machines_need_a_folder_that_they_share(oracle, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert command("evaluate", "gcg", *SMALL) == 1 and "--out" in capsys.readouterr().err and not oracle.loaded


def test_a_process_alone_is_the_first():
    found = find_processes()
    assert found.num_processes == 1 and found.is_main_process


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
