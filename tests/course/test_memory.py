"""The memory report against measurement: real tensors at small size, official counts at 7B."""

import json
import math
from pathlib import Path

import pytest
import torch
from memory_probe import Live, as_on_a_gpu, kept_by_part
from small_models import answer_labels, box_set, padded, row, small_config, truths
from transformers import DynamicCache

from glamm_mini import paths
from glamm_mini.checkpoints.lora import add_lora
from glamm_mini.checkpoints.official import official_to_ours
from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.course.memory.activations import head_width, key_heads, working_memory
from glamm_mini.course.memory.memory_report import KINDS, Plan
from glamm_mini.course.memory.parameters import OFFICIAL_TRAINED, list_weights
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.training.finetune import store_frozen_as, unfreeze_only
from glamm_mini.training.trainer import layers_recomputed

SIZES = dict(
    vision=dict(image_size=96, patch_size=8, hidden_size=64, intermediate_size=256, num_hidden_layers=4),
    text=dict(vocab_size=64, hidden_size=96, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4),
    region=dict(channels=32, scales=(2, 1, 1), rounds=2, groups=4, roi_size=3, position_hidden=8, hidden=16),
    grounding=dict(image_size=128, patch_size=8, hidden=64, depth=3, heads=2, global_attention=(1,), window=3),
)
SIZES["vision"] |= dict(num_attention_heads=4)
SIZES["text"] |= dict(num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SIZES["grounding"] |= dict(prompt_dim=32, decoder_hidden=64, decoder_heads=2, iou_hidden=16, mask_in_channels=4)
ROWS, BOXES, MASKS, PICTURE = 2, 2, 3, (100, 75)
TOLERANCE = 0.25
"""Of activations; everything else is exact."""


@pytest.fixture(scope="module")
def config():
    return small_config(**SIZES)


def build(config, trained, dtype=torch.float32) -> GlammForConditionalGeneration:
    """A real model in training mode, with what `trained` says."""
    torch.manual_seed(0)
    model = GlammForConditionalGeneration(config).train()
    if trained == "official":
        add_lora(model, dropout=0.0)
        unfreeze_only(model, (*OFFICIAL_TRAINED, ".lora_"))
        store_frozen_as(model, dtype)
    return model


@pytest.fixture(scope="module")
def batch():
    """Two rows of different lengths, each with two boxes and three masks, and the report's words for it."""
    ends = ("bbox", 5, "bbox", *range(20, 40), "seg", 7, "seg", 8, "seg")
    ids, mask = padded([row(*range(3, 20), *ends), row(*range(3, 10), *ends)])
    labels = answer_labels(ids, mask, 24)
    made = dict(
        input_ids=ids,
        attention_mask=mask,
        labels=labels,
        global_images=torch.randn(ROWS, 3, 96, 96),
        grounding_images=torch.randn(ROWS, 3, 128, 128),
        resized=[(128, 96)] * ROWS,
        original=[PICTURE] * ROWS,
        boxes=[box_set(BOXES)] * ROWS,
        masks=truths([MASKS] * ROWS, [PICTURE] * ROWS),
    )
    words = dict(batch=ROWS, text_tokens=ids.shape[1] - 1, supervised=int((labels[:, 1:] >= 0).sum()) // ROWS)
    return made, words | dict(boxes=BOXES, masks=MASKS, picture=PICTURE)


# ---- weights, gradients, optimizer ----


@pytest.mark.parametrize(("trained", "dtype"), [("all", "float32"), ("official", "float32"), ("official", "bfloat16")])
def test_weights_gradients_and_moments_are_those_of_a_step(config, batch, trained, dtype):
    model = build(config, trained, getattr(torch, dtype))
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4)
    for p in learns:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    report = config.memory_report(dtype, trained)
    for name, part in model.named_children():
        own = list(part.parameters())
        moments = [optimizer.state[p][key] for p in own if p.requires_grad for key in ("exp_avg", "exp_avg_sq")]
        assert report[name]["weights"] * 1e6 == pytest.approx(sum(p.nbytes for p in own), abs=0.5), name
        assert report[name]["gradients"] * 1e6 == pytest.approx(sum(p.grad.nbytes for p in own if p.requires_grad))
        assert report[name]["optimizer"] * 1e6 == pytest.approx(sum(m.nbytes for m in moments), abs=0.5), name
        assert report[name]["trained_millions"] * 1e6 == pytest.approx(sum(p.numel() for p in own if p.requires_grad))
    whole = sum(report["total"][kind] for kind in ("weights", "gradients", "optimizer"))
    assert report["training"]["megabytes"] == pytest.approx(whole)


def test_every_part_has_the_official_number_of_parameters():
    counts = dict.fromkeys(GlammConfig.of_size("7b").memory_report(trained="none"), 0)
    manifest = json.loads((paths.parity_folder() / "manifest_7b.json").read_text())["tensors"]
    for name, entry in manifest.items():
        ours = official_to_ours(name)
        if ours and not name.endswith("gaussian_matrix"):
            counts[ours.partition(".")[0]] += math.prod(entry["shape"])
    counts["total"] = sum(counts.values())
    report = GlammConfig.of_size("7b").memory_report(trained="none")
    assert counts["total"] == 8_021_023_792
    assert {part: round(row["millions"] * 1e6) for part, row in report.items()} == counts
    assert report["total"]["weights"] * 1e6 == pytest.approx(4 * 8_021_023_792)


def test_official_training_has_the_official_trained_numbers():
    """The small reference case lists what the released code trains."""
    setup = json.loads((Path(__file__).parents[1] / "files" / "training_setup.json").read_text())
    groups = setup["trainable_groups_ntensors_nparams"]
    config = ReferenceCase(paths.parity_folder() / "case_small").config()
    weights = list_weights(config, "official", 8)
    assert sum(w.count for w in weights if w.trained) == sum(count for _, count in groups.values())


@pytest.mark.parametrize("kind", ["4bit", "8bit"])
def test_quantized_weights_are_what_bitsandbytes_stores(kind):
    pytest.importorskip("bitsandbytes")
    from glamm_mini.checkpoints.placement import quantization, quantized_layers

    sizes = SIZES | {"text": SIZES["text"] | dict(hidden_size=128, intermediate_size=320)}
    config = small_config(**sizes)
    model = GlammForConditionalGeneration(config).half()
    settings = quantization(kind, torch.float16)
    names = {f"{name}.weight" for name in quantized_layers(model, settings)}
    assert {w.name for w in list_weights(config, "none", 0, kind) if w.quantized} == names
    given = dict(config=config, state_dict=model.state_dict(), dtype=torch.float16, device_map={"": "cpu"})
    model = GlammForConditionalGeneration.from_pretrained(None, quantization_config=settings, **given)
    stored = 0
    for p in model.language_model.parameters():
        stored += p.nbytes
        if kind == "8bit" and hasattr(p, "SCB"):
            stored += p.SCB.nbytes
        if kind == "4bit" and hasattr(p, "quant_state"):
            state = p.quant_state
            stored += state.absmax.nbytes + state.code.nbytes + state.offset.nbytes
            stored += state.state2.absmax.nbytes + state.state2.code.nbytes
    report = config.memory_report("float16", "none", quantize=kind)
    assert report["language_model"]["weights"] * 1e6 == pytest.approx(stored, abs=0.5)
    assert config.memory_report(kind, "none") == report
    for part in ("global_encoder", "grounding_encoder", "pixel_decoder"):
        assert report[part]["weights"] == config.memory_report("float16", "none")[part]["weights"]


# ---- activations and cache ----


def assert_near(found: dict, report, tolerance: float):
    for part, needs in report.items():
        if part not in ("total", "training"):
            assert needs["activations"] * 1e6 == pytest.approx(found.get(part, 0), rel=tolerance, abs=1), part


@pytest.mark.parametrize(("trained", "dtype"), [("all", "float32"), ("official", "float32"), ("official", "bfloat16")])
def test_activations_are_those_that_autograd_keeps(config, batch, trained, dtype):
    made, words = batch
    with as_on_a_gpu():
        found = kept_by_part(build(config, trained, getattr(torch, dtype)), made, autocast=dtype != "float32")
    found["pixel_decoder"] += found.pop("losses")  # of masks, pixel by pixel
    report = config.memory_report(dtype, trained, **words)
    assert_near(found, report, TOLERANCE)
    assert report["total"]["activations"] * 1e6 == pytest.approx(sum(found.values()), rel=0.1)


def test_checkpointing_keeps_layers_inputs(config, batch):
    made, words = batch
    held, peaks = {}, {}
    for checkpointing in (False, True):
        model = build(config, "all")
        known = [*model.parameters(), *model.buffers()]
        with as_on_a_gpu(), layers_recomputed(model, checkpointing), Live(*known) as live:
            loss = model(**made).loss
            held[checkpointing] = live.now
            loss.backward()
        peaks[checkpointing] = live.peak
        report = config.memory_report("float32", "all", checkpointing=checkpointing, **words)
        assert report["total"]["activations"] * 1e6 == pytest.approx(held[checkpointing], rel=TOLERANCE)
        assert report["total"]["activations"] * 1e6 == pytest.approx(peaks[checkpointing], rel=TOLERANCE)
    assert held[True] < held[False] / 2


def test_answering_works_in_what_the_largest_part_needs(config, batch):
    made, words = batch
    model = build(config, "all").eval()
    inputs = {k: v for k, v in made.items() if k not in ("labels", "masks")}
    report = config.memory_report("float32", "none", new_tokens=4, **words)
    with torch.no_grad(), as_on_a_gpu(), Live(*model.parameters(), *model.buffers()) as live:
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4)
    expected = (report["total"]["activations"] + report["total"]["cache"]) * 1e6
    assert expected == pytest.approx(live.peak, rel=TOLERANCE)


