"""Whatever goes wrong on the command line: one line that says what and what to do, and never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import glamm_mini
from glamm_mini import paths
from glamm_mini.cli import main as cli
from glamm_mini.cli.demo import Outputs

ROOT = Path(__file__).resolve().parents[2]
TINY = paths.checkpoint_folder("tiny")
SEASIDE = paths.samples_folder() / "seaside.png"


def run(*arguments, capsys) -> tuple[int, str]:
    """Exit status, and what stands on standard error without progress."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in arguments])
    return stop.value.code or 0, capsys.readouterr().err


def one_line(err: str) -> str:
    """The line of error; fails for a traceback, and for more than one line."""
    assert "Traceback" not in err and "is a mistake in glamm-mini" not in err, err
    [line] = [line for line in err.splitlines() if line.strip()]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("command", ["demo", "predict", "evaluate"])
@pytest.mark.parametrize("device", ["foo", "gpu", "0", "meta", "xpu", "mps", "cuda:99", "cpu:7"])
def test_a_device_that_is_not_there_is_named_beside_those_that_are(command, device, tmp_path, capsys):
    if device in ("xpu", "mps") and getattr(torch, device).is_available():
        pytest.skip(f"this machine has {device}")
    words = [command, *([SEASIDE] if command == "demo" else ["gcg", "--limit", 1])]
    words += [] if command == "evaluate" else ["--out", tmp_path / "out"]
    status, err = run(*words, "--device", device, capsys=capsys)
    line = one_line(err)
    assert status == 1 and repr(device) in line and "cpu" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--dtype", "float8_e4m3fn"], "bfloat16"),
        (["--dtype", ""], "--dtype"),
        (["--dtype", "[red]x[/]"], "[red]x[/]"),
        (["--quantize", "3bit"], "4bit"),
        (["--quantize", "[/x]"], "[/x]"),
        (["--model", "[/x]"], "[/x]"),
        (["--model", "[red]x[/]"], "[red]x[/]"),
        (["--model", ""], "model"),
        (["--model", str(SEASIDE)], "seaside.png"),
        (["--vision-tower", "[/x]"], "vision_tower"),
    ],
)
def test_how_a_model_cannot_be_loaded_is_one_line(words, named, tmp_path, capsys):
    status, err = run("demo", SEASIDE, "--out", tmp_path / "out", *words, capsys=capsys)
    assert status == 1 and named in one_line(err) and not (tmp_path / "out").exists()


def test_markup_in_the_name_of_a_source_is_a_name(tmp_path, capsys):
    for name in ("[/x]", "[red]x[/]"):
        status, err = run("convert", name, tmp_path / "x", capsys=capsys)
        assert status == 1 and name in one_line(err)


def test_other_names_of_number_types_are_understood():
    for name, kind in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        assert glamm_mini.load("tiny", device="cpu", dtype=name).model.dtype == kind


@pytest.mark.parametrize(
    ("keyword", "ours"),
    [
        ("torch_dtype", "dtype"), ("device_map", "device"), ("load_in_4bit", "quantize"), ("devce", "device"),
        ("quantization_config", "quantize"),
    ],
)  # fmt: skip
def test_a_keyword_that_load_lacks_is_named_beside_ours(keyword, ours):
    with pytest.raises(TypeError, match=f"{keyword}.*{ours}"):
        glamm_mini.load("tiny", **{keyword: "cpu"})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("folder.png", lambda path: path.mkdir()),
        ("empty.png", lambda path: path.write_bytes(b"")),
        ("words.png", lambda path: path.write_text("no picture")),
        ("[red]x[bold].png", lambda path: path.write_text("no picture")),
        ("cut.png", lambda path: path.write_bytes(SEASIDE.read_bytes()[:300])),
        ("script.png", lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        ("line\nend.png", lambda path: path.write_text("no picture")),
    ],
)
def test_a_picture_that_cannot_be_read_is_one_line(name, make, tmp_path, capsys):
    make(tmp_path / name)
    status, err = run("demo", tmp_path / name, "--out", tmp_path / "out", capsys=capsys)
    assert status == 1 and name.split("\n")[0] in one_line(err) and not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who is root may read everything")
