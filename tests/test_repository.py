"""The house rules, held: requirements agree, folders import downwards, documents name what exists."""

import ast
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

LIBRARY = "model processing checkpoints visuals assistant data evaluation training grand cli".split()
ANNEXES = "storybook checks course".split()
BELOW = ["paths", "registry"]
"""A room imports only from those left of it; annexes import from the library too, the library never from an annex."""
LAZY = {("model", "course")}
"""May be imported inside functions: a configuration reports its model's memory."""
ROOMS = [*BELOW, *LIBRARY, *ANNEXES]
EXTRAS = {"train", "eval", "app", "grand", "ray", "quantize", "dev", "all"}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def room(path: Path) -> str:
    """The folder or top-level module of the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[tuple[str, bool, int]]:
    """Rooms that a module imports: (room, inside a function, line)."""
    inside = {
        id(child)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{a.name}" if node.module == "glamm_mini" else node.module for a in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "glamm_mini" and len(parts) > 1 and parts[1] in ROOMS:
                found.append((parts[1], id(node) in inside, node.lineno))
    return found


def allowed(own: str) -> set[str]:
    """Rooms that a room may import."""
    if own in ANNEXES:
        return {*BELOW, *LIBRARY, *ANNEXES[: ANNEXES.index(own) + 1]}
    return {*BELOW, *LIBRARY[: LIBRARY.index(own) + 1]} if own in LIBRARY else set()


def order_faults(name: str, text: str) -> list[str]:
    own = name.split("/")[0].removesuffix(".py")
    return [
        f"{name}:{line} imports {other}, which does not come before {own}"
        for other, inside, line in imports_of(ast.parse(text))
        if other not in allowed(own) and not (inside and (own, other) in LAZY)
    ]


def test_the_package_holds_the_rooms_that_the_readme_names_in_order():
    rooms = {room(path) for path in MODULES} - {"__init__"}
    assert rooms <= set(ROOMS), f"a room without a place in the order: {sorted(rooms - set(ROOMS))}"
    named = re.findall(r"^\| `glamm_mini/(\w+)/`", (ROOT / "README.md").read_text(), re.M)
    assert named == [name for name in LIBRARY + ANNEXES if (PACKAGE / name).is_dir()]


def test_rooms_import_only_from_their_left():
    faults = []
    for path in MODULES:
        if room(path) != "__init__":
            faults += order_faults(path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8"))
    assert not faults, "\n".join(faults)


def test_the_order_test_sees_faults():
    assert order_faults("model/a.py", "from glamm_mini.processing import tags")
    assert order_faults("model/a.py", "def f():\n    import glamm_mini.processing.tags")
    assert order_faults("cli/a.py", "from glamm_mini import course")
    assert order_faults("storybook/a.py", "from glamm_mini.checks import parity")
    assert order_faults("paths.py", "from glamm_mini.model import tokens")
    assert not order_faults("model/a.py", "def f():\n    from glamm_mini.course.memory import report")
    assert order_faults("model/a.py", "from glamm_mini.course.memory import report")
    assert not order_faults("course/a.py", "from glamm_mini.cli import main")
    assert not order_faults("model/a.py", "from glamm_mini.model.tokens import SEG")


def circle(needs: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, in order; [] where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name not in done:
            for other in sorted(needs.get(name, ())):
                found = walk(other, [*way, name])
                if found:
                    return found
            done.add(name)
        return []

    return next((found for name in sorted(needs) if (found := walk(name, []))), [])


def test_no_module_imports_itself_through_others():
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    needs = {}
    for name, path in names.items():
        needs[name] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                needs[name] |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                needs[name] |= {alias.name for alias in node.names}
        needs[name] &= names.keys()
    assert not circle(needs), circle(needs)
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_modules_are_short_and_documented():
    faults = []
    for path in MODULES:
        text, name = path.read_text(), path.relative_to(ROOT)
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


def test_extras_are_the_promised_ones(project):
    extras = project["optional-dependencies"]
    assert set(extras) == EXTRAS
    named = set(re.search(r"\[(.*)\]", extras["all"][0])[1].split(","))
    assert len(extras["all"]) == 1 and named == EXTRAS - {"all", "ray", "quantize"}


def test_requirements_have_floors_and_no_ceilings(project):
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + [r for name in EXTRAS - {"all"} for r in extras[name]]:
        assert re.fullmatch(r"[a-z0-9-]+(\[[a-z]+\])?>=[0-9.]+", line), line


def test_environment_holds_the_same_requirements(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    extras = project["optional-dependencies"]
    expected = project["dependencies"] + extras["train"] + extras["eval"] + extras["dev"] + ["-e ."]
    assert pip == expected
    assert f"python{project['requires-python']}" in environment["dependencies"]


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
