"""The trainer: which samples a step holds, its losses, validation, what is not finite, log, command."""

import signal

import pytest
import torch
import training_toy
from safetensors.torch import load_file
from training_toy import BASE, Toy, ToyData, losses, trainer, weights_of

from glamm_mini.training import checkpoint
from glamm_mini.training.data_order import Batches
from glamm_mini.training.logs import TrainingLog, read_log
from glamm_mini.training.parallel import resolve_precision
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer


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


@pytest.mark.parametrize("size", [1, 2, 37, 1000])
def test_the_order_is_a_permutation_that_depends_on_seed_and_epoch_alone(size):
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(range(size), list, BASE.with_overrides([f"seed={seed}"]))
        return [batches.index(position) for position in range(epoch * size, (epoch + 1) * size)]

    assert sorted(order(0, 0)) == sorted(order(1, 0)) == sorted(order(0, 1)) == list(range(size))
    assert order(0, 1) == order(0, 1)
    assert size < 37 or len({tuple(order(*key)) for key in ((0, 0), (1, 0), (0, 1))}) == 3
    forth = Batches(range(size), list, BASE)
    assert [forth.index(p) for p in (3 * size, 0, size)] == [order(0, 3)[0], order(0, 0)[0], order(0, 1)[0]]
    assert size < 1000 or abs(sum(a < b for a, b in zip(order(0, 0), order(0, 0)[1:], strict=False)) - 500) < 60


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


# ---- validation ----


def test_a_validation_that_fails_costs_no_step(tmp_path):
    """The last checkpoint is written before the model is measured."""

    def fails(model):
        raise RuntimeError("no figures today")

    with pytest.raises(RuntimeError, match="no figures today"):
        trainer(tmp_path, BASE.with_overrides(["steps=3", "save_every=50"]), validate=fails).fit()
    assert checkpoint.read_manifest(tmp_path)["step"] == 3
    for _ in range(2):  # what was not measured is measured when the run goes on, once
        measured = []
        validate = lambda model, kept=measured: kept.append(model) or {"iou": 0.5}  # noqa: E731
        again = trainer(tmp_path, BASE.with_overrides(["steps=3", "save_every=50"]), validate=validate)
        ended = again.fit(resume=True)
        assert ended["step"] == 3 and ended["validation"] == {"iou": 0.5}
        lines = read_log(tmp_path / "log.jsonl")
        assert [line["validation"] for line in lines if "validation" in line] == [{"iou": 0.5}]
        assert checkpoint.read_manifest(tmp_path)["metrics"]["validation"] == {"iou": 0.5}
    assert not measured


def test_validation_takes_the_model_in_evaluation_mode_and_training_goes_on_in_training_mode(tmp_path, capsys):
    """A model whose dropout stays off after the first validation would train on, to other weights."""
    modes, figures = [], iter([{"score": 0.5}, {"score": float("nan"), "other": 1.0}])

    def validate(model):
        modes.append(model.training)
        return next(figures)

    trained = []

    class Watching(Toy):
        def forward(self, **batch):
            trained.append([module.training for module in self.modules()])
            return super().forward(**batch)

    settings = BASE.with_overrides(["steps=4", "validate_every=2", "save_every=2"])
    run = trainer(tmp_path / "validated", settings, model=Watching(dropout=0.3), validate=validate)
    metrics = run.fit()
    assert modes == [False, False] and len(trained) == 4 and all(all(mode) for mode in trained)
    records = [r for r in read_log(tmp_path / "validated" / "log.jsonl") if "validation" in r]
    assert [(r["step"], r["validation"]) for r in records] == [(2, {"score": 0.5}), (4, {"score": None, "other": 1.0})]
    assert "step 4: score is nan" in capsys.readouterr().err and metrics["validation"]["other"] == 1.0
    assert not run.model.training
    plain = trainer(tmp_path / "plain", settings, model=Toy(dropout=0.3))
    plain.fit()
    assert torch.equal(weights_of(plain.model), weights_of(run.model))


# ---- what is not finite ----


