"""What notebook 14 builds: counts equal the libraries', slices are torch's, graders and pictures."""

import signal

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from glamm_mini import GlammConfig, GlammForConditionalGeneration
from glamm_mini.course.room_14 import grader as scaling
from glamm_mini.course.room_14 import pictures as views
from glamm_mini.course.room_14.lesson import (
    EVEN,
    NF4,
    bytes_of,
    cache_bytes,
    held_for_backward,
    language_activations,
    quantize_blockwise,
    reduce_scatter,
    rows_of,
    state_bytes,
    step_flops,
    training_state,
)
from glamm_mini.course.room_14.sharded_run import held_here, note_held, small_run, stop_after


def tiny_on(device: str) -> GlammForConditionalGeneration:
    with torch.device(device):
        return GlammForConditionalGeneration(GlammConfig.of_size("tiny"))


# ---- memory ----


def test_the_sum_is_what_a_step_of_adamw_holds():
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model(torch.randn(2, 7)).sum().backward()
    optimizer.step()
    assert state_bytes(model, optimizer) == training_state(frozen=40, trained=18)


def test_what_is_cut_is_divided():
    whole, cut = training_state(100, 10), training_state(100, 10, 2, gpus=4, cut=("gradients", "optimizer"))
    assert whole == {"weights": 440, "gradients": 40, "optimizer": 80}
    assert cut == {"weights": 240, "gradients": 10, "optimizer": 20}


def test_held_tensors_are_counted_once_and_weights_not_at_all():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4, requires_grad=True)
    out, held = held_for_backward(layer, lambda: layer(x).relu() + layer(x).relu())
    # x once, and two results of relu
    assert held == [((5, 4), 80), ((5, 3), 60), ((5, 3), 60)] and out.shape == (5, 3)
    assert held_for_backward(layer, lambda: layer.requires_grad_(False)(x.detach()))[1] == []


def test_meta_counts_what_a_cpu_without_fused_attention_keeps():
    held = bytes_of(language_activations(tiny_on("meta"), 2, 40))
    layers = tiny_on("cpu").language_model.model
    embeds, mask = torch.randn(2, 40, layers.config.hidden_size, requires_grad=True), torch.ones(2, 1, 40, 40).bool()
    with sdpa_kernel(SDPBackend.MATH):
        run = held_for_backward(layers, lambda: layers(inputs_embeds=embeds, attention_mask=mask, use_cache=False))
    assert held == pytest.approx(bytes_of(run[1]), rel=0.1)


