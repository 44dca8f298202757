"""Benchmarks measure what they say: both ways give the same, the plain way does all the work, figures are sound."""

import json

import pytest
import torch

from glamm_mini import paths
from glamm_mini.checks.bench import answer_speed, cached_generation, sam_speed, training_step, whole_size
from glamm_mini.checks.bench.measure import Measured, Report, Setting, memory_of, paired
from glamm_mini.cli.main import main
from glamm_mini.model.region_encoder import RegionEncoder
from glamm_mini.model.vision import GlobalImageEncoder

CPU = torch.device("cpu")


@pytest.fixture
def setting():
    return Setting(repeats=1, threads=1, device=CPU, dtype=torch.float32)


def counted(monkeypatch, cls):
    """A list that grows by one for every call of a class's forward."""
    calls, forward = [], cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    return calls


def test_rows_and_reports_become_json():
    row = Measured("s", ours=[1.0, 3.0, 2.0], plain=[8.0, 6.0, 10.0], difference=0.5)
    assert row.as_dict() == {
        "unit": "s",
        "ours": {"min": 1.0, "median": 2.0},
        "plain": {"min": 6.0, "median": 8.0},
        "ratio": {"min": 6.0, "median": 4.0},
        "difference": 0.5,
    }
    report = Report("x", {"threads": 1}, {"a": Measured("GB", [2.0])}, ["why"])
    expected = {"unit": "GB", "ours": {"min": 2.0, "median": 2.0}}
    assert json.loads(json.dumps(report.as_dict())) == {
        "x": {"setting": {"threads": 1}, "rows": {"a": expected}, "notes": ["why"]}
    }


def test_pairs_take_turns():
    order = []
    slow, fast, a, b = paired(
        "x", lambda: order.append("plain") or 1, lambda: order.append("ours") or 2, Setting(3, 1, CPU, torch.float32)
    )
    assert order == ["plain", "ours"] * 3 and len(slow) == len(fast) == 3 and (a, b) == (1, 2)


def small_pieces() -> list[bytearray]:
    """200 MB."""
    return [bytearray(100_000) for _ in range(2000)]


def test_memory_of_a_call_is_what_it_held():
    held = memory_of(lambda: torch.ones(2**26), CPU)  # 268 MB
    if held is None:
        pytest.skip("this system does not tell a process's peak")
    assert 200e6 < held < 400e6
    small_pieces()  # what malloc kept of them for reuse must not hide what they take again
    assert memory_of(small_pieces, CPU) > 150e6
    assert memory_of(lambda: None, CPU) < 50e6


def test_generation_recomputes_everything_and_agrees(setting, monkeypatch):
    monkeypatch.setattr(cached_generation, "NEW_TOKENS", 6)
    clip, regions = counted(monkeypatch, GlobalImageEncoder), counted(monkeypatch, RegionEncoder)
    report = cached_generation.run(setting)
    # A first answer and a first step, then 6 steps in the plain way and one answer in ours.
    assert len(clip) == len(regions) == 1 + 1 + 6 + 1
    [(name, row)] = report.rows.items()
    assert name == "6 tokens and 5 masks" and 0 <= row.difference < 1e-4
    assert report.notes == ["the 6 ids are the same both ways", "pixels in one mask and not in the other: 0 of 90000"]


def test_differences_of_answers_are_seen():
    ids, masks = torch.arange(4), torch.tensor([[[1.0, -1.0]]])
    assert cached_generation.compare(ids, masks, ids + 1, masks + 0.5)[0] == 0.5
    difference, words = cached_generation.compare(ids, masks, ids + 1, masks * -1)
    assert difference == 2 and words == ["the 4 ids are NOT the same both ways"] + [
        "pixels in one mask and not in the other: 2 of 2"
    ]
    assert cached_generation.compare(ids, masks, ids, masks[:0])[0] == float("inf")


def test_sam_compares_with_the_library(setting, monkeypatch):
    c = sam_speed.GlammConfig.of_size("tiny")
    c.grounding.relative_positions, c.grounding.window, c.grounding.global_attention = True, 5, (1, 3)
    monkeypatch.setattr(sam_speed.GlammConfig, "of_size", lambda size: c)
    ours = sam_speed.random_encoder(c)
    plain = sam_speed.as_library(ours)
    assert type(plain.vit.blocks[0].attn) is sam_speed.Attention is not type(ours.vit.blocks[0].attn)
    report = sam_speed.run(setting)
    assert 0 < report.rows["one picture"].difference < 1e-4
    assert report.setting["pixels"] == 128 and report.setting["window"] == 5


def test_answers_are_the_same_with_features_kept(setting, monkeypatch, tmp_path):
    (tmp_path / "one.png").write_bytes((paths.samples_folder() / "town.png").read_bytes())
    monkeypatch.setattr(answer_speed.paths, "samples_folder", lambda: tmp_path)
    clip = counted(monkeypatch, GlobalImageEncoder)
    report = answer_speed.run(setting)
    assert len(clip) == 2 + 1  # anew twice; once for all that keep
    [(name, row)] = report.rows.items()
    assert name.startswith("one: ") and row.difference == 0 and not any("differ in words" in n for n in report.notes)


