"""The trainer: what a step holds, exact resume after a kill, checkpoints that survive, settings, logs, optimizer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import training_toy
from safetensors.torch import load_file
from torch import nn
from training_toy import BASE, Toy, ToyData, trainer
from typer.testing import CliRunner

from glamm_mini.training import optimiser as optimisers
from glamm_mini.training import resume as checkpoint
from glamm_mini.training.batches import Batches, permuted
from glamm_mini.training.logs import TrainingLog, read_log
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.stopping import TrainingInterrupted

EVERYTHING = ["accumulation=2", "workers=1", "muon_lr=0.01", "ema=0.9", "weight_decay=0.1"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def losses(out: Path) -> list[tuple]:
    """The losses of every log line, exactly as written."""
    return [(r["step"], r["loss"], r["ce"], r["mask"], r["grad_norm"]) for r in read_log(out / "log.jsonl")]


def weights_of(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- which samples make up a step ----


def indices_of_step(step: int, processes: int, batch_size: int, accumulation: int, data, seed: int = 0) -> set[int]:
    settings = TrainSettings(batch_size=batch_size, accumulation=accumulation, seed=seed)
    found: list[int] = []
    for process in range(processes):
        batches = Batches(data, list, settings, process, processes)
        found += [i for a in range(accumulation) for i in batches.indices(step * accumulation + a)]
    assert len(found) == processes * batch_size * accumulation
    return set(found)


@pytest.mark.parametrize("size", [64, None])
def test_processes_and_accumulation_see_the_same_samples(size):
    data = ToyData(size)
    for step in (0, 3, 11):
        one = indices_of_step(step, 1, 8, 1, data)
        assert one == indices_of_step(step, 2, 4, 1, data) == indices_of_step(step, 1, 4, 2, data)
        assert one == indices_of_step(step, 2, 2, 2, data)


def test_an_epoch_shows_each_sample_once_in_an_order_of_its_own():
    epochs = [[i for s in range(e * 8, e * 8 + 8) for i in Batches(ToyData(32), list, BASE).indices(s)] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32))
    assert epochs[0] != epochs[1] and epochs[0] != list(range(32))
    other = Batches(ToyData(32), list, BASE.with_overrides(["seed=1"])).indices(0)
    assert other != epochs[0][:4]


@pytest.mark.parametrize("size", [1, 2, 3, 37, 1000])
def test_the_keyed_order_is_a_permutation(size):
    orders = [[permuted(place, size, key) for place in range(size)] for key in (1, 2)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(size))
    assert size < 37 or orders[0] != orders[1]
    assert size < 1000 or abs(sum(a < b for a, b in zip(orders[0], orders[0][1:], strict=False)) - 500) < 60


def test_endless_data_is_read_straight_through_and_empty_data_is_an_error():
    assert Batches(ToyData(None), list, BASE).indices(3) == [12, 13, 14, 15]
    with pytest.raises(ValueError, match="empty"):
        Batches([], list, BASE)


def test_totals_of_a_step_make_accumulation_equal_to_one_large_batch(tmp_path):
    models = []
    for name, change in (("large", ["batch_size=8"]), ("small", ["batch_size=2", "accumulation=4"])):
        run = trainer(tmp_path / name, BASE.with_overrides([*change, "steps=6"]))
        run.fit()
        models.append(weights_of(run.model))
    torch.testing.assert_close(models[0], models[1], rtol=1e-4, atol=1e-6)
    for large, small in zip(losses(tmp_path / "large"), losses(tmp_path / "small"), strict=True):
        assert large == pytest.approx(small, rel=1e-4)


def test_without_counts_the_mean_over_micro_batches_is_taken(tmp_path):
    data, settings = ToyData(), BASE.with_overrides(["accumulation=2", "steps=1", "lr=0"])
    trainer(tmp_path, settings, data, collate=training_toy.collate_without_counts).fit()
    batches = Batches(data, training_toy.collate_without_counts, settings)
    expected = sum(Toy()(**batches[k]).loss.item() for k in (0, 1)) / 2
    assert losses(tmp_path)[0][1] == pytest.approx(expected, rel=1e-6)


# ---- resuming ----


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run with everything that has a state: dropout, Muon, moving average, accumulation, a worker."""
    out = tmp_path_factory.mktemp("uninterrupted")
    run = trainer(out, BASE.with_overrides(EVERYTHING), model=Toy(dropout=0.2))
    run.fit()
    return out, weights_of(run.model)


