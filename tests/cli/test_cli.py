"""The command: finds its parts lazily, answers about pictures, explains what is wrong."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import glamm_mini
from glamm_mini.assistant.assistant import GroundedAnswer, GroundedPhrase
from glamm_mini.cli import main as cli
from glamm_mini.cli.demo import check_boxes, names_of
from glamm_mini.cli.evaluate import kinds_table
from glamm_mini.processing.images import load_image

ROOT = Path(__file__).resolve().parents[2]


class FakeAssistant:
    """Answers every question with one phrase for the left half of the picture; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def ask(self, image, text, boxes=None):
        self.asked.append((Path(image).name, text, boxes))
        picture = load_image(image)
        mask = np.zeros(picture.shape[:2], bool)
        mask[:, : mask.shape[1] // 2] = True
        phrase = GroundedPhrase("the left half", (3, 16), mask, (0, 0, mask.shape[1] // 2, mask.shape[0]), 0.9)
        tagged = "In <p> the left half </p> [SEG] all is well."
        return GroundedAnswer(tagged, "In the left half all is well.", [phrase], ["a note"], picture, text)

    def describe(self, image):
        return self.ask(image, "describe")


@pytest.fixture
def assistant(monkeypatch):
    fake = FakeAssistant()
    fake.loaded = []

    def load(name, **how):
        fake.loaded.append(name)
        fake.how = how
        return fake

    monkeypatch.setattr(glamm_mini, "load", load, raising=False)
    return fake


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for name, size in (("one", (40, 30)), ("two", (60, 20))):
        paths.append(tmp_path / f"{name}.png")
        Image.new("RGB", size, (90, 160, 200)).save(paths[-1])
    return paths


def run(*arguments, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


def test_demo_describes_one_picture(assistant, pictures, tmp_path, capsys):
    status, out, _ = run("demo", pictures[0], "--out", tmp_path / "out", capsys=capsys)
    assert status == 0
    assert "In the left half all is well." in out and "note: a note" in out
    assert out.splitlines()[-1] == str(tmp_path / "out" / "one.png")
    assert sorted(p.name for p in (tmp_path / "out").glob("[!.]*")) == ["one.html", "one.json", "one.png"]
    assert assistant.asked == [("one.png", "describe", None)] and assistant.loaded == ["tiny"]
    record = json.loads((tmp_path / "out" / "one.json").read_text())
    assert record["image_id"] == "one" and record["phrases"] == ["the left half"]
    assert record["pred_masks"][0]["size"] == [30, 40]
    assert "the left half</span>" in (tmp_path / "out" / "one.html").read_text()


def test_demo_composes_several_pictures(assistant, pictures, tmp_path, capsys):
    status, out, _ = run("demo", *pictures, "--out", tmp_path / "out", "--model", "mine", capsys=capsys)
    assert status == 0 and assistant.loaded == ["mine"]
    assert out.splitlines()[-1] == str(tmp_path / "out" / "overview.png")
    sheet, card = (Image.open(tmp_path / "out" / name) for name in ("overview.png", "one.png"))
    assert sheet.width > 2 * card.width


def test_demo_asks_with_boxes(assistant, pictures, tmp_path, capsys):
    words = ["demo", pictures[0], "--ask", "Is <bbox> above <bbox>?"]
    words += ["--box", 1, 2, 10, 20.5, "--box", -3, 0, 5, 6, "--out", tmp_path / "out"]
    assert run(*words, capsys=capsys)[0] == 0
    assert assistant.asked == [("one.png", "Is <bbox> above <bbox>?", [(1, 2, 10, 20.5), (-3, 0, 5, 6)])]


def test_demo_without_pictures_takes_the_bundled_ones(assistant, tmp_path, capsys):
    status, out, _ = run("demo", "--out", tmp_path / "out", capsys=capsys)
    assert status == 0
    bundled = sorted(p.name for p in (ROOT / "data" / "samples").glob("*.png"))
    assert [name for name, _, _ in assistant.asked] == bundled and len(bundled) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "no picture at missing.png"),
        (["--ask", "What?", "--box", "5", "5", "2", "9"], "--box 5 5 2 9 is no box; expected four numbers"),
        (["--ask", "What?", "--box", "5", "5", "8"], "--box 5 5 8 is no box"),
        (["--ask", "What?", "--box", "a", "b", "c", "d"], "--box a b c d is no box"),
        (["--box", "1", "2", "3", "4"], "--box needs a question"),
    ],
)
def test_demo_explains_bad_input(assistant, words, message, capsys):
    status, out, err = run("demo", *words, capsys=capsys)
    assert status == 1 and err.startswith("error: ") and message in err and "Traceback" not in err
    assert assistant.loaded == [], "bad input is found before the model is loaded"


def test_demo_loads_as_it_is_told(assistant, pictures, tmp_path, capsys):
    words = ["demo", pictures[0], "--out", tmp_path / "out", "--device", "auto", "--dtype", "bfloat16"]
    words += ["--vision-tower", "clip", "--offload-folder", "off", "--drop", "a.", "--drop", "b."]
    assert run(*words, capsys=capsys)[0] == 0
    given = {"device": "auto", "dtype": "bfloat16", "quantize": None, "vision_tower": "clip"}
    assert assistant.how == given | {"offload_folder": Path("off"), "drop": ("a.", "b."), "lora": None}
    assert run("demo", pictures[0], "--out", tmp_path / "out", "--quantize", "4bit", capsys=capsys)[0] == 0
    assert (assistant.how["device"], assistant.how["dtype"], assistant.how["quantize"]) == (None, "float32", "4bit")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "int7"], "dtype is 'int7'; expected float32, bfloat16"),
        (["--quantize", "2bit"], "quantize is '2bit'; expected None, '4bit' or '8bit'"),
        (["--device", "cpu", "--offload-folder", "off"], "offload_folder belong to device='auto'"),
        (["--vision-tower", "clip"], "vision_tower belongs to official checkpoints"),
        (["--drop", "model.odd."], "drop belongs to official ones"),
    ],
)
def test_demo_explains_how_it_cannot_load(pictures, tmp_path, words, message, capsys):
    status, out, err = run("demo", pictures[0], "--out", tmp_path / "out", *words, capsys=capsys)
    assert status == 1 and err.startswith("error: ") and message in err and out == ""
    assert not (tmp_path / "out").exists()


