"""What keeps the course whole: no drift, badges, bands, the class's copy, costs."""

import importlib
import json
import linecache
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from glamm_mini.course.room_00.grader import grade_phrases
from glamm_mini.course.sameness import RECORD, band, bare, definitions, same_code

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "notebooks"))
badges, bands, classroom, costs, execute = (
    importlib.import_module(name) for name in ("badges", "bands", "classroom", "costs", "execute")
)

FULL = '''
class Thing:
    """What it is."""

    size: int = 3
    name: str

    def grow(self, by: float = 1.0) -> "Thing":
        """More of it."""
        step: float = 2 * by  # why
        return step
'''
SHORT = """
class Thing:
    size = 3
    name
    def grow(self, by=1.0):
        step = 2 * by
        return step
"""


def only(source):
    [node] = definitions(source).values()
    return bare(node)


def test_words_about_code_do_not_count_and_code_does():
    assert only(FULL) == only(FULL.replace("More of it.", "Less.")) == only(FULL.replace("  # why", ""))
    assert only(FULL) == only(FULL.replace(": float = 1.0", "=1.0").replace(' -> "Thing"', ""))
    for changed in (("2 * by", "3 * by"), ("size: int = 3", "size: int = 4"), ("name: str", "names: str")):
        assert only(FULL) != only(FULL.replace(*changed)), changed
    assert only("def f(x: int):\n    y: int = x\n    return y") == only("def f(x):\n    y = x\n    return y")
    assert only("def f():\n    'words'") == only("def f():\n    pass")


def test_same_code_reads_a_class_of_a_cell(monkeypatch, tmp_path):
    name = str(tmp_path / "ipykernel_1" / "2.py")
    source = "%matplotlib inline\nclass Grade:\n    passed: bool\n"
    monkeypatch.setitem(linecache.cache, name, (len(source), None, source.splitlines(True), name))
    space = {"__name__": "cell"}
    exec(compile(source.partition("\n")[2], name, "exec"), space)
    with pytest.raises(AssertionError, match="Grade differs from glamm_mini/course/grading.py"):
        same_code(space["Grade"], "glamm_mini.course.grading")
    nowhere = type("Nowhere", (), {"__module__": "cell"})
    with pytest.raises(AssertionError, match="defines no Nowhere"):
        same_code(nowhere, "glamm_mini.course.grading")


def test_same_code_says_where_and_what_differs():
    assert same_code(grade_phrases, "glamm_mini.course.room_00.grader").startswith(
        "same code as in glamm_mini/course/room_00/grader.py"
    )

    def grade_overlap(function):
        return function

    with pytest.raises(AssertionError, match="grade_overlap differs from glamm_mini/course/room_00/grader.py, line"):
        same_code(grade_overlap, "glamm_mini.course.room_00.grader")
    with pytest.raises(AssertionError, match="defines no band"):
        same_code(band, "glamm_mini.course.room_00.grader")