def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0)
    status, err = run("demo", tmp_path / "closed", "--out", tmp_path / "out", capsys=capsys)
    assert status == 1 and "closed" in one_line(err)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.uint16, torch.complex64], ids=str)
def test_weights_of_an_odd_number_type_are_one_line(kind, tmp_path, capsys):
    shutil.copytree(TINY, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name].float().to(kind)}, tmp_path / "m" / "model.safetensors")
    status, err = run("demo", SEASIDE, "--model", tmp_path / "m", "--out", tmp_path / "out", capsys=capsys)
    assert status == 1 and "model.safetensors" in one_line(err)


@pytest.mark.parametrize("damage", [lambda b: b[:-200], lambda b: b"", lambda b: b"PK" + b[2:90]])
def test_a_reference_case_that_was_cut_short_is_one_line(damage, tmp_path, capsys):
    case = tmp_path / "case_small"
    shutil.copytree(paths.parity_folder() / "case_small", case)
    (case / "splice.npz").write_bytes(damage((case / "splice.npz").read_bytes()))
    from glamm_mini.checks.parity.case import ReferenceCase

    with pytest.raises(ValueError, match="splice.npz"):
        ReferenceCase(case).arrays("splice")


@pytest.mark.parametrize("text", ["{}", "[]", "5", "{", ""])
def test_a_reference_case_of_another_form_is_one_line(text, tmp_path, capsys):
    (tmp_path / "meta.json").write_text(text)
    status, err = run("parity", "--case", tmp_path, capsys=capsys)
    assert status == 1 and "meta.json" in one_line(err)


# --- what is not the user's mistake ----------------------------------------------------------------------------------


@pytest.fixture
def failing(monkeypatch):
    """A function that makes `demo` end in an error."""

    def fail(error):
        def command():
            raise error

        monkeypatch.setattr(cli, "load_command", lambda name: command)

    return fail


def test_a_mistake_of_ours_says_how_to_report_it(failing, monkeypatch, capsys):
    failing(RuntimeError("shapes [2] and\n[3] differ"))
    status, err = run("demo", capsys=capsys)
    first, second = err.splitlines()
    assert status == 1 and "RuntimeError: shapes [2] and [3] differ" in first
    assert "report" in second and "GLAMM_MINI_TRACEBACK=1" in second
    monkeypatch.setenv("GLAMM_MINI_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        cli.main(["demo"])


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("Storage size calculation overflowed with sizes=[9]"),
    ],
)
def test_too_little_memory_is_one_line(failing, error, capsys):
    failing(error)
    status, err = run("demo", capsys=capsys)
    assert status == 1 and "memory" in one_line(err) and "smaller" in err


def test_errors_are_one_line_whatever_they_hold(failing, capsys):
    for error, shown in (
        (ValueError("a [red]b[/] c\nd"), "a [red]b[/] c d"),
        (OSError(), "OSError"),
        (ValueError("half \udcff a letter"), "half"),
    ):
        failing(error)
        status, err = run("demo", capsys=capsys)
        assert shown.lower() in err.lower() and "Traceback" not in err and len(err.strip().splitlines()) == 1
        assert status == 1
    failing(KeyboardInterrupt())
    status, err = run("demo", capsys=capsys)
    assert status == 130 and "Traceback" not in err


