"""What notebook 08 builds: LoRA equals peft's, a run in the official way, its graders and its pictures."""

import numpy as np
import pytest
import torch
from torch import nn

from glamm_mini.course.room_08 import grader as training
from glamm_mini.course.room_08 import pictures as views
from glamm_mini.course.room_08.lesson import (
    OFFICIAL_PARTS,
    HeldOut,
    LoRALinear,
    PullThePlug,
    add_lora,
    official_start,
    relative_change,
    thaw_only,
)
from glamm_mini.data.collate import Collate
from glamm_mini.storybook.dataset import StorybookDataset, evaluation_samples
from glamm_mini.training.logs import read_log
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer, TrainingInterrupted


@pytest.fixture(scope="module")
def start():
    return official_start(0)


@pytest.fixture(scope="module")
def samples():
    return list(evaluation_samples("gcg", "val", seed=5, limit=2, long_side=64))


# ---- LoRA ----


def test_lora_is_that_of_peft():
    peft = pytest.importorskip("peft", reason="peft comes with the train extra")
    torch.manual_seed(0)
    model = nn.ModuleDict({"q_proj": nn.Linear(12, 20), "k_proj": nn.Linear(12, 20)})
    mine = LoRALinear(nn.Linear(12, 20), rank=4, alpha=6, dropout=0.0)
    mine.base.load_state_dict(model["q_proj"].state_dict())
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"])
    theirs = peft.inject_adapter_in_model(config, model)["q_proj"]
    with torch.no_grad():
        theirs.lora_B["default"].weight.normal_()
        mine.lora_A.weight.copy_(theirs.lora_A["default"].weight)
        mine.lora_B.weight.copy_(theirs.lora_B["default"].weight)
    x = torch.randn(3, 5, 12)
    torch.testing.assert_close(mine(x), theirs(x), rtol=1e-5, atol=1e-5)
    merged = mine.base.weight + mine.scaling * mine.lora_B.weight @ mine.lora_A.weight
    theirs.merge()
    torch.testing.assert_close(merged, theirs.base_layer.weight, rtol=1e-5, atol=1e-5)


def test_lora_changes_nothing_at_first_and_trains_the_detour_alone():
    base = nn.Linear(6, 4)
    layer, x = LoRALinear(base, rank=2), torch.randn(7, 6)
    assert torch.equal(layer(x), base(x))
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A.weight", "lora_B.weight"}
    layer(x).sum().backward()
    assert base.weight.grad is None and layer.lora_B.weight.grad.abs().sum() > 0


def test_lora_and_thawing_go_by_name():
    model = nn.ModuleDict({"q_proj": nn.Linear(3, 3), "inner": nn.ModuleDict({"v_proj": nn.Linear(3, 3)})})
    assert add_lora(model, rank=1) == 2
    assert thaw_only(model, ("lora_",)) == 4 * 3
    with pytest.raises(ValueError, match="is called w_proj"):
        add_lora(model, ("w_proj",))
    with pytest.raises(ValueError, match="contains 'projektor'"):
        thaw_only(model, ("lora_", "projektor"))


# ---- the official run ----


def test_the_start_is_the_official_choice(start):
    glamm, _ = start
    trained = {name for name, p in glamm.named_parameters() if p.requires_grad}
    for part in OFFICIAL_PARTS:
        assert any(part in name for name in trained)
    frozen = ("global_encoder.", "vl_projector.", "grounding_encoder.", "pixel_decoder.prompt_encoder.")
    assert not [name for name in trained if name.startswith(frozen)]
    layers = glamm.config.text.num_hidden_layers
    assert len([name for name in trained if "lora_" in name]) == 4 * layers
    assert all(name.startswith("language_model.model.layers") for name in trained if "lora_" in name)
    other = official_start(1)[0]
    assert torch.equal(other.language_model.lm_head.weight, glamm.language_model.lm_head.weight)
    assert not torch.equal(other.lp_projector[0].weight, glamm.lp_projector[0].weight)


def test_held_out_scenes_are_seen_as_the_model_sees_them(start, samples, capsys):
    glamm, processor = start
    glamm.eval()
    held_out = HeldOut(glamm, processor, samples)
    figures = held_out(glamm)
    batch = Collate(processor)(samples)
    for key in ("num_tokens", "num_masks", "num_images"):
        batch.pop(key)
    with torch.no_grad():
        out = glamm(**batch)
    for term, value in out.losses.items():
        assert figures[term] == pytest.approx(float(value), rel=1e-4)
    assert [len(masks) for masks in held_out.drawn[0]] == [len(masks) for masks in batch["masks"]]
    assert 0 <= figures["iou"] <= 1 and "check 0: iou" in capsys.readouterr().out