def test_killed_and_resumed_gives_the_same_losses_bit_for_bit(tmp_path, uninterrupted):
    command = [sys.executable, training_toy.__file__, tmp_path, "--sleep", "0.02", "--dropout", "0.2", *EVERYTHING]
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(read_log(tmp_path / "log.jsonl")) < 12 and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = losses(tmp_path)
    assert 12 <= before[-1][0] < 24, "killed too late to test anything"
    run = trainer(tmp_path, BASE.with_overrides(EVERYTHING), model=Toy(dropout=0.2))
    assert run.fit(resume=True)["step"] == 24
    out, weights = uninterrupted
    assert losses(tmp_path) == losses(out)
    assert before == losses(out)[: len(before)]
    assert torch.equal(weights_of(run.model), weights)


class Interrupting(ToyData):
    """Sends a signal to this process when sample number `at` is read, as a user or a scheduler would."""

    def __init__(self, number: int, at: int) -> None:
        super().__init__()
        self.number, self.at = number, at

    def __getitem__(self, i: int):
        sample = super().__getitem__(i)
        if len(self.seen) == self.at:
            os.kill(os.getpid(), self.number)
        return sample


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_saves_and_says_how_to_resume(tmp_path, number, capsys):
    settings = BASE.with_overrides(["log_every=4", "save_every=100", "steps=14"])
    trainer(tmp_path / "whole", settings).fit()
    with pytest.raises(TrainingInterrupted, match=r"stopped after step 5 of 14.*--resume"):
        trainer(tmp_path / "cut", settings, Interrupting(number, at=24)).fit()
    assert "stopping after this step" in capsys.readouterr().err
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    trainer(tmp_path / "cut", settings).fit(resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")  # also the mean over steps 5 to 8, cut at 5


def test_a_finished_run_resumes_to_its_result(tmp_path, uninterrupted):
    out, weights = uninterrupted
    shutil.copytree(out, tmp_path / "run")
    run = trainer(tmp_path / "run", BASE.with_overrides(EVERYTHING))
    metrics = run.fit(resume=True)
    assert metrics["step"] == 24 and torch.equal(weights_of(run.model), weights)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    settings = BASE.with_overrides(["steps=2"])
    trainer(tmp_path, settings).fit()
    with pytest.raises(ValueError, match="already holds a run, saved at step 2"):
        trainer(tmp_path, settings).fit()


def test_resuming_with_other_settings_names_them(tmp_path):
    settings = BASE.with_overrides(["steps=2"])
    trainer(tmp_path, settings).fit()
    with pytest.raises(ValueError, match=r"lr was 0.01, now 0.5; seed was 0, now 3"):
        trainer(tmp_path, settings.with_overrides(["lr=0.5", "seed=3", "workers=1"])).fit(resume=True)
    with pytest.raises(ValueError, match="batch_size was 4, now 8"):
        trainer(tmp_path, settings.with_overrides(["batch_size=8"])).fit(resume=True)
    free = ["workers=1", "log_every=7", "save_every=9", "threads=1", "batch_size=2", "accumulation=2"]
    trainer(tmp_path, settings.with_overrides(free)).fit(resume=True)


def test_resume_without_a_checkpoint_starts_anew(tmp_path, capsys):
    assert trainer(tmp_path, BASE.with_overrides(["steps=2"])).fit(resume=True)["step"] == 2
    assert "no checkpoint" in capsys.readouterr().err


# ---- checkpoints ----


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    resource = pytest.importorskip("resource")
    settings = BASE.with_overrides(["steps=10"])

    class Full(ToyData):
        def __getitem__(self, i: int):
            if len(self.seen) == 30:  # step 8 of 10: the checkpoint of step 5 is there
                resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
            return super().__getitem__(i)

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"checkpoint of step 10 .* checkpoint of step 5 is kept.*disk full") as error:
            trainer(tmp_path, settings, Full()).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "MiB are free" in str(error.value)
    assert checkpoint.read_manifest(tmp_path)["step"] == 5 and not (tmp_path / "last.new").exists()
    assert trainer(tmp_path, settings).fit(resume=True)["step"] == 10


