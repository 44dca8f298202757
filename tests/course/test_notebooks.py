"""The notebooks: they run from top to bottom without a network, and what is stored is what a reader should see."""

import ast
import base64
import importlib
import re
import sys
from pathlib import Path

import nbformat
import pytest
from forked import forked_kernels

from glamm_mini.course.drawing.maps import ROOMS
from glamm_mini.course.sameness import bare, definitions

ROOT = Path(__file__).resolve().parents[2]
SLOWER = 3
"""How many times slower than the machine of the stated minutes a machine may be."""
MORE = 1.15
"""How many times the memory that was measured here another machine may take: how much is kept for reuse differs. Here,
forked kernels hold up to 0.3 GB less, the pages of libraries that they do not touch; `execute.py` measures all."""
IMAGE_BYTES = 300_000
NEVER = re.compile(r"\b(simply|obviously|just)\b", re.I)


sys.path.insert(0, str(ROOT / "notebooks"))
badges, bands, classroom, costs, execute = (
    importlib.import_module(name) for name in ("badges", "bands", "classroom", "costs", "execute")
)
PATHS = execute.notebooks()
ROOM_PATHS = [path for path in PATHS if path.parent.name == "notebooks"]


SOURCES = [*(ROOT / "glamm_mini").rglob("*.py")]


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def images(notebook) -> list[tuple[int, str | None]]:
    """Bytes and alternative words of every picture in the outputs; pictures inside HTML included."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                words = output.metadata.get("image/png", {}).get("alt")
                # An answer's PNG is shown only where its HTML is not; the HTML has the words.
                found.append((len(base64.b64decode(data["image/png"])), words or ("text/html" in data) or None))
            for tag in re.findall(r"<img [^>]*>", data.get("text/html", "")):
                code, alt = re.search(r'base64,([^"]*)"', tag), re.search(r'alt="([^"]+)"', tag)
                found.append((len(base64.b64decode(code[1])), alt and alt[1]))
    return found


@pytest.fixture(scope="module", params=PATHS, ids=name_of)
def stored(request):
    return nbformat.read(request.param, as_version=4)


def test_stored_outputs_are_in_order_and_without_errors(stored):
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    for cell in code:
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source


def test_nothing_stored_needs_a_running_python(stored):
    assert stored.metadata == execute.METADATA
    kinds = {kind for cell in stored.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert execute.WIDGET not in kinds and not {kind for kind in kinds if "javascript" in kind}
    assert "<script" not in "".join(
        output.get("data", {}).get("text/html", "") for cell in stored.cells for output in cell.get("outputs", [])
    )


def test_no_cell_shows_the_insides_of_an_object_by_mistake(stored):
    for cell in stored.cells:
        for output in cell.get("outputs", []):
            if "text/plain" in output.get("data", {}) and not {"image/png", "text/html"} & set(output.data):
                assert output.data["text/plain"].count("\n") < 40, f"end it with a semicolon:\n{cell.source}"


def test_pictures_are_small_and_have_words(stored):
    for size, words in images(stored):
        assert size < IMAGE_BYTES and words


def test_cells_are_short_and_words_are_plain(stored):
    for cell in stored.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 25, cell.source
            ast.parse(cell.source)
            continue
        assert not NEVER.search(cell.source), NEVER.search(cell.source)
        for paragraph in cell.source.split("\n\n"):
            if not re.match(r"[-|#<]", paragraph):
                assert len(paragraph.split()) <= 80, paragraph


def test_links_in_notebooks_lead_somewhere(stored, request):
    path = request.node.callspec.params["stored"]
    texts = [cell.source for cell in stored.cells if cell.cell_type == "markdown"]
    texts += [
        o.data["text/markdown"]
        for c in stored.cells
        for o in c.get("outputs", [])
        if "text/markdown" in o.get("data", {})
    ]
    for link in re.findall(r"\]\(([^)#\s]+)", "\n".join(texts)):
        assert "://" in link or (path.parent / link).exists(), f"{path.name} links to {link}"


@pytest.fixture(scope="module")
def package():
    """Every definition of the package, bare, by name."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for name, node in definitions(path.read_text(encoding="utf-8")).items():
            found.setdefault(name, set()).add(bare(node))
    return found