def test_a_run_whose_plug_is_pulled_goes_on(tmp_path, start):
    scenes = StorybookDataset("train", size=1000, long_side=32, conversations=1, mixture={"refseg": 1})
    settings = TrainSettings(steps=3, batch_size=1, log_every=1, workers=0, save_frozen=False, tensorboard=False)
    collate = Collate(start[1])
    Trainer(official_start(0)[0], scenes, collate, settings, tmp_path / "whole").fit()
    with pytest.raises(TrainingInterrupted, match="stopped after step 1 of 3"):
        Trainer(official_start(0)[0], scenes, PullThePlug(collate, at=2), settings, tmp_path / "halves").fit()
    Trainer(official_start(1)[0], scenes, collate, settings, tmp_path / "halves").fit(resume=True)
    whole, halves = ([line["loss"] for line in read_log(tmp_path / run / "log.jsonl")] for run in ("whole", "halves"))
    assert len(whole) == 3 and halves == pytest.approx(whole, rel=1e-5)


def test_relative_change_is_a_share_of_the_start():
    before = {"a.x": torch.tensor([3.0, 4.0]), "b.x": torch.ones(2)}
    after = {"a.x": torch.tensor([3.0, 4.5]), "b.x": torch.ones(2)}
    assert relative_change(before, after, "a.") == pytest.approx(0.1)
    assert relative_change(before, after, "b.") == 0
    with pytest.raises(ValueError, match="contains 'c.'"):
        relative_change(before, after, "c.")


# ---- graders ----


def trained_names(names):
    pieces = ("lora_", "embed_tokens", "lm_head", "region_encoder", "lp_projector", "mask_decoder")
    return [name for name in names if any(piece in name for piece in pieces)]


def averages(sums, counts):
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return sum(means) / len(means), sum(sums) / sum(counts)


def positions(step, process, processes, batch_size, accumulation):
    rounds = range(step * accumulation, (step + 1) * accumulation)
    return [(k * processes + process) * batch_size + i for k in rounds for i in range(batch_size)]


def test_graders_pass_right_functions():
    assert training.grade_trained(trained_names)
    assert training.grade_merged(lambda w, a, b, alpha: w + alpha / len(a) * b @ a)
    assert training.grade_averages(averages)
    assert training.grade_positions(positions)


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (
            lambda: training.grade_trained(lambda n: [x for x in n if "q_" in x or x in trained_names(n)]),
            "not train",
        ),
        (lambda: training.grade_trained(lambda n: [x for x in trained_names(n) if "lora" not in x]), "is missing"),
        (lambda: training.grade_trained(lambda n: sorted(trained_names(n))), "order"),
        (lambda: training.grade_merged(lambda w, a, b, alpha: w + alpha * b @ a), "expected"),
        (lambda: training.grade_merged(lambda w, a, b, alpha: (w + alpha / len(a) * b @ a).T), "shape"),
        (lambda: training.grade_averages(lambda s, n: averages(s, n)[0]), "two numbers"),
        (lambda: training.grade_averages(lambda s, n: averages(s, n)[::-1]), "the official average is"),
        (lambda: training.grade_positions(lambda s, p, n, b, a: positions(s, p, n, b, 1)), "places, got"),
        (lambda: training.grade_positions(lambda s, p, n, b, a: positions(s, 0, n, b, a)), "place number 0 is"),
    ],
)
def test_graders_explain_near_misses(verdict, says):
    grade = verdict()
    assert not grade and says in grade.message, grade


# ---- pictures ----


def test_charts_are_drawn():
    lines = [{"step": step, "ce": 1.0, "mask_bce": 0.5, "mask_dice": 0.5} for step in (5, 10)]
    figures = [
        views.loss_chart(lines, [(0, lines[0]), (10, lines[1])]),
        views.line_chart({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "x", "y"),
        views.bar_chart({"one": 0.2, "two": 0.5}, "share"),
        views.paired_bars({"one": 0.2}, {"one": 0.5}, ("a", "b")),
    ]
    for figure in figures:
        assert figure.width == 1200 and len(figure.getcolors(1 << 20)) > 10


def test_the_scrubber_shows_the_masks_of_its_step(samples):
    held_out = HeldOut.__new__(HeldOut)
    truth = [torch.from_numpy(np.concatenate([t.masks for t in s.conversations[0]])) for s in samples]
    held_out.drawn = [[torch.zeros_like(masks) for masks in truth], truth]
    held_out.ious = [[torch.zeros(len(m)) for m in truth], [torch.ones(len(m)) for m in truth]]
    explorer = views.training_explorer(samples, held_out, [0, 40], scene=1)
    assert explorer.words == f"step 0: mean IoU 0.00 of {len(truth[1])} masks"
    before = explorer.picture
    explorer.choose(step=40)
    assert "step 40: mean IoU 1.00" in explorer.words and explorer.picture != before
    assert explorer.static_picture().width > 800
