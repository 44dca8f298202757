"""The trainer: which samples a step holds, its losses, validation, moving average, log, command."""

import pytest
import torch
import training_toy
from safetensors.torch import load_file
from training_toy import BASE, Toy, ToyData, losses, trainer, weights_of
from typer.testing import CliRunner

from glamm_mini.training import resume as checkpoint
from glamm_mini.training.data_order import Batches, permuted
from glamm_mini.training.held_out import held_out_loss
from glamm_mini.training.launch import resolve_precision
from glamm_mini.training.logs import TrainingLog, read_log
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.stopping import TrainingInterrupted


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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


# ---- validation, moving average, errors ----


def test_a_validation_that_fails_costs_no_step(tmp_path):
    """The last checkpoint is written before the model is measured."""

    def fails(model):
        raise RuntimeError("no figures today")

    with pytest.raises(RuntimeError, match="no figures today"):
        trainer(tmp_path, BASE.with_overrides(["steps=3", "save_every=50"]), validate=fails).fit()
    assert checkpoint.read_manifest(tmp_path)["step"] == 3
    again = trainer(tmp_path, BASE.with_overrides(["steps=3", "save_every=50"]), validate=fails)
    assert again.fit(resume=True)["step"] == 3


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
    expected = run.model(**training_toy.collate_without_counts(samples)).loss.item()  # all in one batch
    assert records[-1]["validation"] == {"score": 0.5, "loss": pytest.approx(expected, rel=1e-6)}


def test_without_counts_the_held_out_loss_is_weighted_by_samples():
    model, samples = Toy(), [ToyData()[i] for i in range(6)]
    batches = [training_toy.collate_without_counts(part) for part in (samples[:4], samples[4:])]
    expected = sum(model(**batch).loss.item() * len(batch["ids"]) for batch in batches) / 6
    found = held_out_loss(model, samples, training_toy.collate_without_counts, 4, torch.device("cpu"))
    assert found == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"amx_bf16": True, "avx512_bf16": False}, {"avx2": True}, {}])
def test_precision_auto_is_bf16_where_the_processor_computes_it(tmp_path, monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    settings = BASE.with_overrides(["steps=3"])
    for precision in ("no", "bf16", "auto"):
        trainer(tmp_path / precision, settings.with_overrides([f"precision={precision}"])).fit()
    found = [losses(tmp_path / precision) for precision in ("no", "bf16", "auto")]
    assert found[0] != found[1] and found[2] == found[1 if any(able.get(k) for k in ("avx512_bf16", "amx_bf16")) else 0]


def test_precision_auto_is_float32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)  # as in torch 2.9
    assert resolve_precision("auto", torch.device("cpu")) == "no"


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