def taught(path: Path) -> dict[str, ast.stmt]:
    """What the cells of a room define at the top level, exercises aside."""
    cells = nbformat.read(path, as_version=4).cells
    code = [c.source for c in cells if c.cell_type == "code" and "exercise" not in c.metadata.get("tags", [])]
    return definitions("\n".join(re.sub(r"(?m)^\s*[%!].*", "", source) for source in code))


@pytest.mark.parametrize("path", ROOM_PATHS, ids=name_of)
def test_what_a_room_defines_is_what_the_package_holds(path, package):
    for name, node in taught(path).items():
        assert bare(node) in package.get(name, ()), f"{path.stem} defines {name}, and no module of the package holds it"


def test_no_room_copies_an_earlier_one():
    names = [name for path in ROOM_PATHS for name in taught(path)]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


@pytest.mark.parametrize("path", PATHS, ids=name_of)
def test_setup_and_badges_are_what_the_project_states(path):
    url, name = badges.repository(), path.relative_to(execute.FOLDER).as_posix()
    kept = nbformat.read(path, as_version=4)
    assert badges.dressed(nbformat.read(path, as_version=4), url, name) == kept, "run `make badges`"


def test_costs_are_those_of_the_stored_code():
    kept = costs.read()
    assert list(kept) == [path.stem for path in ROOM_PATHS], "run `make notebooks`"
    for path in ROOM_PATHS:
        assert kept[path.stem]["code"] == costs.fingerprint(nbformat.read(path, as_version=4)), f"run {path.stem} again"
        promised = execute.stated(nbformat.read(path, as_version=4))[1]
        assert kept[path.stem]["gigabytes"] <= promised <= 1.5 * kept[path.stem]["gigabytes"], path.stem
    assert costs.BETWEEN.search(costs.README.read_text())[0] == costs.table()


@pytest.mark.parametrize("path", ROOM_PATHS, ids=name_of)
def test_rooms_tell_a_whole_story(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    [room] = [room for room in ROOMS if room.name == path.stem]
    assert notebook.cells[0].source.startswith(f"# {room.number} · {room.title}\n")
    assert execute.stated(notebook), "the first cell says how long it takes on 2 CPU cores"
    assert 30 <= len(notebook.cells) <= 80
    for heading in ("Exercises", "What you can do now", "References", "Next"):
        assert f"## {heading}" in text
    assert len(images(notebook)) >= 3
    assert len([cell for cell in notebook.cells if "exercise" in cell.metadata.get("tags", [])]) >= 3
    assert (path.parent / "solutions" / path.name).exists()


def test_the_map_shows_which_rooms_are_open():
    assert [room.name for room in ROOMS if room.built] == [path.stem for path in ROOM_PATHS]
    assert [room.number for room in ROOMS] == [f"{number:02}" for number in range(16)]


def late(path: Path) -> bool:
    """Whether `make test-all` runs a notebook instead of `make test`."""
    return path.stem >= "10"


RUNS = [pytest.param(path, marks=pytest.mark.late if late(path) else ()) for path in ROOM_PATHS]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_a_room_and_its_solutions_run_from_top_to_bottom(path):
    both = [path, path.parent / "solutions" / path.name]
    with forked_kernels():
        ran = execute.run_in_turn(both)
    for place, done in zip(both, ran, strict=True):
        print(name_of(place), execute.what_it_took(done))
        before = nbformat.read(place, as_version=4)
        for fresh, kept in zip(done.notebook.cells, before.cells, strict=True):
            kinds = [[sorted(output.get("data", {})) for output in cell.get("outputs", [])] for cell in (fresh, kept)]
            assert kinds[0] == kinds[1], f"run `make notebooks`: other outputs now for\n{kept.source}"
        promise = execute.stated(before)
        if promise and done.computing is not None:
            minutes, gigabytes = promise
            assert done.computing <= 60 * minutes * SLOWER
            assert gigabytes / 3 <= done.gigabytes <= MORE * gigabytes, "state the memory that was measured, rounded up"
