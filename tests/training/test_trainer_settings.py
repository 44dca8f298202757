"""Settings and their overrides, the schedule, parameter groups, Muon."""

import json
from dataclasses import asdict

import pytest
import torch
import training_toy
from torch import nn
from training_toy import BASE, Toy, ToyData, weights_of

from glamm_mini.training import optimizer as optimizers
from glamm_mini.training.optimizer import MuonAdamW, clip_gradients, gradient_norm, orthogonalized
from glamm_mini.training.run_folder import check_same_run
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_how_a_run_is_shared_out_may_change_when_it_is_resumed(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({**asdict(BASE), "processes": 8}))
    others = ["shard=full", "gradient_checkpointing=true", "timeout_minutes=90", "batch_size=2"]
    after = {**asdict(BASE.with_overrides(others)), "processes": 16}
    check_same_run(tmp_path, after)
    with pytest.raises(ValueError, match=": batch_size was 4, now 2. Resume"):
        check_same_run(tmp_path, {**after, "processes": 8})


def test_overrides_read_every_kind():
    overrides = ["steps=1_000", "lr=3e-4", "betas=0.8,0.9", "schedule=linear", "save_frozen=no", 'lr_scales={"a": 0.1}']
    settings = BASE.with_overrides(overrides)
    assert (settings.steps, settings.lr, settings.betas, settings.schedule) == (1000, 3e-4, (0.8, 0.9), "linear")
    assert settings.save_frozen is False and settings.lr_scales == {"a": 0.1}
    assert json.loads(json.dumps(asdict(settings)))["betas"] == [0.8, 0.9]
    assert BASE.with_overrides(None) == BASE


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "'stepz'.* Did you mean steps"),
        ("steps", "expected KEY=VALUE"),
        ("steps=many", "steps is 'many'; expected a whole number"),
        ("lr=big", "lr is 'big'; expected a finite number"),
        ("lr=inf", "lr is 'inf'"),
        ("warmup=inf", "warmup is 'inf'"),
        ("timeout_minutes=nan", "timeout_minutes is 'nan'"),
        ("betas=0.9,nan", "betas is"),
        ('lr_scales={"a": Infinity}', "lr_scales is"),
        ("save_frozen=maybe", "true or false"),
        ("betas=0.9", "two numbers"),
        ("lr_scales=0.1", "lr_scales is '0.1'"),
        ('lr_scales={"a": "b"}', "lr_scales is"),
        ("steps=1.5", "steps is '1.5'"),
        ("schedule=step", "expected one of cosine, linear, constant"),
        ("precision=fp8", "expected one of no, bf16, fp16, auto"),
        ("batch_size=0", "batch_size is 0; expected 1 or more"),
        ("lr=nan", "lr is 'nan'; expected a finite number"),
        ("final_lr=2", "final_lr is 2.0; expected 1 or less"),
        ("betas=0.9,1", "betas is"),
        ("betas=0.9,-0.1", "betas is"),
        ("ema=0.9", "'ema'"),
        ("=5", "cannot read the setting '=5'; expected KEY=VALUE"),
        ("warmup=25", "warmup is 25; expected at most the 24 steps of the run"),
        ("workers=1000000", "workers is 1000000; expected 1024 or less"),
        ('lr_scales={"a": -1}', "lr_scales is {'a': -1}; expected 0 or more"),
        ("shard=half", "expected one of none, full"),
        ("timeout_minutes=0", "timeout_minutes is 0.0"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        BASE.with_overrides([override])


def test_a_warm_up_of_the_recipe_may_be_longer_than_a_trial():
    assert TrainSettings(warmup=100).with_overrides(["steps=2"]).steps == 2
    assert BASE.with_overrides(["warmup=24"]).warmup_steps == 24


BAD_TRAINERS = {
    "a place": ({"out": 5}, ValueError, "out is 5"),
    "an empty place": ({"out": ""}, ValueError, "out is ''"),
    "settings": ({"settings": {"steps": 3}}, TypeError, "settings is {'steps': 3}"),
    "a collate": ({"collate": None}, TypeError, "collate is None"),
    "a validate": ({"validate": 5}, TypeError, "validate is 5"),
}


@pytest.mark.parametrize("name", BAD_TRAINERS)
def test_a_trainer_that_cannot_work_names_the_argument(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, kind, message = BAD_TRAINERS[name]
    usual = {"data": ToyData(), "collate": training_toy.collate, "settings": BASE, "out": tmp_path / "run"}
    with pytest.raises(kind, match=message):
        Trainer(Toy(), **usual | given).fit()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_training_where_gradients_are_off_is_refused(without, tmp_path):
    with without(), pytest.raises(ValueError, match="outside of torch.no_grad"):
        Trainer(Toy(), ToyData(), training_toy.collate, BASE, tmp_path / "run").fit()
    assert not (tmp_path / "run").exists()


# ---- optimizer ----


def test_schedules_warm_up_and_end():
    settings = TrainSettings(steps=100, warmup=10, schedule="cosine", final_lr=0.1)
    factors = [optimizers.learning_rate_factor(step, settings) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55) and factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))
    linear = TrainSettings(steps=100, warmup=0.1, schedule="linear")
    assert optimizers.learning_rate_factor(55, linear) == pytest.approx(0.5)
    assert optimizers.learning_rate_factor(99, TrainSettings(steps=100, schedule="constant", warmup=0)) == 1.0