def test_demo_explains_a_broken_picture(assistant, pictures, tmp_path, capsys):
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])
    status, _, err = run("demo", *pictures, "--out", tmp_path / "out", capsys=capsys)
    assert status == 1 and "two.png cannot be read as an image" in err and assistant.loaded == []


def test_traceback_is_shown_on_request(assistant, monkeypatch):
    monkeypatch.setenv("GLAMM_MINI_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["demo", "missing.png"])


def test_names_do_not_collide():
    paths = [Path("a/cat.png"), Path("b/cat.jpg"), Path("overview.png")]
    assert names_of(paths) == ["cat", "cat-2", "overview-2"]
    assert check_boxes([]) is None and check_boxes(["1,2,3,4"]) == [(1, 2, 3, 4)]
    with pytest.raises(ValueError, match="is no box"):
        check_boxes(["nan 0 1 1"])


def test_boxes_are_joined_wherever_they_stand():
    assert cli.join_boxes(["demo", "--box", "1", "2", "3", "4", "a.png"]) == ["demo", "--box", "1 2 3 4", "a.png"]
    assert cli.join_boxes(["--box", "1", "2", "--ask", "x"]) == ["--box", "1 2", "--ask", "x"]
    assert cli.join_boxes(["--box"]) == ["--box", ""]
    for given in ("1,2,3,4", "1 2 3 4", "1, 2, 3, 4"):
        assert cli.join_boxes(["demo", "--box", given, "a.png"]) == ["demo", "--box", given, "a.png"]
    assert cli.join_boxes(["--box", "1,2", "3,4", "a.png"]) == ["--box", "1,2 3,4", "a.png"]


def test_help_lists_all_commands_and_imports_no_torch():
    code = "\n".join(
        [
            "import sys",
            "from glamm_mini.cli.main import main",
            "try: main(['--help'])",
            "finally: assert 'torch' not in sys.modules",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert name in done.stdout


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_real_and_has_help(name, capsys):
    assert callable(cli.load_command(name))
    status, out, _ = run(name, "--help", capsys=capsys)
    assert status == 0 and f"glamm-mini {name}" in out and "--" in out


def test_an_unknown_command_is_an_error(capsys):
    status, _, err = run("dance", capsys=capsys)
    assert status == 2 and "dance" in err


def test_a_missing_extra_is_named(monkeypatch, capsys):
    def command():
        raise ModuleNotFoundError("No module named 'peft'", name="peft")

    monkeypatch.setattr(cli, "load_command", lambda name: command)
    status, _, err = run("train", capsys=capsys)
    assert status == 1 and "`glamm-mini train` needs the module 'peft'" in err and '"glamm-mini[train]"' in err


def test_a_library_that_is_too_old_is_named(monkeypatch, capsys):
    def command():
        raise ImportError("transformers>=5.17.0 is required, but found transformers==5.12.0")

    monkeypatch.setattr(cli, "load_command", lambda name: command)
    status, _, err = run("train", capsys=capsys)
    assert status == 1 and "transformers==5.12.0" in err and "Traceback" not in err


def test_a_broken_install_is_named(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "train", ("glamm_mini.cli.absent", "Absent."))
    status, _, err = run("train", capsys=capsys)
    assert status == 1 and "glamm_mini.cli.absent" in err and "incomplete" in err


def test_extras_of_modules_agree_with_the_requirements():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for module, extra in cli.MODULES_OF_EXTRAS.items():
        assert any(line.startswith(module) for line in extras[extra]), f"{module} is not in {extra}"


def test_kinds_are_shown_as_they_are_written(capsys):
    kinds = {"[bold]box": {"accuracy": 0.5, "questions": 4}, "count": {"accuracy": None, "questions": 1}}
    Console(width=80).print(kinds_table(kinds))
    shown = capsys.readouterr().out
    assert "[bold]box" in shown and "0.5000" in shown and "count" in shown