@pytest.mark.parametrize("name", ["model.safetensors", "training.pt", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_a_clear_error(tmp_path, name, damage):
    settings = BASE.with_overrides(["steps=1"])
    trainer(tmp_path, settings).fit()
    path = tmp_path / "last" / name
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        path.unlink()
    with pytest.raises(ValueError, match=rf"damaged: {name} .*delete the folder"):
        trainer(tmp_path, settings).fit(resume=True)


def test_changed_bytes_and_another_model_are_clear_errors(tmp_path):
    settings = BASE.with_overrides(["steps=1"])
    trainer(tmp_path, settings).fit()
    other = Toy()
    other.head = nn.Linear(32, 2)
    with pytest.raises(ValueError, match="another model: 2 tensors differ, such as head.bias, head.weight"):
        trainer(tmp_path, settings, model=other).fit(resume=True)
    path = tmp_path / "last" / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(ValueError, match="damaged"):
        trainer(tmp_path, settings).fit(resume=True)


@pytest.mark.parametrize("leftover", ["old only", "half a new one", "old and last"])
def test_a_kill_while_saving_loses_nothing(tmp_path, leftover):
    """The three states that a kill between two file operations of `save` leaves behind."""
    settings = BASE.with_overrides(["steps=6"])
    trainer(tmp_path / "whole", settings).fit()
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path / "cut", settings, Interrupting(signal.SIGTERM, at=12)).fit()
    last = tmp_path / "cut" / "last"
    if leftover == "old only":
        last.rename(tmp_path / "cut" / "last.old")
    elif leftover == "half a new one":
        (tmp_path / "cut" / "last.new").mkdir()
        (tmp_path / "cut" / "last.new" / "model.safetensors").write_bytes(b"half")
    else:
        shutil.copytree(last, tmp_path / "cut" / "last.old")
    trainer(tmp_path / "cut", settings).fit(resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "cut").iterdir()) == ["last", "log.jsonl", "settings.json"]


def test_frozen_parameters_stay_and_may_be_left_out_of_the_checkpoint(tmp_path):
    settings = BASE.with_overrides(["steps=4", "save_frozen=false", "save_every=2"])
    model = Toy()
    model.embed.requires_grad_(False)
    before = model.embed.weight.clone()
    trainer(tmp_path, settings, model=model).fit()
    stored = load_file(tmp_path / "last" / "model.safetensors")
    assert torch.equal(model.embed.weight, before) and "embed.weight" not in stored and "inner.weight" in stored
    again = Toy()
    again.embed.requires_grad_(False)
    trainer(tmp_path, settings, model=again).fit(resume=True)
    assert torch.equal(weights_of(again), weights_of(model))


