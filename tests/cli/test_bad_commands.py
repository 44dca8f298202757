"""Command lines that cannot work: a message that names what is wrong, and every file of the user as it was."""

import json
import os
import shutil

import pytest
from PIL import Image

import glamm_mini
from glamm_mini import paths
from glamm_mini.cli import main as cli

TINY = paths.checkpoint_folder("tiny")
SEASIDE = paths.samples_folder() / "seaside.png"

COMMANDS = {
    # demo: words, and what the message must name. {t} is a folder of the test, {p} a picture
    "a picture that is not there": ("demo {t}/none.png", "none.png"),
    "a folder without pictures": ("demo {t}/empty", "empty"),
    "text as a picture": ("demo {t}/notes.txt", "notes.txt"),
    "an address": ("demo https://example.org/a.png", "a.png"),
    "one bad picture of two": ("demo {p} {t}/notes.txt", "notes.txt"),
    "a picture that is a dangling link": ("demo {t}/dangling.png", "dangling.png"),
    "an empty question": ("demo {p} --ask=", "--ask"),
    "three numbers of a box": ("demo {p} --ask what --box 1 2 3", "box"),
    "words in a box": ("demo {p} --ask what --box a b c d", "box"),
    "a box without question": ("demo {p} --box 1 2 3 4", "--ask"),
    "a swapped box": ("demo {p} --ask what --box 9 9 3 3", "9 9 3 3"),
    "a box outside": ("demo {p} --ask what --box 9000 9000 9999 9999", "box 0"),
    "a box without end": ("demo {p} --ask what --box 0 0 inf inf", "--box 0 0 inf inf"),
    "an empty folder of answers": ("demo {p} --out=", "--out"),
    "a box of nan": ("demo {p} --ask what --box nan 0 5 5", "nan"),
    "more boxes than named": ("demo {p} --ask Is<bbox> --box 0 0 5 5 --box 1 1 6 6", "<bbox>"),
    "answers onto a file": ("demo {p} --out {t}/notes.txt", "notes.txt"),
    "answers below a file": ("demo {p} --out {t}/notes.txt/x", "notes.txt"),
    "answers beside a page of the user": ("demo {p} --out {t}/user", "seaside.html"),
    "answers into the folder of the picture": ("demo {t}/pictures/seaside.png --out {t}/pictures", "seaside.png"),
    "answers beside a foreign record": ("demo {p} --out {t}/record", ".glamm-mini.json"),
    "no tokens": ("demo {p} --max-new-tokens 0", "max-new-tokens"),
    "half a token": ("demo {p} --max-new-tokens 1.5", "max-new-tokens"),
    "an option of another name": ("demo {p} --temprature 3", "temprature"),
    "COCO onto a file": ("demo {p} --coco {t}/notes.txt", "notes.txt"),
    "COCO below a file": ("demo {p} --coco {t}/notes.txt/new.json", "notes.txt"),
    "COCO onto a folder": ("demo {p} --coco {t}/user", "user"),
    "COCO with a box": ("demo {p} --ask what --box 1 2 3 4 --coco {t}/new.json", "--coco"),
    "COCO beside another log": ("demo {p} --coco {t}/part.json", "part.json"),
    "COCO, none at once": ("demo {p} --coco {t}/new.json --batch-size 0", "batch-size"),
    "a model without weights": ("demo {p} --model {t}/user", "user"),
    "a file for a model": ("demo {p} --model {t}/notes.txt", "notes.txt"),
    "a bundled name with a mistake": ("demo {p} --model tinny", "tinny"),
    "an adapter that is not there": ("demo {p} --lora {t}/none", "none"),
    "a folder without adapter": ("demo {p} --lora {t}/user", "adapter_config.json"),
    "CLIP for a model of ours": ("demo {p} --vision-tower {t}/user", "vision_tower"),
    "names left out of a model of ours": ("demo {p} --drop zzz", "drop"),
    "a place on disk without auto": ("demo {p} --device cpu --offload-folder {t}/x", "offload_folder"),
    "an unknown number type": ("demo {p} --dtype int8", "int8"),
    "an unknown quantization": ("demo {p} --quantize 2bit", "2bit"),
    # train
    "no recipe": ("train", "--list"),
    "an unknown recipe": ("train gcgg", "gcgg"),
    "a recipe as a path that leads to one": ("train recipes/../storybook", "gcg"),
    "a recipe of a file": ("train {t}/mine", "gcg"),
    "a recipe as a path": ("train ../storybook", "../storybook"),
    "an unknown size": ("train storybook --size huge --out {t}/run", "huge"),
    "unknown data": ("train storybook --data coco --out {t}/run", "coco"),
    "a run onto a file": ("train storybook --out {t}/notes.txt", "notes.txt"),
    "a run into a folder of the user": ("train storybook --out {t}/user", "user"),
    "a run that resumes a folder of the user": ("train storybook --out {t}/user --resume", "user"),
    "an unknown setting": ("train storybook --out {t}/run --set stepz=3", "steps"),
    "a setting without value": ("train storybook --out {t}/run --set steps", "steps"),
    "a setting of another type": ("train storybook --out {t}/run --set steps=many", "steps"),
    "a negative seed": ("train gcg --out {t}/run --set seed=-1", "seed"),
    "a seed that is too large": ("train gcg --show --set seed=99999999999999999999", "seed"),
    "a run below a file": ("train storybook --out {t}/notes.txt/run", "--out"),
    "a negative setting": ("train storybook --out {t}/run --set steps=-1", "steps"),
    "no number": ("train storybook --out {t}/run --set lr=nan", "lr"),
    "a key without name": ("train storybook --out {t}/run --set =3", "KEY=VALUE"),
    "a warm-up beyond the end": ("train gcg --out {t}/run --set steps=2 --set warmup=1e9", "warmup is 1e+09"),
    "steps without end": ("train gcg --show --set steps=99999999999999999999", "steps"),
    "samples without end": ("train gcg --show --set batch_size=1000000000", "batch_size"),
    "workers without end": ("train gcg --show --set workers=1000000", "workers"),
    "threads without end": ("train gcg --show --set threads=1000000", "threads"),
    "a wait without end": ("train gcg --show --set timeout_minutes=1e12", "timeout_minutes"),
    "conversations without end": ("train storybook --show --set conversations=1000000", "conversations"),
    "a rank without end": ("train gcg --show --set lora.rank=100000000", "lora.rank"),
    "a step away from the gradient": ('train gcg --show --set lr_scales={{"vl":-1}}', "lr_scales"),
    "an empty setting": ("train storybook --out {t}/run --set=", "--set"),
    "a setting of a table that is not there": ("train storybook --out {t}/run --set zzz.rank=3", "zzz"),
    "LoRA of rank 0": ("train gcg --out {t}/run --set lora.rank=0", "rank"),
    "shown with an unknown setting": ("train storybook --show --set stepz=3", "steps"),
    "shown with a bad value": ("train storybook --show --set lr=x", "lr"),
    "an unknown recipe shown": ("train nope --show", "nope"),
    "an unknown size listed": ("train --list --size huge", "huge"),
    "from a folder that is not there": ("train gcg --out {t}/run --from {t}/none --set steps=1", "none"),
    "from a file": ("train gcg --out {t}/run --from {t}/notes.txt --set steps=1", "notes.txt"),
    "from a folder of the user": ("train gcg --out {t}/run --from {t}/user --set steps=1", "user"),
    "from markup": ("train gcg --out {t}/run --from [/x] --set steps=1", "[/x]"),
    # predict, score, evaluate
    "an unknown task": ("predict segm --out {t}/p", "segm"),
    "an unknown task scored": ("score segm --predictions {t}/user --split test", "segm"),
    "unknown data to ask": ("predict gcg --out {t}/p --data coco", "coco"),
    "an unknown split": ("evaluate gcg --split tset", "tset"),
    "no pictures": ("evaluate gcg --limit 0", "limit"),
    "a negative seed to ask": ("predict gcg --out {t}/p --seed -1", "--seed"),
    "a seed that is too large to ask": ("predict gcg --out {t}/p --seed 18446744073709551616", "--seed"),
    "a negative seed to measure": ("evaluate gcg --seed -1", "--seed"),
    "small pictures": ("evaluate gcg --limit 1 --long-side 3", "long-side"),
    "none at once": ("evaluate gcg --batch-size 0", "batch-size"),
    "an unknown protocol": ("evaluate gcg --protocol fair", "fair"),
    "an unknown similarity": ("evaluate gcg --similarity cosine", "cosine"),
    "predictions onto a file": ("predict gcg --out {t}/notes.txt --limit 1", "notes.txt"),
    "predictions below a file": ("predict gcg --out {t}/notes.txt/p --limit 1", "notes.txt"),
    "predictions beside JSON of the user": ("predict gcg --out {t}/foreign --limit 1", "settings.json"),
    "figures of predictions onto a file": ("evaluate gcg --out {t}/notes.txt --limit 1", "notes.txt"),
    "predictions that are not there": ("score gcg --predictions {t}/none --split test", "none"),
    "predictions without truth": ("score gcg --predictions {t}/user --split test", "ground_truth"),
    "predictions in a file": ("score gcg --predictions {t}/notes.txt --split test", "notes.txt"),
    "predictions without split": ("score gcg --predictions {t}/user", "split"),
    "markup as predictions": ("score gcg --predictions [red]x[/] --split test", "[red]x[/]"),
    "an unknown protocol scored": ("score gcg --predictions {t}/user --split test --protocol fair", "fair"),
    "JSON onto a folder": ("evaluate gcg --limit 1 --json {t}/user", "user"),
    "JSON below a file": ("evaluate gcg --limit 1 --json {t}/notes.txt/x.json", "notes.txt"),
    # convert
    "nothing to convert": ("convert", "source"),
    "no target": ("convert tiny", "TARGET"),
    "a source that is not there": ("convert {t}/none {t}/c", "none"),
    "onto a file": ("convert tiny {t}/notes.txt", "notes.txt"),
    "below a file": ("convert tiny {t}/notes.txt/c", "notes.txt"),
    "onto a foreign model": ("convert tiny {t}/foreign", "foreign"),
    "to a form that is not there": ("convert tiny {t}/c --to onnx", "onnx"),
    "in an unknown number type": ("convert tiny {t}/c --dtype int8", "int8"),
    "in files of no size": ("convert tiny {t}/c --max-shard-size much", "much"),
    "in files of less than nothing": ("convert tiny {t}/c --max-shard-size=-1GB", "-1GB"),
    "in empty files": ("convert tiny {t}/c --max-shard-size 0.0GB", "0.0GB"),
    "an adapter that is not checked": ("convert tiny --check --lora {t}", "--lora"),
    "in files of nothing": ("convert tiny {t}/c --max-shard-size 0", "max_shard_size"),
    "a check in files of no size": ("convert tiny --check --max-shard-size much", "max_shard_size"),
    "a check of torch's files of our format": ("convert tiny --check --torch-files", "--torch-files"),
    "torch's files of our format": ("convert tiny {t}/c --torch-files", "torch's files"),
    "with an adapter that is not there": ("convert tiny {t}/c --lora {t}/none", "none"),
    "onto itself": ("convert {t}/model {t}/model --to official", "model"),
    "a check of a folder of the user": ("convert {t}/user --check", "user"),
    # memory, parity, bench
    "memory of an unknown size": ("memory --size huge", "huge"),
    "memory of an unknown number type": ("memory --dtype int3", "int3"),
    "memory of parts that are not there": ("memory --size tiny --trained zzz", "zzz"),
    "memory of parts without a name": ("memory --size tiny --trained ,", "trained is ('', '')"),
    "memory of a part and of none": ("memory --size tiny --trained lm_head,", "trained is"),
    "memory of no rows": ("memory --batch 0", "batch"),
    "memory of a sharding that is not there": ("memory --sharding zzz", "zzz"),
    "memory of a folder of the user": ("memory --size {t}/user", "user"),
    "parity with a case that is not there": ("parity --case {t}/none", "none"),
    "parity with a file": ("parity --case {t}/notes.txt", "notes.txt"),
    "parity with a folder of the user": ("parity --case {t}/user", "meta.json"),
    "an unknown benchmark": ("bench speed", "speed"),
    "no benchmark": ("bench", "name"),
    "a benchmark of an unknown size": ("bench generation --size huge", "--size"),
    "a benchmark in an unknown number type": ("bench generation --size tiny --dtype int8", "int8"),
    "a benchmark repeated never": ("bench sam --repeats 0", "repeats"),
    "a benchmark with JSON onto a folder": ("bench sam --json {t}/user", "--json"),
    "a comparison with JSON below a file": ("parity --json {t}/notes.txt/x", "--json"),
    "a benchmark on no thread": ("bench sam --threads 0", "threads"),
    "a benchmark on an unknown device": ("bench generation --size tiny --device foo", "foo"),
    # glamm-mini
    "an unknown command": ("dmeo", "dmeo"),
    "an unknown option before the command": ("--verbose demo", "verbose"),
}


