"""What notebook 13 builds: files read by hand as the libraries do, the flow of differences, graders that see slips."""

import json
import re

import numpy as np
import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from torch import nn

from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.course.room_13 import grader as grader
from glamm_mini.course.room_13 import pictures as views
from glamm_mini.course.room_13.lesson import cut_shards, read_header, read_tensor
from glamm_mini.paths import parity_folder


@pytest.fixture(scope="module")
def manifest():
    return json.loads((parity_folder() / "manifest_7b.json").read_text())["tensors"]


@pytest.fixture(scope="module")
def case():
    return ReferenceCase(parity_folder() / "case_small")


@pytest.fixture(scope="module")
def flow(case):
    return views.flow(case, case.model())


# ---- files ----


@pytest.mark.parametrize("limit", [1, 60, 100, 400, 10_000])
def test_shards_are_cut_as_the_library_cuts_them(limit):
    rng = np.random.default_rng(3)
    state = {f"layer.{k}": torch.zeros(int(n)) for k, n in enumerate(rng.integers(1, 20, 30))}
    theirs = split_torch_state_dict_into_shards(state, max_shard_size=limit)
    mine = cut_shards({name: tensor.nbytes for name, tensor in state.items()}, limit)
    whole = [name for names in theirs.filename_to_tensors.values() for name in names]
    assert [name for names in mine for name in names] == list(state) and sorted(whole) == sorted(state)
    if limit >= max(tensor.nbytes for tensor in state.values()):  # the library lets large ones jump the queue
        assert mine == list(theirs.filename_to_tensors.values())
    assert all(len(names) == 1 or sum(state[n].nbytes for n in names) <= limit for names in mine)


def test_the_7b_files_are_as_large_as_the_hub_lists_them(manifest):
    sizes = {
        name: torch.Size(entry["shape"]).numel() * getattr(torch, entry["dtype"]).itemsize
        for name, entry in manifest.items()
        if entry["saved"]
    }
    gigabytes = [sum(sizes[name] for name in names) / 1e9 for names in cut_shards(sizes, 10_000_000_000)]
    assert [round(g, 2) for g in gigabytes] == [9.98, 6.78]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_safetensors_are_read_by_hand_as_by_the_library(tmp_path, dtype):
    state = {"a": torch.randn(3, 4).mul(9).to(dtype), "b.c": torch.randn(2, 1, 5).to(dtype)}
    save_file(state, tmp_path / "x.safetensors", metadata={"format": "pt"})
    data = (tmp_path / "x.safetensors").read_bytes()
    header, start = read_header(data)
    assert header.keys() == state.keys() and start % 8 == 0
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        mine = read_tensor(data, name)
        assert mine.dtype == tensor.dtype and torch.equal(mine, tensor) and torch.equal(mine, state[name])


# ---- pictures ----


def test_names_are_counted_part_by_part(manifest):
    rows = views.count_names(manifest)
    assert sum(row.parameters for row in rows) == 8_021_023_792
    assert sum(row.tensors for row in rows) == 1326
    assert [row.official for row in rows if not row.saved] == ["model.vision_tower"]
    picture = views.name_map(rows)
    assert picture.width == 1600 and len(picture.getcolors(1 << 20)) > 50
    with pytest.raises(ValueError, match="no part"):
        views.name_map([views.Counted("model.x", "nose", 1, 1)])


def test_the_flow_agrees_and_a_slip_shows_from_its_place_on(case, flow, monkeypatch):
    assert all(stage.agrees for stage in flow) and len(flow) == 23
    parts = list(dict.fromkeys(stage.part for stage in flow))
    assert parts == list(dict.fromkeys(part for part, *_ in views.FLOW))
    assert "all 23 quantities agree" in views.first_words(flow)
    model = case.model()
    model.lp_projector[1] = nn.GELU()
    behind = [stage for stage in views.FLOW if stage[2] == "train seg"]  # the runs before it are as they were
    monkeypatch.setattr(views, "FLOW", behind)
    broken = views.flow(case, model)
    assert [stage.name for stage in broken] == [name for _, name, *_ in behind]
    wrong = [stage.name for stage in broken if not stage.agrees]
    assert wrong[0] == "states as prompts" and "masks as drawn" in wrong
    assert "states as prompts (L-P projector)" in views.first_words(broken)
    wide, narrow = views.stage_bars(broken, "a title"), views.stage_bars(broken, narrow=True)
    assert (wide.width, narrow.width) == (1600, 800)
    assert _has(wide, views.WRONG) and _has(narrow, views.WRONG) and not _has(views.stage_bars(flow), views.WRONG)


def _has(picture, color) -> bool:
    """Whether any pixel is near the color of a bar."""
    array = np.asarray(picture).astype(int)
    return bool((np.abs(array - np.array(color)).max(-1) < 40).sum() > 200)


def test_strange_differences_can_be_drawn():
    stages = [views.Stage("losses", "none", 0.0), views.Stage("losses", "no number", float("inf"))]
    assert views.stage_bars(stages).height > 100
    assert "1 of 2 quantities agree; the first that does not: no number" in views.first_words(stages)


def test_a_tolerance_nearly_used_up_is_told(flow):
    assert max(stage.share for stage in flow) < 0.1
    stages = [stage._replace(share=0.78) if stage.name == "states as prompts" else stage for stage in flow]
    assert views.first_words(stages).endswith("nearest to its tolerance: states as prompts, 78% of it")