def test_stopping_while_a_command_is_imported_is_no_error_of_ours(monkeypatch, capsys):
    def stopped(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_command", stopped)
    status, err = run("demo", capsys=capsys)
    assert status == 130 and one_line(err)


def test_a_reader_that_goes_away_is_not_an_error():
    code = "from glamm_mini.cli.main import main; main(['--help'])"
    shell = f'{sys.executable} -c "{code}" | head -c 20'
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert not stop.value.code and capsys.readouterr().out.split() == ["glamm-mini", glamm_mini.__version__]


# --- files of the user -----------------------------------------------------------------------------------------------


def names_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def small_pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir(exist_ok=True)
    with Image.open(SEASIDE) as picture:
        small = picture.convert("RGB").resize((64, 48))
    for k in range(count):
        small.rotate(90 * k, expand=True).save(folder / f"p{k}.png")
    return sorted(folder.glob("p*.png"))


def test_demo_never_replaces_what_it_did_not_write(tmp_path, monkeypatch, capsys):
    [photo] = small_pictures(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    for place, taken in ((".", "p0.png"), ("out", "p0.html"), ("out2", "p0.json")):
        out = tmp_path / place
        out.mkdir(exist_ok=True)
        if place != ".":
            (out / taken).write_text("mine")
        before = names_in(out)
        status, err = run("demo", "p0.png", "--out", place, capsys=capsys)
        assert status == 1 and taken in one_line(err) and names_in(out) == before
    (tmp_path / "out3").write_text("a file")
    status, err = run("demo", photo, "--out", tmp_path / "out3", capsys=capsys)
    assert status == 1 and "out3" in one_line(err)


def test_demo_replaces_its_own_files_and_none_that_was_changed(tmp_path, capsys):
    photos, out = small_pictures(tmp_path / "photos", 2), tmp_path / "out"
    words = ["demo", *photos, "--max-new-tokens", 6, "--out", out]
    assert run(*words, capsys=capsys)[0] == 0
    (out / "notes.txt").write_text("mine")
    assert run(*words, capsys=capsys)[0] == 0 and (out / "notes.txt").read_text() == "mine"
    assert sorted(p.suffix for p in out.glob("[!.]*")) == sorted([".png"] * 3 + [".html", ".json"] * 2 + [".txt"])
    (out / "overview.png").write_bytes(b"my own overview")
    status, err = run(*words, capsys=capsys)
    assert status == 1 and "overview.png" in one_line(err)
    assert (out / "overview.png").read_bytes() == b"my own overview"
    assert run("demo", photos[0], "--max-new-tokens", 6, "--out", out, capsys=capsys)[0] == 0, "one has no overview"


def test_a_file_stays_ours_when_a_write_fails(tmp_path, monkeypatch):
    Outputs(tmp_path).write("a.txt", b"one")
    replace = os.replace
    for content in (b"two", b"three"):
        monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if str(b).endswith(".json") else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Outputs(tmp_path).write("a.txt", content)
        monkeypatch.undo()
        assert (tmp_path / "a.txt").read_bytes() == b"one"
    Outputs(tmp_path).write("a.txt", b"four")
    (tmp_path / "a.txt").write_bytes(b"mine")
    with pytest.raises(ValueError, match="a.txt"):
        Outputs(tmp_path).write("a.txt", b"five")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_demo_writes_through_no_link(tmp_path, capsys):
    [photo] = small_pictures(tmp_path, 1)
    (tmp_path / "out").mkdir()
    for target in (tmp_path / "mine.png", tmp_path / "absent.png"):
        link = tmp_path / "out" / "p0.png"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        status, err = run("demo", photo, "--out", tmp_path / "out", capsys=capsys)
        assert status == 1 and "p0.png" in one_line(err) and not target.exists() and link.is_symlink()


def test_a_damaged_record_is_named(tmp_path, capsys):
    [photo] = small_pictures(tmp_path, 1)
    (tmp_path / "out").mkdir()
    for text in ("[]", "{", '"x"'):
        (tmp_path / "out" / ".glamm-mini.json").write_text(text)
        status, err = run("demo", photo, "--out", tmp_path / "out", capsys=capsys)
        assert status == 1 and ".glamm-mini.json" in one_line(err)


# --- a folder to one COCO file ---------------------------------------------------------------------------------------


def test_a_folder_becomes_a_coco_file(tmp_path, capsys):
    from pycocotools.coco import COCO

    folder, file = tmp_path / "photos", tmp_path / "new" / "made.json"
    pictures = small_pictures(folder, 3)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "torn.jpg").write_bytes(b"torn")
    words = ["demo", folder, "--coco", file, "--batch-size", 2]
    status, err = run(*words, capsys=capsys)
    assert status == 0 and "torn.jpg" in err and not file.with_name("made.json.part").exists()
    made = json.loads(file.read_text())
    assert [image["file_name"] for image in made["images"]] == [p.name for p in pictures]
    assert (made["images"][1]["width"], made["images"][1]["height"]) == (48, 64) and made["images"][0]["caption"]
    assert made["annotations"], "the model finds something in its own world"
    read = COCO(str(file))
    answer = glamm_mini.load("tiny", device="cpu").describe([str(p) for p in pictures])
    for image, expected in zip(made["images"], answer, strict=True):
        own = read.loadAnns(read.getAnnIds(imgIds=image["id"]))
        phrases = [phrase for phrase in expected.phrases if phrase.mask.any()]
        assert len(own) == len(phrases)
        for one, phrase in zip(own, phrases, strict=True):
            mask = read.annToMask(one).astype(bool)
            assert (mask == phrase.mask).mean() > 0.99 and one["area"] == mask.sum()
            x0, y0, x1, y1 = phrase.box
            x, y, w, h = one["bbox"]
            assert (x, y, x + w, y + h) == pytest.approx((x0, y0, x1, y1), abs=1) and one["phrase"] == phrase.text
            name = read.loadCats([one["category_id"]])[0]["name"]
            assert name and phrase.text.casefold().endswith(name) and not name.startswith(("a ", "the "))
    status, err = run(*words, capsys=capsys)
    assert status == 1 and "made.json" in one_line(err) and json.loads(file.read_text()) == made


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    from glamm_mini.cli import coco

    folder, file = tmp_path / "photos", tmp_path / "made.json"
    small_pictures(folder, 3)
    words = ["demo", folder, "--coco", file, "--batch-size", 1, "--max-new-tokens", 6]
    asked, answered = [], coco._answered

    def stopping(assistant, paths_, *rest):
        asked.extend(path.name for path in paths_)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return answered(assistant, paths_, *rest)

    monkeypatch.setattr(coco, "_answered", stopping)
    status, err = run(*words, capsys=capsys)
    part = file.with_name("made.json.part")
    assert status == 130 and not file.exists() and f"{part} keeps what is done: run the same again" in err
    part.write_bytes(part.read_bytes()[:-20])  # as a kill in the middle of a line leaves it
    status, err = run(*words, "--ask", "What is in the picture?", capsys=capsys)
    assert status == 1 and "made.json.part" in one_line(err)
    asked.clear()
    asked.append("not counted")
    assert run(*words, capsys=capsys)[0] != 0 and asked == ["not counted", "p1.png", "p2.png"]
    monkeypatch.setattr(coco, "_answered", answered)
    (folder / "p0.png").write_bytes(b"no picture any more")
    assert run(*words, capsys=capsys)[0] == 0
    made = json.loads(file.read_text())
    assert [image["file_name"] for image in made["images"]] == ["p1.png", "p2.png"], "p0.png was answered, and changed"
    assert [image["id"] for image in made["images"]] == [1, 2]


def test_a_first_line_that_a_kill_has_cut_is_no_other_run(tmp_path, monkeypatch, capsys):
    from glamm_mini.cli import coco

    file, answered = tmp_path / "made.json", coco._answered
    words = ["demo", small_pictures(tmp_path / "photos", 1)[0], "--coco", file, "--max-new-tokens", 6]

    def stopping(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(coco, "_answered", stopping)
    assert run(*words, capsys=capsys)[0] == 130
    part = file.with_name("made.json.part")
    part.write_bytes(part.read_bytes()[:-20])
    monkeypatch.setattr(coco, "_answered", answered)
    assert run(*words, capsys=capsys)[0] == 0 and len(json.loads(file.read_text())["images"]) == 1
    assert not part.exists()


HOLDER = """
import sys, time
from glamm_mini.training.run_folder import lock_alone
with open(sys.argv[1], "a+b") as log:
    assert lock_alone(log)
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_runs_do_not_write_one_coco_file(tmp_path, capsys):
    file, part = tmp_path / "made.json", tmp_path / "made.json.part"
    pictures = small_pictures(tmp_path / "photos", 1)
    with subprocess.Popen([sys.executable, "-c", HOLDER, part], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            status, err = run("demo", pictures[0], "--coco", file, capsys=capsys)
            assert status == 1 and "another process writes" in one_line(err) and not file.exists()
        finally:
            other.kill()


def test_a_folder_without_pictures_and_boxes_with_coco_are_refused(tmp_path, capsys):
    status, err = run("demo", tmp_path, "--coco", tmp_path / "x.json", capsys=capsys)
    assert status == 1 and "holds no picture" in one_line(err)
    words = ["--ask", "What?", "--box", 1, 2, 3, 4, "--coco", tmp_path / "x.json"]
    status, err = run("demo", SEASIDE, *words, capsys=capsys)
    assert status == 1 and "--box" in one_line(err)
