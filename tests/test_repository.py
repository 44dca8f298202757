"""The house rules, held: folders import downwards, documents name what exists."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "glamm_mini"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room imports only from those left of it. What is UNDER lies under all; the annexes may import the
# library and each other in their own order, and nothing of the library imports them.
UNDER = ("paths", "registry", "dtypes", "ranges", "arguments")
ROOMS = (
    "model", "processing", "checkpoints", "visuals", "assistant", "data", "evaluation", "training", "grand", "cli",
)  # fmt: skip
ANNEXES = ("storybook", "checks", "course")
RANK = {name: rank for rank, name in enumerate((*UNDER, *ROOMS, *ANNEXES))}
LAZY = {("model", "course")}
"""May be imported inside functions: a configuration reports its model's memory."""
LIMITS = {
    "library": 11_044, "model": 1_500, "processing": 908, "checkpoints": 2_032, "visuals": 675, "assistant": 1_041,
    "evaluation": 1_529, "training": 1_840, "cli": 958,
}  # fmt: skip
"""Lines that all rooms together, and a room, have at most: they may shrink. The aim is 9,500 in all, 1,500 for the
model, 900 for processing, 1,200 for checkpoints, 1,800 for training."""


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def room(path: Path) -> str:
    """The folder or top-level module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[tuple[str, bool, int]]:
    """Modules of the package that a module imports: (dotted name without the package, inside a function, line)."""
    inside = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("glamm_mini."):
                found.append((name.removeprefix("glamm_mini."), id(node) in inside, node.lineno))
    return found


def order_faults(name: str, text: str) -> list[str]:
    own = name.split("/")[0].removesuffix(".py")
    faults = []
    for module, inside, line in imports_of(ast.parse(text)):
        other = module.split(".")[0]
        if other not in RANK:
            continue
        allowed = other == own or RANK[other] < RANK[own] or (inside and (own, other) in LAZY)
        if not allowed:
            faults.append(f"{name}:{line} imports {other}, which is not left of {own}")
    return faults


def test_the_package_holds_the_rooms_that_the_readme_names_in_order():
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(RANK), f"add to ROOMS: {sorted(rooms - set(RANK))}"
    named = re.findall(r"^\| `glamm_mini/(\w+)/`", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert named == [name for name in (*ROOMS, *ANNEXES) if (PACKAGE / name).is_dir()]


def test_rooms_import_only_from_their_left():
    faults = []
    for path in MODULES:
        if room(path) != "__init__":
            faults += order_faults(str(path.relative_to(PACKAGE)), path.read_text("utf-8"))
    assert not faults, "\n".join(faults)


def test_the_order_test_sees_faults():
    assert order_faults("model/a.py", "from glamm_mini.processing import boxes")
    assert order_faults("model/a.py", "def f():\n    import glamm_mini.visuals")
    assert order_faults("assistant/a.py", "from glamm_mini.evaluation import masks")
    assert not order_faults("assistant/a.py", "from glamm_mini.visuals import palette")
    assert not order_faults("model/a.py", "from glamm_mini.model.tokens import SEG")
    assert order_faults("model/a.py", "from glamm_mini import training")
    assert order_faults("cli/a.py", "from glamm_mini.storybook import dataset")
    assert not order_faults("course/a.py", "from glamm_mini.storybook import dataset")
    assert order_faults("model/a.py", "import glamm_mini.course.memory.memory_report")
    assert not order_faults("model/a.py", "def f():\n    import glamm_mini.course.memory.memory_report")
    assert order_faults("registry.py", "from glamm_mini.model import glamm")


def circle(imports: dict[str, set[str]]) -> list[str] | None:
    """Modules that import one another, from one around to itself; None where there is no such circle."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_module_imports_itself_in_a_circle():
    names = {str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".") for path in MODULES}
    imports: dict[str, set[str]] = {}
    for path in MODULES:
        own = str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
        imports[own] = set()
        for module, inside, _ in imports_of(ast.parse(path.read_text("utf-8"))):
            # `from a.b import c`: c is a module, or a name in the module a.b.
            for target in (module, module.rpartition(".")[0], f"{module}.__init__"):
                if not inside and target in names and target != own:
                    imports[own].add(target)
                    break
    assert sum(map(len, imports.values())) > 300
    found = circle(imports)
    assert found is None, " <- ".join(found)


def test_the_circle_test_sees_circles():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}) is None
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})) == {"b", "c"}


def test_no_two_modules_have_one_name():
    places: dict[str, list[str]] = {}
    for path in MODULES:
        name = path.relative_to(PACKAGE)
        lesson = name.parts[0] == "course" and name.parts[1].startswith("room_")
        if name.stem != "__init__" and name.parts[0] != "cli" and not lesson:
            places.setdefault(name.stem, []).append(str(name))
    twice = [", ".join(found) for found in places.values() if len(found) > 1]
    assert not twice, "modules with one name:\n" + "\n".join(twice)