def test_digits_are_those_of_the_case(case):
    rows = views.first_numbers(case, case.model(), {"vision": {"projected": "a", "clip_hidden_0": "b"}})
    assert [title for title, *_ in rows] == ["b", "a"]
    assert all(official != 0 and abs(official - ours) < 1e-5 for _, official, ours in rows)
    assert views.digit_rows(rows).width == 1600


def test_a_broken_flow_is_computed_once(case, flow, monkeypatch):
    calls = []
    monkeypatch.setattr(views, "flow", lambda case, model: flow)
    draw = views.broken_flow(case, {"nothing": lambda model: calls.append(model)})
    picture, words = draw({"broken": "nothing"})
    assert words.startswith("nothing: all 23") and picture.width == 800
    draw({"broken": "nothing"})
    assert len(calls) == 1


# ---- graders ----


def rename(name, pairs):
    return next((new + name[len(old) :] for old, new in pairs if name.startswith(old)), None)


def widen(raw, shape):
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)


def first_apart(theirs, ours, tolerance):
    for name, a in theirs.items():
        if name not in ours or ours[name].shape != a.shape:
            return name
        if not (np.abs(a - ours[name]) <= tolerance * (1 + np.abs(a))).all():
            return name
    return None


def merge(state, alpha, scale=lambda alpha, rank: alpha / rank, keep=False):
    out = {name: tensor for name, tensor in state.items() if keep or ".lora_" not in name}
    for name, narrow in state.items():
        if ".lora_A." in name:
            layer = name.split(".lora_A.")[0]
            change = state[f"{layer}.lora_B.default.weight"] @ narrow
            out[f"{layer}.weight"] = out[f"{layer}.weight"] + scale(alpha, len(narrow)) * change
    return out


@pytest.mark.parametrize(
    ("grade", "solution"),
    [
        (grader.grade_rename, rename),
        (grader.grade_widen, widen),
        (grader.grade_first_difference, first_apart),
        (grader.grade_merge, merge),
    ],
)
def test_graders_pass_what_is_right(grade, solution):
    assert grade(solution), grade(solution)


def _anywhere(name, pairs):
    return next((name.replace(old, new) for old, new in pairs if old in name), None)


def _everywhere(name, pairs):
    return next((name.replace(old, new) for old, new in pairs if name.startswith(old)), None)


def _unordered(theirs, ours, tolerance):
    return first_apart({name: theirs[name] for name in ours if name in theirs}, ours, tolerance)


def _absolute(theirs, ours, tolerance):
    apart = [n for n, a in theirs.items() if n not in ours or a.shape != ours[n].shape]
    return next((n for n, a in theirs.items() if n in apart or not (abs(a - ours[n]) <= tolerance).all()), None)


def _largest(theirs, ours, tolerance):
    for name, a in theirs.items():
        if name not in ours or ours[name].shape != a.shape:
            return name
        if (np.abs(a - ours[name]) > tolerance * (1 + np.abs(a))).any():
            return name
    return None


def _by_ours(theirs, ours, tolerance):
    """Relative to the size of ours, where the task says theirs."""
    for name, a in theirs.items():
        if name not in ours or ours[name].shape != a.shape:
            return name
        if not (np.abs(a - ours[name]) <= tolerance * (1 + np.abs(ours[name]))).all():
            return name
    return None


def _in_place(state, alpha):
    """Right numbers, but the tensors of the given dict are written to."""
    out = merge(state, alpha)
    for name in out:
        state[name].copy_(out[name])
    return out


@pytest.mark.parametrize(
    ("grade", "slip", "said"),
    [
        (grader.grade_rename, _anywhere, "expected None"),
        (grader.grade_rename, _everywhere, "expected 'b.a.weight', got 'b.b.weight'"),
        (grader.grade_rename, lambda name, pairs: rename(name, pairs) or name, "expected None"),
        (grader.grade_widen, lambda raw, shape: np.frombuffer(raw, "<f2").reshape(shape), "element"),
        (grader.grade_widen, lambda raw, shape: widen(raw, shape).astype(float).ravel(), "expected shape"),
        (grader.grade_widen, lambda raw, shape: widen(raw, shape).tolist(), "expected a numpy.ndarray"),
        (grader.grade_first_difference, _unordered, "expected"),
        (grader.grade_first_difference, _absolute, "expected None, got 'a'"),
        (grader.grade_first_difference, lambda a, b, t: first_apart(b, a, t), "expected"),
        (grader.grade_first_difference, _by_ours, "expected 'a', got None"),
        (grader.grade_first_difference, _largest, "case 1, .*expected 'a', got None"),
        (grader.grade_merge, lambda state, alpha: merge(state, alpha, lambda a, r: a), "q_proj.weight: element"),
        (
            grader.grade_merge,
            lambda state, alpha: merge(state, alpha, keep=True),
            "lora_A.default.weight is still there",
        ),
        (grader.grade_merge, lambda state, alpha: merge(state, 2.0), "element"),
        (grader.grade_merge, lambda state, alpha: list(state), "expected a dict, got a list"),
        (grader.grade_merge, _in_place, "argument 1 was changed"),
    ],
)
def test_graders_say_what_is_wrong(grade, slip, said):
    verdict = grade(slip)
    assert not verdict and re.search(said, verdict.message), verdict


def test_graders_know_a_stub():
    def stub(*_):
        raise NotImplementedError

    for grade in (grader.grade_rename, grader.grade_widen, grader.grade_first_difference, grader.grade_merge):
        assert "not written yet" in grade(stub).message