@pytest.fixture
def folder(tmp_path):
    """What a user may have: notes, a page, pictures, another model, a record and a log that we did not write."""
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("empty", "user", "pictures", "record", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "user" / "seaside.html").write_text("mine")
    shutil.copy(SEASIDE, tmp_path / "pictures")
    (tmp_path / "record" / ".glamm-mini.json").write_text("mine")
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "foreign" / "model.safetensors").write_text("mine")
    (tmp_path / "part.json.part").write_text("mine")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere")
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    return tmp_path


def files(folder) -> dict:
    kept = (path for path in folder.rglob("*") if "model" not in path.relative_to(folder).parts[0])
    return {path: path.read_bytes() for path in kept if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_work_says_so_and_touches_nothing(name, folder, capsys, monkeypatch):
    words, named = COMMANDS[name]
    if "{t}/model" in words:
        shutil.copytree(TINY, folder / "model")
    monkeypatch.chdir(folder / "empty")
    monkeypatch.setenv("COLUMNS", "300")
    before = files(folder)
    with pytest.raises(SystemExit) as stop:
        cli.main([word.format(t=folder, p=SEASIDE) for word in words.split()])
    err = capsys.readouterr().err
    assert stop.value.code in (1, 2) and "Traceback" not in err and "a mistake in glamm-mini" not in err, err
    assert named in err or named.upper() in err, err  # an older typer writes SOURCE, a newer one source
    if stop.value.code == 1:
        lines = [line for line in err.splitlines() if line.strip()]  # of which earlier ones show progress
        assert lines[-1].startswith("error: ") and sum("error: " in line for line in lines) == 1, err
    assert files(folder) == before and not any((folder / "empty").iterdir())


PLACES = [name for name in COMMANDS if name.split()[0] in ("answers", "predictions", "figures", "COCO", "JSON")]
LATE = ("COCO beside another log",)
"""The log tells only with the model's weights whether it is of the same settings."""


@pytest.mark.parametrize("name", [name for name in PLACES if name not in LATE])
def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(name, folder, monkeypatch):
    monkeypatch.setattr(glamm_mini, "load", lambda *_, **__: pytest.fail("was loaded"), raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main([word.format(t=folder, p=SEASIDE) for word in COMMANDS[name][0].split()])
    assert stop.value.code in (1, 2)


@pytest.mark.parametrize("words", ["convert tiny", "demo --out", "demo --coco", "train gcg --out"])
@pytest.mark.parametrize("name", ["new\n", "a\tb"])
def test_a_new_name_that_cannot_be_read_is_refused(words, name, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder / "empty")
    with pytest.raises(SystemExit) as stop:
        cli.main([*words.split(), name])
    assert stop.value.code == 1 and "control character" in capsys.readouterr().err
    assert not any((folder / "empty").iterdir())


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who is root may write everywhere")
def test_a_folder_that_may_not_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(SystemExit):
        cli.main(["demo", str(SEASIDE), "--out", str(tmp_path / "closed" / "out")])
    assert "no right to write" in capsys.readouterr().err