def test_tied_weights_survive(tmp_path):
    class Tied(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.inner2 = nn.Linear(32, 32)
            self.inner2.weight = self.inner.weight

        def forward(self, ids, **more):
            output = super().forward(ids, **more)
            output.loss = output.loss + self.inner2(torch.ones(1, 32)).square().mean()
            return output

    settings = BASE.with_overrides(["steps=3"])
    run = trainer(tmp_path, settings, model=Tied())
    run.fit()
    again = trainer(tmp_path, settings, model=Tied())
    again.fit(resume=True)
    assert again.model.inner2.weight is again.model.inner.weight
    assert torch.equal(weights_of(again.model), weights_of(run.model))


# ---- validation, moving average, errors ----


def test_the_moving_average_is_validated_and_returned(tmp_path):
    snapshots, validated = [], []

    class Watching(Toy):
        def forward(self, **batch):
            snapshots.append(weights_of(self))
            return super().forward(**batch)

    settings = BASE.with_overrides(["steps=5", "ema=0.9", "validate_every=5"])
    run = trainer(tmp_path, settings, model=Watching(), validate=lambda m: validated.append(weights_of(m)) or {"x": 1})
    metrics = run.fit()
    expected = snapshots[0]
    last = load_file(tmp_path / "last" / "model.safetensors")
    after = [*snapshots[1:], torch.cat([last[name].flatten() for name, _ in run.model.named_parameters()])]
    for step, weights in enumerate(after):
        share = 1 - min(0.9, (1 + step) / (10 + step))
        expected = expected + share * (weights - expected)
    torch.testing.assert_close(weights_of(run.model), expected)
    torch.testing.assert_close(validated[-1], expected)
    assert metrics["validation"] == {"x": 1} and not run.model.training


def test_validation_takes_the_model_in_evaluation_mode_and_is_logged(tmp_path):
    modes = []
    held_out = ToyData(6)
    run = trainer(
        tmp_path,
        BASE.with_overrides(["steps=4", "validate_every=2"]),
        validate=lambda model: modes.append(model.training) or {"score": 0.5},
        evaluation_loss_data=held_out,
    )
    run.fit()
    records = [r for r in read_log(tmp_path / "log.jsonl") if "validation" in r]
    assert [r["step"] for r in records] == [2, 4] and modes == [False, False]
    samples = [held_out[i] for i in range(6)]
    batches = [training_toy.collate_without_counts(part) for part in (samples[:4], samples[4:])]
    expected = sum(run.model(**batch).loss.item() * len(batch["ids"]) for batch in batches)
    assert records[-1]["validation"] == {"score": 0.5, "loss": pytest.approx(expected / 6, rel=1e-6)}


def test_a_loss_that_is_not_finite_stops_before_the_good_checkpoint_is_replaced(tmp_path):
    class Bursting(Toy):
        def forward(self, **batch):
            output = super().forward(**batch)
            self.calls = getattr(self, "calls", 0) + 1
            output.loss = output.loss * (float("nan") if self.calls > 7 else 1.0)
            return output

    with pytest.raises(ValueError, match=r"loss is nan at step 8: use a lower lr"):
        trainer(tmp_path, BASE, model=Bursting()).fit()
    assert checkpoint.read_manifest(tmp_path)["step"] == 5


def test_training_learns(tmp_path):
    metrics = trainer(tmp_path, BASE.with_overrides(["steps=150", "muon_lr=0.02", "log_every=50"])).fit()
    records = read_log(tmp_path / "log.jsonl")
    assert metrics["loss"] < 0.6 * records[0]["loss"]
    assert {"lr", "grad_norm", "seconds", "samples_per_second", "ce", "mask"} <= set(records[0])


# ---- settings ----


def test_overrides_read_every_kind():
    overrides = ["steps=1_000", "lr=3e-4", "betas=0.8,0.9", "schedule=linear", "save_frozen=no", 'lr_scales={"a": 0.1}']
    settings = BASE.with_overrides(overrides)
    assert (settings.steps, settings.lr, settings.betas, settings.schedule) == (1000, 3e-4, (0.8, 0.9), "linear")
    assert settings.save_frozen is False and settings.lr_scales == {"a": 0.1}
    assert json.loads(json.dumps(settings.to_dict()))["betas"] == [0.8, 0.9]
    assert BASE.with_overrides(None) == BASE


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "unknown setting 'stepz'. Did you mean steps"),
        ("steps", "expected KEY=VALUE"),
        ("steps=many", "steps is 'many'; expected a whole number"),
        ("lr=big", "lr is 'big'; expected a number"),
        ("save_frozen=maybe", "true or false"),
        ("betas=0.9", "two numbers"),
        ("lr_scales=0.1", "JSON such as"),
        ("schedule=step", "expected one of cosine, linear, constant"),
        ("precision=fp8", "expected one of no, bf16, fp16"),
        ("batch_size=0", "batch_size is 0; expected 1 or more"),
        ("lr=nan", "lr is nan; expected 0 or more"),
        ("ema=2", "from 0 to 1"),
    ],
)
def test_a_bad_override_is_named(override, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        BASE.with_overrides([override])


# ---- optimizer ----


def test_schedules_warm_up_and_end():
    settings = TrainSettings(steps=100, warmup=10, schedule="cosine", final_lr=0.1)
    factors = [optimisers.learning_rate_factor(step, settings) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.55) and factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))
    linear = TrainSettings(steps=100, warmup=0.1, schedule="linear")
    assert optimisers.learning_rate_factor(55, linear) == pytest.approx(0.5)
    assert optimisers.learning_rate_factor(99, TrainSettings(steps=100, schedule="constant", warmup=0)) == 1.0


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
    assert optimisers.hidden_matrices(model) == {"qkv.weight"}
    settings = TrainSettings(lr=1e-3, muon_lr=1e-2, weight_decay=0.1, lr_scales={"patch": 0.1, "norm": 0.5})
    groups = optimisers.parameter_groups(model, settings)
    found = {name: (g["kind"], g["lr"], g["weight_decay"]) for g in groups for name in g["names"]}
    assert found["qkv.weight"] == ("muon", 1e-2, 0.1) and found["qkv.bias"] == ("adamw", 1e-3, 0.0)
    assert found["patch.weight"] == ("adamw", pytest.approx(1e-4), 0.1) and found["norm.weight"][1] == 5e-4
    assert found["embed.weight"] == ("adamw", 1e-3, 0.0) and found["position.table"][0] == "adamw"
    with pytest.raises(ValueError, match=r"lr_scales names \['encoder'\]"):
        optimisers.parameter_groups(model, TrainSettings(lr_scales={"encoder": 0.1}))
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        optimisers.parameter_groups(model.requires_grad_(False), TrainSettings())