def test_each_part_works_in_what_is_said(config, batch):
    """The parts that see and draw, one by one: the peak above what was there before."""
    made, words = batch
    model = build(config, "all").eval()
    plan = Plan("float32", "none", **words)
    levels = [torch.randn(ROWS, 64, 12, 12) for _ in config.region.scales]
    rows, images = ROWS * MASKS, torch.arange(ROWS).repeat_interleave(MASKS)
    runs = {
        "global_encoder": lambda: model.global_encoder(made["global_images"]),
        "vl_projector": lambda: model.vl_projector(torch.zeros(ROWS, 144, 64)),
        "grounding_encoder": lambda: model.grounding_encoder(made["grounding_images"]),
        "region_encoder": lambda: model.region_encoder(levels, made["boxes"]),
        "pixel_decoder": lambda: model.decode_masks(torch.zeros(rows, 96), torch.zeros(ROWS, 32, 16, 16), images),
    }
    expected = working_memory(config, plan.load)
    for part, run in runs.items():
        with torch.no_grad(), as_on_a_gpu(), Live(*model.parameters(), *model.buffers(), *levels) as live:
            run()
        assert expected[part] == pytest.approx(live.peak, rel=TOLERANCE), part


def test_the_cache_is_transformers_own(config, batch):
    made, words = batch
    model, cache = build(config, "all").eval(), DynamicCache()
    new = 4
    length = words["text_tokens"] + config.image_tokens
    with torch.no_grad():
        for count in (length, *[1] * (new - 1)):
            embeds = torch.zeros(ROWS, count, config.text.hidden_size)
            model.language_model.model(None, None, None, cache, embeds, use_cache=True)  # its name has changed
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    report = config.memory_report("float32", "none", new_tokens=new, **words)
    assert report["language_model"]["cache"] * 1e6 == stored
    assert key_heads(config) == 2 and head_width(config) == 24
    assert config.memory_report("float32", "all")["total"]["cache"] == 0, "nothing is generated in training"