def test_only_hidden_matrices_go_to_muon():
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(50, 32),
            "position": nn.ParameterDict({"table": nn.Parameter(torch.zeros(9, 32))}),
            "patch": nn.Conv2d(3, 32, 4),
            "norm": nn.LayerNorm(32),
            "qkv": nn.Linear(32, 96),
            "box_head": nn.Linear(32, 32),
            "narrow": nn.Linear(32, 4),
            "lm_head": nn.Linear(32, 50),
            "tied": nn.Linear(32, 50, bias=False),
        }
    )
    model["tied"].weight = model["embed"].weight
    settings = TrainSettings(lr=1e-3, muon_lr=1e-2, weight_decay=0.1, lr_scales={"patch": 0.1, "norm": 0.5})
    groups = optimizers.parameter_groups(model, settings)
    found = {name: (g["kind"], g["lr"], g["weight_decay"]) for g in groups for name, _ in g["params"]}
    assert [name for name, (kind, _, _) in found.items() if kind == "muon"] == ["qkv.weight"]
    assert found["qkv.weight"] == ("muon", 1e-2, 0.1) and found["qkv.bias"] == ("adamw", 1e-3, 0.0)
    assert found["patch.weight"] == ("adamw", pytest.approx(1e-4), 0.1) and found["norm.weight"][1] == 5e-4
    assert found["embed.weight"] == ("adamw", 1e-3, 0.0) and found["position.table"][0] == "adamw"
    with pytest.raises(ValueError, match=r"lr_scales names \['encoder'\]"):
        optimizers.parameter_groups(model, TrainSettings(lr_scales={"encoder": 0.1}))
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        optimizers.parameter_groups(model.requires_grad_(False), TrainSettings())


def gradients(model: nn.Module, step: int) -> None:
    samples = [ToyData()[i] for i in range(step, step + 4)]
    model.zero_grad()
    model(**training_toy.collate_without_counts(samples)).loss.backward()


def test_muon_and_adamw_in_one_optimizer_equal_two_apart():
    def stepped(build):
        model = Toy()
        many = build(model)
        for step in range(3):
            gradients(model, step)
            for optimizer in many:
                optimizer.step()
        return weights_of(model)

    def apart(model):
        matrices = [model.hidden.weight, model.inner.weight]
        rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
        adamw = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
        return [muon(matrices, lr=2e-2), adamw]

    settings = TrainSettings(lr=1e-2, muon_lr=2e-2)
    torch.testing.assert_close(stepped(lambda m: [optimizers.build_optimizer(m, settings)]), stepped(apart))
    assert type(optimizers.build_optimizer(Toy(), TrainSettings())) is torch.optim.AdamW


def muon(parameters: list, **options) -> MuonAdamW:
    return MuonAdamW([{"params": parameters, "kind": "muon", "weight_decay": 0.0} | options])


def test_muon_makes_singular_values_equal():
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, 16, 40), full_matrices=False)
    matrices = u @ torch.diag_embed(torch.linspace(0.05, 1, 16).expand(3, -1)) @ v
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert values.min() > 0.6 and values.max() < 1.3
    assert torch.equal(orthogonalized(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_muon_equals_the_one_of_torch_up_to_its_bfloat16(weight_decay):
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((32, 32), (64, 16), (16, 64), (32, 32))]
    mine, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    optimizer = muon(mine, lr=0.1, weight_decay=weight_decay)
    reference = torch.optim.Muon(theirs, lr=0.1, weight_decay=weight_decay)
    for _ in range(3):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b, t in zip(mine, theirs, start, strict=True):
        assert (a - b).norm() < 0.03 * (b - t).norm()
    with pytest.raises(ValueError, match=r"matrices only.*\(5,\)"):
        muon([nn.Parameter(torch.zeros(5))], lr=0.1)


# ---- clipping ----


def test_the_norm_of_a_large_gradient_is_summed_in_float64():
    large = torch.full((4096, 4096), 0.1)
    exact = float(torch.tensor(0.1).double()) * 4096
    assert float(gradient_norm([large])) == pytest.approx(exact, rel=1e-9)
    assert float(gradient_norm([large[:, ::2], torch.zeros(3)])) == pytest.approx(exact / 2**0.5, rel=1e-9)
    assert gradient_norm([large]).dtype == torch.float64 and float(gradient_norm([])) == 0


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
def test_clipping_is_that_of_torch(clip):
    mine, theirs = Toy(), Toy()
    for model in (mine, theirs):
        gradients(model, 3)
    norm = clip_gradients(mine, clip)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
    assert float(norm) == pytest.approx(float(expected), rel=1e-6) and float(norm) > 0.5
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)