def test_the_7b_benchmark_runs_from_end_to_end_at_tiny_size(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(whole_size, "NEW_TOKENS", 12)
    monkeypatch.setattr(whole_size, "PEAK_SIDE", {"cpu": 128})
    target = tmp_path / "deep" / "figures.json"
    words = ["bench", "7b", "--size", "tiny", "--device", "cpu", "--threads", "1", "--repeats", "1"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--json", str(target)])
    assert end.value.code == 0
    [(name, figures)] = json.loads(target.read_text()).items()
    assert name == "7b" and figures["setting"]["size"] == "tiny" and figures["setting"]["dtype"] == "bfloat16"
    values = {key: row["ours"]["median"] for key, row in figures["rows"].items()}
    timed = ("answer", "answer, features kept", "encoding the picture", "first token, features kept", "training step")
    for key in timed:
        assert values[key] > 0 and values[f"{key}, of the peak"] > 0
    assert {"matrix product, measured peak", "new tokens after the first", "training"} <= set(values)
    assert values["first token, features kept"] < values["answer"]
    assert "24 text and 144 image tokens, 12 new, 5 masks" in capsys.readouterr().out


def test_without_a_gpu_the_7b_benchmark_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as end:
        main(["bench", "7b"])
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1 and "no GPU" in error and "--size tiny" in error


@pytest.mark.parametrize(
    "words, message",
    [
        (["speed"], "expected one of generation, sam, answers, 7b"),
        (["sam", "--dtype", "int8"], "dtype 'int8' is unknown"),
        (["sam", "--device", "cuda:7"], "no such GPU"),
        (["sam", "--device", "gpu"], "device 'gpu' is unknown"),
        (["sam", "--device", "mps"], "cpu and cuda only"),
        (["sam", "--size", "vit_b"], "size 'vit_b' is unknown"),
        (["generation", "--size", "tiny"], "leave --size out"),
    ],
)
def test_wrong_words_end_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", *words])
    error = capsys.readouterr().err
    assert end.value.code == 1 and message in error and error.count("\n") == 1


def test_json_alone_on_standard_output(monkeypatch, capsys):
    monkeypatch.setattr(
        sam_speed, "run", lambda setting: Report("sam", setting.as_dict(), {"a": Measured("s", [1.0], [2.0], 0.0)})
    )
    with pytest.raises(SystemExit):
        main(["bench", "sam", "--device", "cpu", "--threads", "1", "--json", "-"])
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and json.loads(out)["sam"]["rows"]["a"]["ratio"]["median"] == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_is_measured_part_by_part(monkeypatch, dtype):
    for name, value in {"SCENES": 1, "CONVERSATIONS": 2, "SIDE": 64}.items():
        monkeypatch.setattr(training_step, name, value)
    report = training_step.run(Setting(2, 1, CPU, dtype)).as_dict()["training"]
    rows, parts = report["rows"], list(training_step.PARTS)
    assert list(rows)[:6] == parts and report["setting"]["conversations"] == 2
    assert all(rows[name]["ours"]["min"] > 0 for name in ("forward", "backward", "positions"))
    assert rows["whole step"]["ours"]["min"] <= sum(rows[part]["ours"]["median"] for part in parts) * 1.0001
    assert rows["whole step"]["ours"]["min"] >= sum(rows[part]["ours"]["min"] for part in parts)
    share, operations, counts = report["notes"]
    reached, *peaks = (row["ours"]["median"] for row in rows.values() if row["unit"] == "Gflop/s")
    assert len(peaks) == 2 and f"reach {reached / max(peaks):.0%} of the faster" in share
    # The first scene is not measured: its step is the first of a process.
    _, processor = training_step.untrained("tiny")
    side = processor.config.grounding.image_size
    scenes = training_step.StorybookDataset("train", 0, 9, side, training_step.MIXTURE, 2)
    batches = [training_step.JointCollate(processor)([scenes[k]]) for k in (1, 2)]
    lengths = [b["input_ids"].numel() + processor.config.image_tokens - 1 for b in batches]
    masks = [sum(len(m) for m in b["masks"]) for b in batches]
    assert counts == f"{sum(lengths) / 2:.0f} positions and {sum(masks) / 2:.0f} masks a step"
    # Six operations a weight and position are the least of a forward and a backward pass through the language model.
    weights = sum(p.numel() for p in training_step.untrained("tiny")[0].language_model.model.layers.parameters())
    first = training_step.JointCollate(processor)([scenes[0]])["input_ids"].numel() + processor.config.image_tokens - 1
    least = 6 * weights * first / 1e9
    assert least < float(operations.split("; ")[1].split()[0]) < 20 * least
