"""The model zoo page says what is true: its ids, its commands, and figures that the code counts."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from glamm_mini.assistant.assistant import Assistant
from glamm_mini.cli.main import COMMANDS, build_app
from glamm_mini.model.config import GlammConfig
from glamm_mini.paths import parity_folder

PAGE = (Path(__file__).resolve().parents[2] / "model_zoo.md").read_text("utf-8")
NAMES = {"FullScope", "GCG", "RefSeg", "RegCap-RefCOCOg", "RegCap-VG", "GranD-Pretrained"}


def test_it_lists_the_six_and_ways_to_ask_that_exist():
    assert set(re.findall(r"^\| `MBZUAI/GLaMM-([\w-]+)` ", PAGE, re.M)) == NAMES
    for method in re.findall(r"`glamm\.(\w+)\(", PAGE):
        assert hasattr(Assistant, method), method


@pytest.mark.parametrize("line", re.findall(r"^glamm-mini .*", PAGE, re.M))
def test_its_commands_have_these_arguments(line):
    from glamm_mini.cli.main import join_boxes

    _, name, *arguments = join_boxes(shlex.split(line))
    assert name in COMMANDS
    command = get_command(build_app(name)).commands[name]
    context = command.make_context(name, list(arguments), resilient_parsing=False)
    assert context.params


def test_memory_is_what_the_calculator_says():
    rows = re.findall(r"^\| `dtype=\"(\w+)\"(?:, quantize=\"(\w+)\")?`[^|]*\| ([\d.]+) \| ([\d.]+) \|", PAGE, re.M)
    assert len(rows) == 4
    for dtype, bits, weights, device in rows:
        total = GlammConfig.of_size("7b").memory_report(bits or dtype, "none")["total"]
        assert (f"{total['weights'] / 1e3:.2f}", f"{total['device'] / 1e3:.2f}") == (weights, device)


def test_sizes_on_disk_are_those_of_the_manifest():
    tensors = json.loads((parity_folder() / "manifest_7b.json").read_text())["tensors"]
    width = {"bfloat16": 2, "float32": 4}
    saved = sum(math.prod(e["shape"]) * width[e["dtype"]] for e in tensors.values() if e["saved"])
    clip = sum(4 * math.prod(e["shape"]) for n, e in tensors.items() if not e["saved"] and "position_ids" not in n)
    assert f"**{saved / 1e9:.2f} GB**" in PAGE and f"image encoder takes {clip / 1e9:.2f} GB" in PAGE


def test_the_sizes_of_the_indices_are_those_of_so_many_names():
    tensors = json.loads((parity_folder() / "manifest_7b.json").read_text())["tensors"]
    saved = [name for name, entry in tensors.items() if entry["saved"]]
    regions = [name for name in saved if "region_encoder" in name]

    def index(names):
        """Bytes of an index as transformers writes it."""
        places = dict.fromkeys(names, "pytorch_model-00001-of-00002.bin")
        return len(json.dumps({"metadata": {"total_size": 16_752_451_032}, "weight_map": places}, indent=2)) + 1

    page, more = " ".join(PAGE.split()), index([*saved, *(name.upper() for name in regions)])
    assert f"{index(saved) / 1e3:.1f} kB, as an index of the {len(saved)} names" in page
    assert f"{len(regions)} second names of them would make it {more / 1e3:.1f} kB" in page
