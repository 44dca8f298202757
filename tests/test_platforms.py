"""What keeps the project running on Windows and macOS, as far as any system can tell."""

import ast
import io
import pickle
import sys
from pathlib import Path

import pytest
import torch

from glamm_mini.cli import main as cli
from glamm_mini.cli.demo import names_of
from glamm_mini.training.data_order import Batches
from glamm_mini.training.finetune import collate_for
from glamm_mini.training.logs import LossWindow, sum_type
from glamm_mini.training.recipes import read_recipe
from glamm_mini.training.settings import TrainSettings

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [path for name in ("glamm_mini", "notebooks", "figures") for path in (ROOT / name).rglob("*.py")]
POSIX = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
RESERVED = {"con", "prn", "aux", "nul"}


def habits(text: str) -> list[str]:
    """Lines of a source that work on POSIX alone: texts in the system's own encoding, modules of Unix at its head."""
    tree, found = ast.parse(text), []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            found += [f"{node.lineno}: {module}"] if module in POSIX else []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        needed = {"read_text": 1, "write_text": 2}.get(name)
        bare_open = isinstance(node.func, ast.Name) and name == "open"
        binary = any(isinstance(a, ast.Constant) and "b" in str(a.value) for a in node.args[1:])
        if (needed is not None and len(node.args) < needed) or (bare_open and not binary):
            found.append(f"{node.lineno}: {name} without an encoding")
    return found


def test_the_search_for_habits_finds_them():
    assert len(habits("import fcntl\nfrom resource import getrlimit\np.read_text()\np.write_text(t)\nopen(p)")) == 5
    assert not habits("if nt:\n    pass\nelse:\n    import fcntl")
    assert not habits("p.read_text('utf-8')\np.write_text(t, encoding='utf-8')\nopen(p, 'rb')\nimage.open(p)")


def test_sources_have_no_habits_of_posix():
    faults = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES for line in habits(path.read_text("utf-8"))]
    assert not faults, "\n".join(faults)


def test_every_system_can_hold_the_files():
    folders = [ROOT / name for name in ("glamm_mini", "tests", "notebooks", "figures", "data")]
    names = [path.relative_to(ROOT).as_posix() for folder in folders for path in folder.rglob("*")]
    assert len({name.casefold() for name in names}) == len(names), "two files whose names differ in case alone"
    for name in names:
        assert len(name) < 150 and not set(name) & set(':*?"<>|\\'), name
        assert not RESERVED & {part.split(".")[0].casefold() for part in name.split("/")}, name


def test_workers_get_their_work_by_pickle(processor, samples):
    # Where processes are not forked, as on Windows and macOS, a worker gets a pickled copy.
    collate = collate_for(processor, read_recipe("gcg", "tiny"))
    batches = Batches(samples, collate, TrainSettings(batch_size=2))
    here, there = batches[0], pickle.loads(pickle.dumps(batches))[0]
    assert set(here) == set(there)
    assert all(torch.equal(here[key], there[key]) for key in here if isinstance(here[key], torch.Tensor))


def test_losses_are_summed_on_devices_without_float64():
    assert sum_type(torch.device("mps")) == torch.float32 and sum_type(torch.device("cpu")) == torch.float64
    window = LossWindow()
    window.add({"ce": torch.tensor(0.1, dtype=torch.float32)})
    assert window.sums["ce"].dtype == torch.float64


def test_pictures_whose_names_differ_in_case_get_files_of_their_own():
    assert names_of([Path("Cat.png"), Path("cat.jpg"), Path("Overview.png")]) == ["Cat", "cat-2", "Overview-2"]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_words_that_a_terminal_cannot_show_end_no_command(monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli, "load_command", lambda name: lambda: print("a cat, 猫"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo"])
    out.flush()
    assert ended.value.code == 0 and out.buffer.getvalue().split() == [b"a", b"cat,", b"\\u732b"]