class Faulty(Toy):
    """From call number `at` on, the loss, the gradient or the weights are not finite."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__()
        self.what, self.at, self.calls = what, at, 0

    def forward(self, **batch):
        output = super().forward(**batch)
        self.calls += 1
        if self.calls >= self.at:
            nan = torch.tensor(float("nan"))
            if self.what == "loss":
                output.loss = output.loss * nan
            elif self.what == "infinite loss":
                output.loss = output.loss * float("inf")
            elif self.what == "loss without gradient":
                output.loss = output.loss + nan
                output.loss.register_hook(lambda gradient: torch.ones_like(gradient))
            elif self.what == "gradient":
                output.loss.register_hook(lambda gradient: gradient * nan)
            else:  # a step that is too large: the weights overflow, loss and gradient were finite
                self.embed.weight.data[0, 0] = float("inf")
                self.idle.data[0] = float("inf")
        return output


@pytest.mark.parametrize("what", ["loss", "infinite loss", "loss without gradient", "gradient", "weights"])
@pytest.mark.parametrize("how", [["log_every=1"], ["log_every=9"], ["log_every=9", "accumulation=2"]])
@pytest.mark.parametrize("save_every", [2, 3])  # 3: the first bad step, number 6, is one that saves
def test_what_is_not_finite_never_replaces_a_good_checkpoint(tmp_path, what, how, save_every):
    settings = BASE.with_overrides(["steps=20", "batch_size=2", *how, f"save_every={save_every}"])
    model = Faulty(what, at=6 * settings.accumulation)
    with pytest.raises(ValueError, match="nan|inf|finite") as error:
        trainer(tmp_path, settings, model=model).fit()
    step = {2: 4, 3: 3}[save_every]
    assert checkpoint.read_manifest(tmp_path)["step"] == step and f"step {step} is kept" in str(error.value)
    kept = load_file(tmp_path / "last" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_a_bad_first_step_says_that_nothing_was_saved(tmp_path):
    with pytest.raises(ValueError, match="step 1.*No checkpoint"):
        trainer(tmp_path, BASE, model=Faulty("gradient", at=1)).fit()
    assert not (tmp_path / "last").exists()


def test_a_stop_on_request_saves_nothing_that_is_not_finite(tmp_path):
    class Stopping(ToyData):
        def __getitem__(self, i: int):
            if len(self.seen) == 24:  # step 7
                signal.raise_signal(signal.SIGTERM)
            return super().__getitem__(i)

    settings = BASE.with_overrides(["log_every=50"])
    with pytest.raises(ValueError, match="mean loss of the steps 1 to 6.*step 5 is kept"):
        trainer(tmp_path, settings, Stopping(), model=Faulty("loss without gradient", at=6)).fit()
    assert checkpoint.read_manifest(tmp_path)["step"] == 5


class Scaler:
    """fp16 needs a GPU: this one scales nothing, tells a scale, and leaves out steps that are not finite."""

    def __init__(self, scale: float, optimizer) -> None:
        self.get_scale, self.scale, self.state_dict = lambda: scale, lambda loss: loss, dict
        self.optimizer, self.step, self.left_out = optimizer, optimizer.step, 0

    def step_if_finite(self) -> None:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if all(torch.isfinite(gradient).all() for gradient in gradients):
            self.step()
        else:
            self.left_out += 1


class Scaled(Trainer):
    """A trainer that believes itself in fp16."""

    def _start(self, resume: bool) -> None:
        super()._start(resume)
        self.accelerator.scaler = Scaler(self.scale, self.optimizer)
        self.optimizer.step = self.accelerator.scaler.step_if_finite


@pytest.mark.parametrize(("scale", "fails"), [(2.0**-9, False), (2.0**-10, True)])
def test_a_step_that_loss_scaling_leaves_out_is_no_error_until_the_scale_is_tiny(tmp_path, scale, fails):
    run = Scaled(Faulty("gradient", at=3), ToyData(), training_toy.collate, BASE.with_overrides(["steps=4"]), tmp_path)
    run.scale = scale
    if fails:
        with pytest.raises(ValueError, match="norm of the gradient is nan at step 3"):
            run.fit()
    else:
        run.fit()
        assert run.accelerator.scaler.left_out == 2 and torch.isfinite(weights_of(run.model)).all()
        assert read_log(tmp_path / "log.jsonl")[-1]["grad_norm"] is None
    assert (tmp_path / "last").exists() == (not fails)


# ---- recomputation ----


def test_layers_are_recomputed_while_training_and_not_after(tmp_path):
    """Not for the rest of the life of a model that somebody goes on using."""

    class Able(Toy):
        supports_gradient_checkpointing = True

        def __init__(self):
            super().__init__()
            self.switched = []

        def gradient_checkpointing_enable(self, options):
            self.switched.append(options)

        def gradient_checkpointing_disable(self):
            self.switched.append(None)

    wanted = BASE.with_overrides(["steps=1", "gradient_checkpointing=true"])
    model = Able()
    trainer(tmp_path / "a", wanted, model=model).fit()
    assert model.switched == [{"use_reentrant": False}, None]
    trainer(tmp_path / "b", BASE.with_overrides(["steps=1"]), model=model).fit()
    assert len(model.switched) == 2
    with pytest.raises(ValueError, match="norm"):
        trainer(tmp_path / "c", wanted, model=(broken := FaultyAble())).fit()
    assert broken.switched == 0
    with pytest.raises(ValueError, match="supports_gradient_checkpointing"):
        trainer(tmp_path / "d", wanted).fit()


class FaultyAble(Faulty):
    supports_gradient_checkpointing = True
    switched = 0

    def __init__(self) -> None:
        super().__init__("gradient", at=1)

    def gradient_checkpointing_enable(self, options) -> None:
        self.switched += 1

    def gradient_checkpointing_disable(self) -> None:
        self.switched -= 1


# ---- precision ----


def test_training_learns(tmp_path):
    metrics = trainer(tmp_path, BASE.with_overrides(["steps=90", "muon_lr=0.02", "log_every=30"])).fit()
    records = read_log(tmp_path / "log.jsonl")
    assert metrics["loss"] < 0.6 * records[0]["loss"]
    assert {"lr", "grad_norm", "seconds", "samples_per_second", "ce", "mask"} <= set(records[0])


@pytest.mark.parametrize("able", [{"avx512_bf16": True}, {"amx_bf16": True, "avx512_bf16": False}, {"avx2": True}, {}])
def test_precision_auto_is_bf16_where_the_processor_computes_it(tmp_path, monkeypatch, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    settings = BASE.with_overrides(["steps=2"])
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