def test_a_band_is_checked_and_recorded(tmp_path, monkeypatch):
    assert band("loss", 0.5, 0, 1) == "✓ loss: 0.5, between 0 and 1"
    monkeypatch.setenv(RECORD, str(tmp_path / "record.jsonl"))
    for value in (1.5, float("nan")):
        with pytest.raises(AssertionError, match="outside of 0 to 1"):
            band("loss", value, 0, 1)
    lines = (tmp_path / "record.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[0]) == {"name": "loss", "value": 1.5, "low": 0, "high": 1}


def trained():
    cells = [new_code_cell("seed = 0", metadata={"tags": ["seed"]})]
    source = "from glamm_mini.course.sameness import band\nprint(band('twice', 2 * seed, 0, 3))"
    return new_notebook(cells=[*cells, new_code_cell(source)], metadata=execute.METADATA)


@pytest.mark.slow
def test_bands_are_run_with_other_seeds(tmp_path, monkeypatch):
    nbformat.write(trained(), tmp_path / "one.ipynb")
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")], metadata=execute.METADATA), tmp_path / "two.ipynb")
    monkeypatch.setattr(bands, "RESULTS", tmp_path / "bands.json")
    arguments = ["bands.py", "--seeds", "1", "2", "--", str(tmp_path / "one.ipynb"), str(tmp_path / "two.ipynb")]
    monkeypatch.setattr(sys, "argv", arguments)
    bands.main()
    kept = json.loads((tmp_path / "bands.json").read_text())
    assert set(kept) == {"one"} and kept["one"]["figures"] == {
        "twice": {"low": 0, "high": 3, "seeds": {"1": 2, "2": 4}}
    }
    assert nbformat.read(tmp_path / "one.ipynb", as_version=4).cells[0].source == "seed = 0"


def test_a_seed_cell_without_a_seed_is_an_error():
    notebook = trained()
    notebook.cells[0].source = "random_state = 3"
    with pytest.raises(ValueError, match="seed = 0"):
        bands.with_seed(notebook, 1)


def page():
    setup = new_code_cell("", metadata={"tags": ["setup"]})
    return new_notebook(cells=[new_markdown_cell("# 01 · A title\n\nWords."), setup])


FAKE_PIP = """#!/bin/sh
if [ "$1" = list ]; then printf 'numpy==2.0.2\\ntorch==2.11.0+cu128\\ntorchaudio==2.11.0\\n'; else
printf '%s\\n' "$@" > asked; cp "$4" kept; fi
"""


@pytest.mark.skipif(shutil.which("sh") is None, reason="the cell's line is for Linux")
def test_the_setup_cell_keeps_the_platforms_torch_and_pins_nothing_else(tmp_path):
    (tmp_path / "pip").write_text(FAKE_PIP, encoding="utf-8")
    (tmp_path / "pip").chmod(0o755)
    line = badges.setup_source("https://github.com/someone/glamm").splitlines()[0]
    (tmp_path / "here").mkdir()
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", line.removeprefix("!")], cwd=tmp_path / "here", env=environment, check=True)
    asked = (tmp_path / "here" / "asked").read_text("utf-8").splitlines()
    assert asked[:3] == ["install", "-q", "-c"] and asked[4:] == [
        "glamm-mini[train,eval] @ git+https://github.com/someone/glamm"
    ]
    assert (tmp_path / "here" / "kept").read_text("utf-8") == "torch==2.11.0+cu128\ntorchaudio==2.11.0\n"


def test_badges_come_and_go_with_the_address():
    url = "https://github.com/someone/glamm-mini"
    bare_page = badges.dressed(page(), "", "01_a.ipynb")
    assert bare_page.cells[0].source == "# 01 · A title\n\nWords." and "pip install FOLDER" in bare_page.cells[1].source
    dressed = badges.dressed(page(), url, "01_a.ipynb")
    title, badge, words = dressed.cells[0].source.split("\n\n")
    assert "(https://colab.research.google.com/github/someone/glamm-mini/blob/main/notebooks/01_a.ipynb)" in badge
    assert f"({url}/blob/main/notebooks/01_a.ipynb)" in badge and words == "Words."
    assert f"git+{url}" in dressed.cells[1].source and 'append("..")' in dressed.cells[1].source
    again = badges.dressed(nbformat.from_dict(dressed), url, "01_a.ipynb")
    assert again.cells[0].source == "\n\n".join([title, badge, words])
    assert badges.dressed(again, "", "01_a.ipynb").cells[0].source == bare_page.cells[0].source
    assert 'append("../..")' in badges.dressed(page(), "", "solutions/01_a.ipynb").cells[1].source
    with pytest.raises(ValueError, match="0 cells with the tag 'setup'"):
        badges.dressed(new_notebook(cells=[new_markdown_cell("# a\n\nb")]), "", "a.ipynb")


def test_the_class_gets_neither_outputs_nor_solutions(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["classroom.py", str(tmp_path / "class")])
    classroom.main()
    names = sorted(path.name for path in (tmp_path / "class" / "notebooks").iterdir())
    assert names == sorted(path.name for path in execute.FOLDER.glob("*.ipynb"))
    for name in names:
        notebook = nbformat.read(tmp_path / "class" / "notebooks" / name, as_version=4)
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
        assert "solutions/" not in "".join(cell.source for cell in notebook.cells)
        assert any("Exercises" in cell.source for cell in notebook.cells)
    with pytest.raises(SystemExit, match="is not empty"):
        classroom.main()


def test_a_fingerprint_is_of_the_code_alone():
    notebook = page()
    first = costs.fingerprint(notebook)
    notebook.cells[0].source, notebook.cells[1].source = "# Other", "import sys"
    assert costs.fingerprint(notebook) == first
    notebook.cells.append(new_code_cell("1", outputs=[new_output("stream", text="a")]))
    assert costs.fingerprint(notebook) != first
