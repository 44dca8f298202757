"""Requirements: what is declared is what is imported, everything has a floor, and all places agree on them."""

import ast
import importlib
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import glamm_mini.model

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CALLED = {"pillow": "PIL", "pyyaml": "yaml", "ipython": "IPython"}
"""Packages whose module has another name."""


def modules_of(lines: list[str]) -> set[str]:
    """The modules that requirements bring."""
    names = [re.split(r"[\[>]", line)[0] for line in lines]
    return {CALLED.get(name, name.replace("-", "_")) for name in names}


def imported(text: str) -> set[str]:
    """Top-level modules of other packages that a source imports, wherever it does; TensorBoard comes through torch."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        found |= {"tensorboard" if name.startswith("torch.utils.tensorboard") else name.split(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"glamm_mini"}


def test_the_search_for_imports_finds_them():
    assert imported("import a.b, os\ndef f():\n    from c.d import e\n    from . import g") == {"a", "c"}
    assert imported("from torch.utils.tensorboard import SummaryWriter") == {"tensorboard"}


def test_the_package_declares_what_it_imports_and_imports_what_it_declares():
    used = set().union(*(imported(path.read_text("utf-8")) for path in (ROOT / "glamm_mini").rglob("*.py")))
    declared = modules_of(PROJECT["dependencies"] + EXTRAS["train"] + EXTRAS["eval"] + EXTRAS["quantize"])
    assert used == declared


def test_tests_and_scripts_import_what_is_declared():
    folders = [ROOT / name for name in ("tests", "notebooks", "figures")]
    paths = [path for folder in folders for path in folder.rglob("*.py")]
    known = modules_of(PROJECT["dependencies"] + [line for name in EXTRAS if name != "all" for line in EXTRAS[name]])
    known |= {path.stem for path in paths}
    for path in paths:
        text = path.read_text("utf-8")
        optional = set(re.findall(r'importorskip\("(\w+)', text))
        assert imported(text) <= known | optional, path


def test_extras_are_the_promised_ones():
    assert set(EXTRAS) == {"train", "eval", "quantize", "dev", "all"}
    assert EXTRAS["all"] == ["glamm-mini[train,eval,dev]"]


def test_requirements_have_floors_and_no_ceilings():
    for line in PROJECT["dependencies"] + [line for name in EXTRAS if name != "all" for line in EXTRAS[name]]:
        assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", line), line


def test_environment_holds_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    [pip] = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == PROJECT["dependencies"] + EXTRAS["train"] + EXTRAS["eval"] + EXTRAS["dev"] + ["-e ."]
    assert f"python{PROJECT['requires-python']}" in environment["dependencies"]


def test_an_older_transformers_is_refused_by_name(monkeypatch):
    [line] = [line for line in PROJECT["dependencies"] if line.startswith("transformers")]
    version = importlib.metadata.version
    older = {"transformers": "5.12.0"}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: older.get(name) or version(name))
    with pytest.raises(ImportError) as refused:
        importlib.reload(glamm_mini.model)
    assert line in str(refused.value) and "5.12.0" in str(refused.value) and "pip install" in str(refused.value)
