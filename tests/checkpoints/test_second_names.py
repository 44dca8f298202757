"""Official checkpoints with names too many: second names of values that are there, and names dropped on request."""

import json

import pytest
import torch
from official_files import assert_holds, change_shard, clip_of

import glamm_mini
from glamm_mini.checkpoints.convert import prepare
from glamm_mini.checkpoints.load import load_model

OLD = "model.old_regions."


@pytest.fixture
def second_names(copy):
    """43 names more, each of a weight that is there already, as the listing of two released checkpoints suggests.
    Gives second name -> first name."""
    pairs = {}

    def change(part):
        for name in [name for name in part if "region_encoder" in name]:
            pairs[name.replace("model.region_encoder.", OLD)] = name
            part[name.replace("model.region_encoder.", OLD)] = part[name]

    sizes = [path.stat().st_size for path in sorted(copy.glob("*.bin"))]
    for number in (1, 2, 3):
        change_shard(copy, change, number)
    grown = [path.stat().st_size - size for path, size in zip(sorted(copy.glob("*.bin")), sizes, strict=True)]
    assert len(pairs) == 43 and max(grown) < 10_000, "names alone were added"
    return pairs


def test_a_second_name_of_the_same_values_is_passed_over_and_listed(files, copy, second_names, state, tmp_path):
    model = load_model(copy, vision_tower=clip_of(files))[0]
    assert_holds(model, state)
    assert model.load_report.second == second_names and model.load_report.loaded == len(state) - 3
    name = OLD + "roi_align.updims.weight"
    assert f"{name} passed over: it is model.region_encoder.roi_align.updims.weight" in str(model.load_report)
    report = prepare(copy, vision_tower=clip_of(files)).write(tmp_path / "ours")
    assert report.second == second_names
    assert_holds(load_model(tmp_path / "ours")[0], state)


@pytest.mark.parametrize("kind", ["copied", "part", "turned", "beside", "empty"])
def test_another_tensor_is_no_second_name(files, copy, kind):
    """Neither a copy, nor what lies in the same memory but elsewhere, or in another order."""

    def change(part):
        name = next(name for name, tensor in part.items() if tensor.ndim == 2 and len(set(tensor.shape)) == 1)
        both = torch.stack([part[name]] * 2)
        part[name] = both[0]
        odd = {"copied": both[0].clone(), "part": both[0, :1], "turned": both[0].t(), "beside": both[1]}
        part["model.odd"] = odd.get(kind, both[0, :0])

    change_shard(copy, change)
    with pytest.raises(ValueError, match=r"1 unexpected \(model.odd in .*leave the unexpected names out.*--drop BEG"):
        load_model(copy, vision_tower=clip_of(files))


def test_a_second_name_whose_first_is_unknown_too_stays_unexpected(files, copy):
    odd = torch.ones(3)
    change_shard(copy, lambda part: part.update({"model.odd": odd, "model.layers.0.odd": odd}))
    with pytest.raises(ValueError, match="2 unexpected"):
        load_model(copy, vision_tower=clip_of(files))


def test_the_first_of_two_names_may_be_the_odd_one(files, copy, state):
    def change(part):
        weights = dict(part)
        name = next(iter(weights))
        part.clear()
        part.update({"model.layers.0.odd": weights[name], **weights})

    change_shard(copy, change)
    model = load_model(copy, vision_tower=clip_of(files))[0]
    assert list(model.load_report.second) == ["model.layers.0.odd"]
    assert_holds(model, state)


def test_names_are_dropped_on_request(files, copy, state, tmp_path):
    change_shard(copy, lambda part: part.update({"model.odd.a": torch.ones(2), "model.odd.b": torch.ones(2)}))
    glamm = glamm_mini.load(copy, device="cpu", vision_tower=clip_of(files), drop=("model.odd.",))
    assert_holds(glamm.model, state)
    assert glamm.model.load_report.dropped == ["model.odd.a", "model.odd.b"]
    assert "2 entries dropped as asked (model.odd.a, model.odd.b)" in str(glamm.model.load_report)
    with pytest.raises(ValueError, match="1 unexpected .model.odd.b"):
        load_model(copy, vision_tower=clip_of(files), drop="model.odd.a")


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        (["model.odd.", "model.even."], "holds no name that begins with 'model.even.'"),
        (["model.odd.", "model.layers.1."], r"drop would leave out \d+ names that the model needs \(model.layers.1"),
        ([""], "drop would leave out"),
    ],
)
@pytest.mark.parametrize("config", [{}, {"model_type": "llava"}])
def test_nothing_that_the_model_needs_is_dropped(files, copy, drop, words, config):
    change_shard(copy, lambda part: part.update({"model.odd.a": torch.ones(2)}))
    if config:
        (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        load_model(copy, vision_tower=clip_of(files), drop=drop)
