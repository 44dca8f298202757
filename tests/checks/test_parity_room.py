"""The comparison itself: it sees what is wrong and says where, in a case of tiny sizes that is written first."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner
from write_case import write_case

from glamm_mini.checks.parity import weights
from glamm_mini.checks.parity.case import ReferenceCase, filled_model
from glamm_mini.checks.parity.compare import Comparison, compare_case, first_difference
from glamm_mini.checks.parity.table import worst_of_families
from glamm_mini.cli.main import build_app

NAMES = ("im_start", "im_end", "bbox", "point", "seg", "p", "ep")
TINY = {
    "llm": {
        "vocab_size": 107,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    },
    "clip": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
    "sam": {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "global_attn_indexes": [1],
        "window_size": 2,
        "prompt_dim": 32,
        "mask_in_chans": 8,
        "dec_depth": 2,
        "dec_mlp": 32,
        "dec_heads": 2,
        "iou_hidden": 16,
    },
    "region": {"gn_groups": 4, "pos_hidden": 16, "mid_dim": 24, "out_dim": 32, "box_image_size": 40},
    "ids": {name: 100 + k for k, name in enumerate(NAMES)},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases") / "tiny"
    write_case(folder, TINY, report=lambda line: None)
    return folder


@pytest.fixture
def case(folder):
    return ReferenceCase(folder)


# --- a written case --------------------------------------------------------------------------------------------------


def test_a_written_case_agrees_and_says_what_it_is(case):
    rows = list(compare_case(case))
    assert [row.name for row in rows if not row.ok] == []
    parts = {row.part for row in rows}
    assert parts == {"vision", "region", "splice", "train", "generate"} and len(rows) > 200
    assert sum("/grad_norm/" in row.name for row in rows) > 100
    assert "no numbers of the official model" in case.meta["made_by"]
    assert case.meta["generate"]["plain_forced"]["seg_positions"]
    norms = case.gradient_norms("seg")
    unused = {name for name, norm in norms.items() if norm == 0}
    assert len(norms) > 100 and all("output_hypernetworks_mlps" in name for name in unused)  # one mask of four is read


def test_a_folder_is_never_written_over(folder):
    with pytest.raises(ValueError, match="is there already"):
        write_case(folder, TINY)


def test_weights_are_made_once_and_by_the_rule(case):
    model = case.model()
    name = "model.region_encoder.mlvl_fuse.fuse_convs.1.gn.weight"
    assert torch.equal(
        model.region_encoder.mixers[1].norm.weight, torch.from_numpy(weights.param(name, case.manifest[name]["shape"]))
    )
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    with pytest.raises(ValueError, match="differ in 1 tensors .model.norm.weight"):
        filled_model(case.config(), case.manifest | {"model.norm.weight": {"shape": [31]}})


# --- what differs first ----------------------------------------------------------------------------------------------


def exact_gelu(model):
    for layer in model.global_encoder.clip.encoder.layers:
        layer.mlp.activation_fn = nn.GELU()


def nudge(name):
    def change(model):
        parameter = model.get_parameter(name)
        with torch.no_grad():
            parameter.view(-1)[::5] += 0.05

    return change


def full_boxes(model):
    model.region_encoder.box_size = 56


def other_dice(model):
    model.config.losses.mask_dice = 1.0


def shallow_levels(model):
    model.global_encoder.region_layers = (1, 4, 7, 10)


MISTAKES = [
    (exact_gelu, "clip_hidden_1", "clip_hidden_0"),
    (nudge("global_encoder.clip.encoder.layers.4.self_attn.q_proj.weight"), "clip_hidden_5", "clip_hidden_4"),
    (nudge("vl_projector.2.weight"), "projected", "features"),
    (shallow_levels, "fuse_in_level0", "projected"),
    (nudge("region_encoder.mixers.3.conv.weight"), "fuse_out_level0", "fuse_in_level3"),
    (full_boxes, "one_two/roi_level0", "fuse_out_level3"),
    (nudge("region_encoder.position.3.weight"), "one_two/pos_embedd", "one_two/flatten_linear"),
    (nudge("region_encoder.out.weight"), "one_two/out_image0", "one_two/pos_embedd"),
    (nudge("language_model.model.layers.1.mlp.up_proj.weight"), "seg/last_hidden", "seg/attention_masks"),
    (nudge("language_model.lm_head.weight"), "seg/logits", "seg/last_hidden"),
    (nudge("lp_projector.0.weight"), "seg/text_hidden_fcs_out", "seg/logits"),
    (nudge("grounding_encoder.vit.blocks.1.attn.qkv.weight"), "seg/sam_embedding_image0", "seg/pred_embeddings_image1"),
    (
        nudge("pixel_decoder.mask_decoder.transformer.layers.0.mlp.lin1.weight"),
        "seg/low_res_masks_image0",
        "seg/sam_embedding_image1",
    ),
    (other_dice, "seg/mask_dice_loss", "seg/mask_bce_loss"),
]


@pytest.mark.parametrize(("change", "first", "before"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_the_first_difference_is_named(case, change, first, before):
    model = case.model()
    change(model)
    wrong, last = first_difference(compare_case(case, model))
    assert wrong.name == first and wrong.difference > wrong.tolerance
    assert last.name == before


def test_a_wrong_gradient_is_seen_where_all_values_agree(case):
    model = case.model()
    norm = model.language_model.model.norm
    hook = norm.register_full_backward_hook(lambda module, given, out: tuple(g * 1.01 for g in given))
    wrong, last = first_difference(compare_case(case, model))
    hook.remove()
    assert wrong.part == "train" and "seg/grad" in wrong.name and last is not None


def test_no_difference(case):
    wrong, last = first_difference(compare_case(case))
    assert wrong is None and last.part == "generate"


# --- what a case may lack --------------------------------------------------------------------------------------------


def edited(folder, target, part, change):
    """A copy of the case with one npz file changed."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    arrays = dict(np.load(target / f"{part}.npz"))
    change(arrays)
    np.savez(target / f"{part}.npz", **arrays)
    return target