# ---- many devices ----


def test_sharding_divides_what_it_says(config):
    kinds = ("weights", "gradients", "optimizer")
    alone = config.memory_report("float32", "official")["total"]
    divided = {"ddp": (), "zero2": kinds[1:], "zero3": kinds, "full": kinds}
    for way, cut in divided.items():
        report = config.memory_report("float32", "official", sharding=way, devices=4)["total"]
        for kind in kinds:
            assert report[kind] == pytest.approx(alone[kind] / (4 if kind in cut else 1)), (way, kind)
    ddp = config.memory_report("float32", "official", sharding="ddp", devices=4)["total"]
    assert ddp["gathered"] == pytest.approx(alone["gradients"]), "gradients travel in buckets of their own"


def test_deepspeed_keeps_masters_and_torch_float32_slices(config):
    half = config.memory_report("bfloat16", "official")["total"]
    zero = config.memory_report("bfloat16", "official", sharding="zero2", devices=1)["total"]
    full = config.memory_report("bfloat16", "official", sharding="full", devices=2)["total"]
    weights = list_weights(config, "official", 8)
    every, trained = sum(w.count for w in weights), sum(w.count for w in weights if w.trained)
    assert zero["weights"] * 1e6 == pytest.approx(2 * every) and zero["gradients"] * 1e6 == pytest.approx(2 * trained)
    assert zero["optimizer"] * 1e6 == pytest.approx(12 * trained) and half["optimizer"] * 1e6 == pytest.approx(
        8 * trained
    )
    assert full["weights"] * 1e6 == pytest.approx(4 * every / 2)
    sizes = {}
    for w in weights:
        sizes[w.unit] = sizes.get(w.unit, 0) + w.count
    outside = sizes.pop(None)
    assert full["gathered"] * 1e6 == pytest.approx(2 * outside + 4 * max(sizes.values()))
    assert sum(unit.startswith("language_model.") for unit in sizes) == 6 and len(sizes) == 6 + 4 + 3