def test_two_optimizers_as_one_equal_two_apart():
    def stepped(build):
        model = Toy()
        many = build(model)
        for step in range(3):
            for optimiser in many:
                optimiser.zero_grad()
            model(**training_toy.collate_without_counts([ToyData()[i] for i in range(step, step + 4)])).loss.backward()
            for optimiser in many:
                optimiser.step()
        return weights_of(model)

    settings = TrainSettings(lr=1e-2, muon_lr=2e-2)

    def apart(model):
        matrices = [model.hidden.weight, model.inner.weight]
        rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
        return [
            torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    torch.testing.assert_close(stepped(lambda m: [optimisers.build_optimiser(m, settings)]), stepped(apart))


# ---- log and command ----


def test_the_log_is_cut_behind_the_resumed_step(tmp_path):
    log = TrainingLog(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step), "validation": {"x": float("nan")}})
    log.close()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 4, "los')  # killed while writing
    log = TrainingLog(tmp_path, resumed_step=2, tensorboard=False)
    log.write(3, {"loss": 9.0})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path / "log.jsonl")] == [(1, 1.0), (2, 2.0), (3, 9.0)]
    assert read_log(tmp_path / "log.jsonl")[0]["validation"] == {"x": None}
    assert read_log(tmp_path / "absent.jsonl") == []


def test_the_command_hands_everything_to_the_recipe(monkeypatch, tmp_path):
    import typer

    from glamm_mini.cli.train import train

    recipes = pytest.importorskip("glamm_mini.training.recipes")
    calls = []

    def run(recipe, **more):
        calls.append((recipe, more))
        if more["resume"]:
            raise TrainingInterrupted("stopped after step 3 of 9")

    monkeypatch.setattr(recipes, "run", run)
    app = typer.Typer()
    app.command()(train)
    arguments = ["storybook", "--out", str(tmp_path), "--set", "steps=3", "--set", "lr=1"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    expected = {"size": "tiny", "data": "storybook", "out": tmp_path, "resume": False, "overrides": ["steps=3", "lr=1"]}
    assert calls == [("storybook", expected)]
    stopped = CliRunner().invoke(app, ["storybook", "--resume"])
    assert stopped.exit_code == 130 and "stopped after step 3" in stopped.output