def test_an_empty_file_fails_and_fewer_tags_do_not(folder, tmp_path):
    empty = ReferenceCase(edited(folder, tmp_path / "empty", "region", dict.clear))
    [row] = [row for row in compare_case(empty) if not row.ok]
    assert row.part == "region" and "no region.npz" in row.note

    def drop(arrays):
        for name in [name for name in arrays if name.startswith(("one_two", "fuse_in"))]:
            del arrays[name]

    fewer = ReferenceCase(edited(folder, tmp_path / "fewer", "region", drop))
    assert all(row.ok for row in compare_case(fewer))


def test_a_quantity_that_we_do_not_compute_fails(folder, tmp_path):
    more = edited(folder, tmp_path / "more", "vision", lambda a: a.update(clip_hidden_99=np.zeros(3)))
    [row] = [row for row in compare_case(ReferenceCase(more)) if not row.ok]
    assert row.name == "clip_hidden_99" and "not computed" in row.note


# --- measuring -------------------------------------------------------------------------------------------------------


def test_measuring_sees_one_wrong_number():
    x = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    for name, array in (("small", x[:3]), ("large", x)):
        stored = weights.summarize(name, array)
        assert (f"{name}__probe" in stored) == (name == "large")
        assert weights.measure(stored, name, array, 1e-4) == (0.0, pytest.approx(0, abs=1e-6))
        for at in (0, array.size // 2 + 1, array.size - 1):  # in the sample or not, the probe sees all
            changed = array.copy()
            changed.reshape(-1)[at] += 3
            assert weights.measure(stored, name, changed, 1e-4)[1] > 1
        changed[0, 0] = np.nan
        assert weights.measure(stored, name, changed, 1e-4)[1] == math.inf
        with pytest.raises(ValueError, match="expected"):
            weights.measure(stored, name, array[:2], 1e-4)
    ids = {"ids": np.array([1, 2, 3])}
    assert weights.measure(ids, "ids", np.array([1, 2, 3]), 0) == (0.0, 0.0)
    assert weights.measure(ids, "ids", np.array([1, 5, 4]), 0) == (2.0, math.inf)


def test_families_show_the_worst():
    rows = [Comparison("region", f"a/roi_level{k}", d, 1e-4, d * 1e4) for k, d in enumerate((1e-6, 3e-4, 2e-6))]
    [(worst, count, agree)] = worst_of_families(rows)
    assert (worst.name, worst.difference, worst.ok, count, agree) == ("roi", 3e-4, False, 3, 2)


# --- the command -----------------------------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(build_app("parity"), ["parity", *map(str, arguments)])


def test_the_command_agrees_or_exits_with_one(folder, tmp_path):
    done = run("--case", folder, "--json", tmp_path / "rows.json")
    assert done.exit_code == 0, done.output
    assert "all agree" in done.output and "a regression case" in done.output and "roi" in done.output
    written = json.loads((tmp_path / "rows.json").read_text())
    assert {row["part"] for row in written["rows"]} >= {"preprocess", "tokens", "vision", "generate"}
    assert all(row["ok"] for row in written["rows"])

    def shift(arrays):
        arrays["one_two/flatten_linear"] += 1e-2

    other = edited(folder, tmp_path / "other", "region", shift)
    done = run("--case", other, "--first-difference")
    assert done.exit_code == 1
    told = " ".join(done.output.split())
    assert "First difference: region one_two/flatten_linear" in told and "region one_two/flatten_in" in told
    assert run("--case", tmp_path).exception is not None
