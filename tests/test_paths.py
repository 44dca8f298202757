"""Bundled files are found in a clone and in an installed wheel, and a missing one is explained."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from glamm_mini import paths

ROOT = Path(__file__).resolve().parent.parent


def test_a_clone_has_its_data_beside_the_package():
    assert paths.data_folder() == ROOT / "data"
    assert paths.samples_folder() == ROOT / "data" / "samples"
    assert len(list(paths.samples_folder().glob("*.png"))) == 4


def test_a_checkpoint_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "data" / "checkpoints" / "tiny").mkdir(parents=True)
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "glamm_mini")
    assert paths.checkpoint_folder("tiny") == tmp_path / "data" / "checkpoints" / "tiny"
    with pytest.raises(FileNotFoundError, match=r"no bundled checkpoint 'small'.*holds tiny.*make tiny"):
        paths.checkpoint_folder("small")
    for name in ("", ".", "..", "../checkpoints/tiny"):
        with pytest.raises(FileNotFoundError):
            paths.checkpoint_folder(name)


def test_missing_data_is_explained(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "glamm_mini")
    with pytest.raises(FileNotFoundError, match="Reinstall the package"):
        paths.data_folder()


def test_a_wheel_carries_the_data_and_finds_it(tmp_path):
    pytest.importorskip("build", reason="building a wheel needs the dev extra")
    pytest.importorskip("hatchling", reason="building a wheel needs the dev extra")
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("glamm_mini", "data"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, clone / name)
    # Weights are left out of the copy to keep the test small; one small file stands for them.
    (clone / "data" / "checkpoints" / "probe").mkdir()
    (clone / "data" / "checkpoints" / "probe" / "model.safetensors").write_bytes(b"weights")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(clone)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "glamm_mini/_data/checkpoints/probe/model.safetensors" in names
    assert sum(n.startswith("glamm_mini/_data/samples/") and n.endswith(".png") for n in names) == 4
    assert {"glamm_mini/training/recipes/official.toml", "glamm_mini/training/recipes/gcg.toml"} <= set(names)
    assert not [n for n in names if n.startswith(("tests/", "data/", "notebooks/"))]

    shutil.rmtree(clone)
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*install, "--target", str(site), str(wheel)], check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from glamm_mini import paths\n"
        "print(paths.__file__); print(paths.checkpoint_folder('probe')); print(paths.samples_folder())\n"
        "from itertools import islice\n"
        "from glamm_mini.checks.parity import case, compare\n"
        "rows = compare.compare_case(case.ReferenceCase(paths.parity_folder() / 'case_small'))\n"
        "print([row.ok for row in islice(rows, 9)].count(True))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=empty)
    module, probe, samples, agree = done.stdout.splitlines()
    assert agree == "9"  # the numbers of the official vision tower and projector
    assert Path(module).is_relative_to(site)
    assert Path(probe) == site / "glamm_mini" / "_data" / "checkpoints" / "probe"
    assert Path(samples) == site / "glamm_mini" / "_data" / "samples"