# ---- sizes, words, errors ----


def test_the_colab_size_fits_a_card_of_16_gb():
    colab = GlammConfig.of_size("colab")
    answering = colab.memory_report("float16", "none", boxes=2, masks=5)
    assert answering.gigabytes < 5
    pieces = (*OFFICIAL_TRAINED, "vl_projector")  # from parts, the V-L projector learns too
    for batch in (1, 2):
        report = colab.memory_report("float16", pieces, lora=8, checkpointing=True, batch=batch, boxes=2, masks=5)
        assert report.gigabytes < 13.5, "15 GB with a tenth to spare"


def test_a_size_of_7b_fits_where_people_say():
    big = GlammConfig.of_size("7b")
    assert big.memory_report("bfloat16", "none").gigabytes < 21.6  # a tenth of 24 GB free
    assert big.memory_report("4bit", "none").gigabytes < 10
    assert big.memory_report("bfloat16", "all").gigabytes > 128, "16 bytes a number and more"


def test_the_report_prints_itself():
    text = str(GlammConfig.of_size("tiny").memory_report("bfloat16", "official", checkpointing=True))
    assert "trained official" in text and "lora 8" in text and "checkpointing True" in text
    lines = text.splitlines()
    assert all((kind in lines[1]) == (kind not in ("cache", "gathered")) for kind in KINDS)
    assert lines[-2].startswith("total") and lines[-1].endswith("of ten)")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (dict(trained=("heads",)), r"trained names \['heads'\], but no parameter's name contains it"),
        (dict(trained="all", quantize="4bit"), "trained='all' trains every weight"),
        (dict(trained="none", lora=8), "lora 8 with trained='none'"),
        (dict(quantize="2bit"), "quantize is '2bit'; expected None, '8bit' or '4bit'"),
        (dict(sharding="zero1"), "sharding is .zero1.; expected one of none, ddp"),
        (dict(batch=0), "batch is 0; expected 1 or more"),
        (dict(batch=1.5), "batch is 1.5; expected 1 or more, a whole number"),
        (dict(batch=True), "batch is True"),
        (dict(devices="3"), "devices is '3'"),
        (dict(masks=float("nan")), "masks is nan"),
        (dict(new_tokens=-1), "new_tokens is -1"),
        (dict(supervised=-1), "supervised is -1"),
        (dict(supervised=500), "supervised is 500; expected at most the 192"),
        (dict(picture=5), "picture is 5"),
        (dict(picture=(0, 640)), r"picture is \(0, 640\)"),
        (dict(trained=5), "trained is 5; expected 'all'"),
        (dict(trained=("",)), r"trained is \('',\); expected 'all'"),
        (dict(trained=[5]), r"trained is \(5,\); expected 'all'"),
        (dict(trained=[], dtype=[]), r"dtype \[\] is unknown"),
        (dict(checkpointing="no"), "checkpointing is 'no'"),
    ],
)
def test_impossible_choices_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        GlammConfig.of_size("tiny").memory_report(**choices)


def test_the_command_prints_a_table(capsys):
    from glamm_mini.cli.main import main

    with pytest.raises(SystemExit) as end:
        main(
            ["memory", "--size", "tiny", "--trained", "official", "--batch", "2", "--shard", "4", "--sharding", "zero2"]
        )
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "sharding zero2" in out and "language_model" in out and "GB a device" in out
    with pytest.raises(SystemExit):
        main(["memory", "--size", "8b"])
    assert "expected one of tiny, colab, 7b" in capsys.readouterr().err


def test_an_official_folder_is_counted_by_its_own_sizes(capsys, tmp_path):
    """Its config.json says nothing in our words: read as ours it would be a model of another size."""
    from official_files import small_state, write_official

    from glamm_mini.checkpoints.source import open_checkpoint
    from glamm_mini.cli.main import main

    folder = write_official(tmp_path / "glamm", small_state())
    with pytest.raises(SystemExit) as end:
        main(["memory", "--size", str(folder)])
    assert end.value.code == 0
    source = open_checkpoint(folder, weights="none")
    config = source.config
    shown = capsys.readouterr().out.strip()
    assert shown == str(config.memory_report("bfloat16", "none", checkpointing=False)).strip()
    parameters = sum(p.numel() for p in source.empty_model().language_model.parameters())
    weights = config.memory_report("bfloat16", "none")["language_model"]["weights"]
    assert weights * 1e6 == pytest.approx(2 * parameters)