def test_the_cache_is_that_of_the_model():
    config = GlammConfig.of_size("tiny").text
    model = tiny_on("cpu").language_model
    with torch.no_grad():
        cache = model.model(inputs_embeds=torch.randn(1, 9, config.hidden_size), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    width = config.hidden_size // config.num_attention_heads
    assert cache_bytes(config.num_hidden_layers, config.num_key_value_heads, width, 9, 4) == held


def test_quantize_blockwise_are_those_of_bitsandbytes():
    torch.manual_seed(0)
    weights = torch.randn(64, 128)
    ours = quantize_blockwise(weights, NF4)
    assert (ours - weights).norm() < (quantize_blockwise(weights, EVEN) - weights).norm()
    functional = pytest.importorskip("bitsandbytes.functional", reason="comes with the quantize extra")
    codes, state = functional.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    torch.testing.assert_close(ours, functional.dequantize_4bit(codes, state), rtol=1e-5, atol=1e-5)


# ---- many devices ----


@pytest.mark.parametrize(("rows", "processes"), [(8, 4), (10, 4), (5, 4), (1, 2), (564, 3)])
def test_slices_are_torchs(rows, processes):
    whole = torch.randn(rows, 3)
    theirs, _ = Shard(0)._split_tensor(whole, processes, with_padding=False)
    for rank in range(processes):
        torch.testing.assert_close(rows_of(whole, rank, processes), theirs[rank].reshape(-1, 3))
    torch.testing.assert_close(torch.cat([rows_of(whole, rank, processes) for rank in range(processes)]), whole)
    halves = [reduce_scatter([whole, 3 * whole], rank) for rank in range(2)]
    torch.testing.assert_close(torch.cat(halves), 2 * whole)


def test_what_one_process_holds_is_whole(tmp_path):
    trainer = small_run(tmp_path)
    assert not [m for m in trainer.model.modules() if isinstance(m, nn.Dropout) and m.p]
    note_held(trainer.model, tmp_path)
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    torch.optim.AdamW([parameter]).step()  # any optimizer's step: the note is written, once
    assert (tmp_path / "held_0.json").exists()
    note = held_here(trainer.model, torch.optim.AdamW([parameter]))
    assert {p["placement"] for p in note["parameters"].values()} == {"whole"}
    assert note["bytes"]["weights"] == sum(p.nbytes for p in trainer.model.parameters())


def test_a_stop_is_asked_for_after_the_step_that_was_named():
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    asked, before = [], signal.getsignal(signal.SIGINT)  # a test runner may have its own answer to the signal
    signal.signal(signal.SIGINT, lambda *_: asked.append(True))
    try:
        stop_after(2)
        counts = []
        for _ in range(3):
            optimizer.step()
            counts.append(len(asked))
    finally:
        signal.signal(signal.SIGINT, before)
    assert counts == [0, 1, 1]


# ---- operations ----


def test_operations_are_those_that_pytorch_counts():
    stack = nn.Sequential(nn.Linear(32, 64, bias=False), nn.Linear(64, 16, bias=False))
    stack[0].requires_grad_(False)
    numbers, trained = 32 * 64 + 64 * 16, 64 * 16
    x = torch.randn(10, 32, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        stack(x).sum().backward()
    assert counter.get_total_flops() == step_flops(numbers, trained, 10)
    assert step_flops(numbers, 0, 10, recompute=True) == 3 * 2 * numbers * 10


# ---- graders ----


def lora_numbers(shapes, rank):
    return sum(rank * (out + inside) for out, inside in shapes)


def stage_bytes(frozen, trained, gpus, stage, least=(3, 2, 1)):
    parts = (2 * (frozen + trained), 2 * trained, 12 * trained)
    return sum(part / gpus if stage >= at else part for part, at in zip(parts, least, strict=True))


def holder(row, rows, processes):
    share = -(-rows // processes)
    return row // share, row % share


def test_graders_pass_right_functions():
    assert scaling.grade_lora_numbers(lora_numbers)
    assert scaling.grade_stage_bytes(stage_bytes)
    assert scaling.grade_largest_batch(lambda card, fixed, row: max(0, int((0.9 * card - fixed) // row)))
    assert scaling.grade_holder(holder)


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        (lambda: scaling.grade_lora_numbers(lambda shapes, rank: sum(rank * a * b for a, b in shapes)), "times as"),
        (lambda: scaling.grade_lora_numbers(lambda shapes, rank: None), "is a `return` missing?"),
        (lambda: scaling.grade_stage_bytes(lambda *a: str(stage_bytes(*a))), "expected a number, got str"),
        (lambda: scaling.grade_stage_bytes(lambda *a: stage_bytes(*a) + 1), "expected"),
        (lambda: scaling.grade_stage_bytes(lambda *a: stage_bytes(*a, least=(3, 1, 1))), "expected"),
        (lambda: scaling.grade_stage_bytes(lambda f, t, g, s: stage_bytes(f, t, g, s) - 8 * t), "expected"),
        (lambda: scaling.grade_largest_batch(lambda card, fixed, row: int((0.9 * card - fixed) // row)), "is 0"),
        (lambda: scaling.grade_largest_batch(lambda card, fixed, row: max(0, int((card - fixed) // row))), "expected"),
        (lambda: scaling.grade_largest_batch(lambda card, fixed, row: (0.9 * card - fixed) / row), "an int"),
        (lambda: scaling.grade_holder(lambda row, rows, n: divmod(row, max(1, rows // n))), "expected"),
        (lambda: scaling.grade_holder(lambda row, rows, n: holder(row, rows, n)[0]), "two whole numbers"),
        (lambda: scaling.grade_holder(lambda row, rows, n: holder(row, rows, n)[::-1]), "the process is"),
    ],
)
def test_graders_explain_near_misses(verdict, says):
    grade = verdict()
    assert not grade and says in grade.message, grade


# ---- pictures ----


def test_numbers_of_bars_stand_clear_of_the_lines():
    assert views._clear(0, 100, 40, []) == 50
    assert views._clear(0, 200, 40, [100]) == 70, "beside the line, as near to the middle as it can"
    assert views._clear(0, 100, 40, [150]) == 50, "a line elsewhere does not matter"
    assert views._clear(0, 100, 40, [30, 50, 70]) == 50, "no room: the line gives way"


def test_bars_and_slices_are_drawn():
    rows = {"one": {"weights": 17.2, "activations": 30.0}, "two": {"weights": 0.001}}
    assert views.memory_bars(rows).width == 1600
    assert views.memory_bars(rows, 720).width == 720
    assert views.who_holds(2).width == 1600
    assert views.slices_picture({"a": [3, 1], "b": [1, 0]}, ["first", "second"]).width == 1600
    assert views.stacked_bars({"x": {"p": 100.0}}, {"p": (0, 114, 178)}, "%", total=False).height > 100


@pytest.mark.parametrize(("size", "says"), [(14.0, "16 GB"), (14.5, "24 GB"), (72.0, "80 GB"), (73.0, "no card")])
def test_a_tenth_of_a_card_stays_free(size, says):
    assert says in views.verdict(size)


def test_the_calculator_says_what_fits():
    explorer = views.memory_calculator()
    first = explorer.words
    assert "fits on a card of" in first and "16 rows of 1536 tokens in a pass, 2 on each GPU" in first
    explorer.choose(trained="everything", sharing="copies")
    assert "fits on no card of 80 GB" in explorer.words
    explorer.choose(numbers="4 bits")
    assert "cannot be kept in 4 bits" in explorer.words
    explorer.choose(trained="nothing", GPUs=1)
    assert "card of 16 GB" in explorer.words and "2 rows of 1536 tokens in a pass\n" in explorer.words
    cache = 2 * cache_bytes(32, 32, 128, 1536)
    assert f"cache {cache / 1e9:.1f} GB" in explorer.words, "the cache of whole rows"
    explorer.choose(size="tiny", numbers="float32")
    assert "MB a GPU" in explorer.words
