"""Sharding the real GLaMM over two processes (gloo, CPU): parameters are DTensors, the training is that of one."""

from pathlib import Path

import pytest
import sharded_glamm
import torch
import training_toy
from once import once
from sharded_glamm import BASE, Scenes
from small_models import small_model
from torch import nn

from glamm_mini.storybook.pretrain.joint_stage import JointTraining
from glamm_mini.training.data_order import Batches
from glamm_mini.training.logs import read_log
from glamm_mini.training.parallel import policy, units
from glamm_mini.training.trainer import Trainer, layers_recomputed

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
CASES = ["everything", "lora"]


def _train(folder: Path) -> None:
    """The same trainings by one process with batches of 4, and by two with batches of 2."""
    torch.set_num_threads(1)
    for name in ("one", "two"):
        (folder / name).mkdir()
    for case in sharded_glamm.CASES:
        sharded_glamm.train(case, folder / "one", 4)
    training_toy.together(2, str(folder / "two"), "2", program=sharded_glamm.__file__)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of the trainings by one process and by two."""
    pytest.importorskip("peft")
    folder = once(tmp_path_factory, "sharded", _train)
    return folder / "one", folder / "two"


def logs(runs: tuple[Path, Path], case: str) -> list[list[dict]]:
    return [read_log(folder / case / "log.jsonl") for folder in runs]


def test_the_processes_of_a_step_differ_in_what_they_run():
    """Else the tests below would not see a process that waits for another's region encoder."""
    shares = [Batches(Scenes(), list, BASE.with_overrides(["batch_size=2"]), process, 2) for process in (0, 1)]
    with_boxes = [[any(i % 4 == 0 for i in share.indices(step)) for share in shares] for step in range(3)]
    assert [True, False] in with_boxes or [False, True] in with_boxes


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_losses_and_evaluation_of_two_sharded_processes_equal_one(runs, case):
    one, two = logs(runs, case)
    assert [line["step"] for line in two] == [1, 2, 3, 3]
    for a, b in zip(one[:3], two[:3], strict=True):
        for name in ("loss", "ce", "mask_bce", "mask_dice", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), (name, a["step"])
    validation = [log[3]["validation"] for log in (one, two)]
    assert validation[1]["ids"] == validation[0]["ids"] > 0  # what `generate` wrote


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradients_and_weights_of_two_sharded_processes_equal_one(runs, case):
    one = torch.load(runs[0] / f"{case}_0.pt", weights_only=True)
    both = [torch.load(runs[1] / f"{case}_{rank}.pt", weights_only=True) for rank in (0, 1)]
    for step in range(3):
        assert both[0]["gradients"][step].keys() == one["gradients"][step].keys()
        for name, gradient in one["gradients"][step].items():
            torch.testing.assert_close(both[0]["gradients"][step][name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    for name, weight in one["weights"].items():
        if name.endswith("k_proj.bias"):  # no attention depends on it: its gradient is rounding, which AdamW scales up
            continue
        torch.testing.assert_close(both[0]["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)
        assert torch.equal(both[0]["weights"][name], both[1]["weights"][name])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_cut_along_its_first_dimension(runs, case):
    found = torch.load(runs[1] / f"{case}_0.pt", weights_only=True)["layout"]
    assert len(found) > 100 and all(placements == ["S(0)"] for placements in found.values())
    trained = torch.load(runs[1] / f"{case}_0.pt", weights_only=True)["gradients"][0]
    assert any(".lora_A." in name for name in trained) == (case == "lora")
    assert ("language_model.model.layers.0.mlp.up_proj.weight" in trained) == (case == "everything")


@pytest.mark.slow
def test_frozen_weights_in_bfloat16_and_trained_ones_in_float32_share_their_units(runs):
    """As the official recipes train; two processes round gathered float32 weights too, autocast some of them."""
    one, two = logs(runs, "bf16")
    for a, b in zip(one[:2], two[:2], strict=True):
        assert a["loss"] != logs(runs, "lora")[0][a["step"] - 1]["loss"]
        for name in ("loss", "grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=1e-2)
    weights = torch.load(runs[1] / "bf16_0.pt", weights_only=True)["weights"]
    kinds = {name: tensor.dtype for name, tensor in weights.items()}
    assert kinds["language_model.model.layers.0.self_attn.q_proj.base_layer.weight"] == torch.bfloat16
    assert kinds["language_model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] == torch.float32


@pytest.mark.slow
def test_processes_that_would_wait_for_ever_or_differ_are_told(runs):
    for rank in (0, 1):
        pictures, weights = (runs[1] / f"refused_{rank}.txt").read_text().splitlines()
        assert "in one process and not in another" in pictures and "start from different weights" in weights


# ---- the policy ----


def test_units_are_the_layers_of_the_three_transformers():
    model = small_model()
    layers = [*model.global_encoder.clip.encoder.layers, *model.language_model.model.layers]
    expected = {*layers, *model.grounding_encoder.vit.blocks}
    assert set(units(model)) == expected == set(units(JointTraining(model)))
    assert units(nn.Linear(2, 2)) == []


def test_the_policy_gathers_in_the_precision_and_averages_in_float32():
    how = policy("bf16")
    assert (how.param_dtype, how.reduce_dtype) == (torch.bfloat16, torch.float32) and not how.cast_forward_inputs
    assert policy("no").param_dtype is None
    with pytest.raises(ValueError, match="precision fp16 cannot be sharded"):
        policy("fp16")


# ---- recomputation ----


def test_recomputation_gives_the_same_losses(tmp_path):
    for name, change in (("kept", "false"), ("again", "true")):
        settings = BASE.with_overrides(["steps=2", "batch_size=2", f"gradient_checkpointing={change}"])
        Trainer(small_model(), Scenes(), sharded_glamm.collate, settings, tmp_path / name).fit()
    kept, again = (read_log(tmp_path / name / "log.jsonl") for name in ("kept", "again"))
    for a, b in zip(kept, again, strict=True):
        assert [b[n] for n in ("loss", "ce", "mask_bce", "grad_norm")] == pytest.approx(
            [a[n] for n in ("loss", "ce", "mask_bce", "grad_norm")], rel=1e-6
        )


def test_recomputation_runs_layers_again_where_gradients_flow_and_nowhere_else():
    model = small_model().train()
    model.grounding_encoder.requires_grad_(False)
    model.global_encoder.requires_grad_(False)
    model.language_model.requires_grad_(False)  # gradients pass through it to the projector all the same
    calls: dict[str, int] = {}
    batch = {k: v for k, v in sharded_glamm.collate([Scenes()[1]]).items() if not k.startswith("num_")}

    def count(name):
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    for name in ("language_model.model.layers.0.mlp", "global_encoder.clip.encoder.layers.0.mlp"):
        model.get_submodule(name).register_forward_pre_hook(count(name))
    model.grounding_encoder.vit.blocks[0].mlp.register_forward_pre_hook(count("sam"))
    with layers_recomputed(model, True):
        model(**batch).loss.backward()
    assert calls == {
        "language_model.model.layers.0.mlp": 2,
        "global_encoder.clip.encoder.layers.0.mlp": 1,
        "sam": 1,
    }
    calls.clear()
    model(**batch).loss.backward()
    assert set(calls.values()) == {1}


@pytest.mark.slow
def test_the_end_is_a_whole_model_of_its_own(runs):
    """With tied weights tied, buffers there, and what was frozen frozen."""
    for case in ("everything", "lora"):
        found = [torch.load(runs[i] / f"{case}_0.pt", weights_only=True) for i in (0, 1)]
        assert found[0]["weights"].keys() == found[1]["weights"].keys()
        assert found[0]["requires_grad"] == found[1]["requires_grad"]
        assert found[0]["buffers"].keys() == found[1]["buffers"].keys()
        for name, buffer in found[0]["buffers"].items():
            assert torch.equal(buffer, found[1]["buffers"][name]), name
        assert found[0]["same"] and not found[1]["same"]