@pytest.mark.parametrize("part", LIMITS)
def test_rooms_are_small(part):
    """Lines of a room, or of all rooms without the annexes."""
    files = [p for p in MODULES if room(p) == part or (part == "library" and room(p) not in ANNEXES)]
    lines = sum(len(path.read_text("utf-8").splitlines()) for path in files)
    assert 0 < lines <= LIMITS[part], f"{part} has {lines} lines; it may have {LIMITS[part]}"


def test_no_module_is_a_scrap():
    """A room of the course has a file for its lesson, its grader and its pictures, however short each is."""
    files = [p for p in MODULES if p.name != "__init__.py" and not p.parent.name.startswith("room_")]
    lines = {str(path.relative_to(PACKAGE)): len(path.read_text("utf-8").splitlines()) for path in files}
    scraps = {name: count for name, count in lines.items() if count < 25}
    assert not scraps, f"modules under 25 lines: {scraps}; put each where it is used"


def test_modules_are_short_and_documented():
    faults = []
    for path in MODULES:
        text, name = path.read_text("utf-8"), path.relative_to(ROOT)
        if len(text.splitlines()) > 400:
            faults.append(f"{name} has {len(text.splitlines())} lines; a file has at most 400")
        tree = ast.parse(text)
        if not ast.get_docstring(tree):
            faults.append(f"{name} has no docstring")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    faults.append(f"{name}:{node.lineno} {node.name} has no docstring")
    assert not faults, "\n".join(faults)


def test_functions_are_short():
    faults = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert not faults, "functions of 60 lines or more:\n" + "\n".join(faults)


def test_versions_agree(project):
    import glamm_mini

    assert project["version"] == glamm_mini.__version__
    assert f"## {project['version']}" in (ROOT / "CHANGES.md").read_text()


def test_documents_name_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    documents = [ROOT / "README.md", ROOT / "troubleshooting.md", ROOT / "Makefile", ROOT / ".ci" / "run"]
    documents += [*ROOT.glob("data/**/*.md"), *ROOT.glob("tests/*.md"), *ROOT.glob("notebooks/*.md")]
    for document in documents:
        named = set(re.findall(r"(?:`|^\s*)make ([a-z-]+)", document.read_text(), re.M))
        assert named <= targets, f"{document.name} names {sorted(named - targets)}"


def test_readme_shows_the_two_commands_and_commands_that_exist():
    from glamm_mini.cli.main import COMMANDS

    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^make demo\b", readme, re.M) and re.search(r"^make test\b", readme, re.M)
    assert set(re.findall(r"^glamm-mini ([a-z]+)", readme, re.M)) <= set(COMMANDS)


def test_links_between_documents_lead_somewhere():
    for document in [path for folder in (".", "tests", "notebooks", "data") for path in (ROOT / folder).glob("*.md")]:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_readme_lists_folders_that_exist():
    for name in re.findall(r"^\| `([\w./-]+/)`", (ROOT / "README.md").read_text(), re.M):
        assert (ROOT / name).is_dir(), f"README lists {name}"


def test_citation_parses_and_cites_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["title"] and citation["authors"]
    [paper] = [r for r in citation["references"] if r["type"] == "conference-paper"]
    assert paper["title"].startswith("GLaMM: Pixel Grounding Large Multimodal Model")
    assert paper["year"] == 2024 and paper["authors"][0]["family-names"] == "Rasheed"


def test_license_is_apache(project):
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text and project["license"] == "Apache-2.0"


def test_importing_the_package_takes_no_torch():
    code = "import sys, glamm_mini, glamm_mini.cli.main, glamm_mini.cli.demo; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"


def test_public_names_are_real():
    import glamm_mini

    for name in glamm_mini.__all__:
        assert getattr(glamm_mini, name) is not None
    assert set(glamm_mini.__all__) <= set(dir(glamm_mini))
    with pytest.raises(AttributeError, match="offers .*load"):
        _ = glamm_mini.lode


def test_bundled_pictures_are_what_the_script_renders(tmp_path):
    script = [sys.executable, str(ROOT / "figures" / "make_samples.py"), "--out", str(tmp_path)]
    subprocess.run(script, check=True, capture_output=True, cwd=ROOT)
    bundled = ROOT / "data" / "samples"
    names = sorted(path.name for path in bundled.glob("*.png"))
    assert names == sorted(path.name for path in tmp_path.glob("*.png")), "run `make samples`"
    for name in names:
        kept, drawn = (np.asarray(Image.open(folder / name).convert("RGB"), int) for folder in (bundled, tmp_path))
        assert kept.shape == drawn.shape and max(kept.shape) == 512
        assert np.abs(kept - drawn).max() <= 1, f"{name} shows an older world: run `make samples`"
        assert (bundled / name).stat().st_size < 150_000


def test_the_readme_counts_the_words_of_the_world():
    from glamm_mini.storybook.language.tasks import corpus_words

    words = {word.lower() for word in corpus_words() if word[0].isalpha()}
    assert f"the {len(words)} of its world" in (ROOT / "README.md").read_text("utf-8").replace("\n", " ")
