"""The comparison has teeth: one wrong constant in the region encoder, and it fails."""

import pytest
import torch

from glamm_mini.checks.parity import weights
from glamm_mini.model import region_encoder
from glamm_mini.model.region_encoder import LevelMixer

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def fused(computed):
    return _fused(computed, computed.features.levels)


def _fused(computed, levels):
    with torch.no_grad():
        return computed.model.region_encoder.fuse(computed.model.region_encoder.pyramid(levels))


@pytest.fixture
def agrees(case, computed, fused):
    """A function: do region vectors, made again from these levels and boxes, agree with the reference?"""
    stored = {name: boxes for name, boxes in case.boxes.items() if f"{name}/out_image0" in case.names("region")}
    assert stored, "the case stores no region vectors"

    def compare(levels=None, change_boxes=lambda b: b):
        maps = fused if levels is None else _fused(computed, levels)
        return all(
            weights.measure(case.arrays("region"), f"{name}/{key}", value.numpy(), TOLERANCE)[1] <= 1
            for name, boxes in stored.items()
            for key, value in computed.regions(maps, [change_boxes(b) for b in boxes]).items()
            if key.startswith("out_image")
        )

    return compare


def test_unchanged_agrees(computed, agrees):
    assert agrees(computed.features.levels)


def test_box_image_size(model, agrees, monkeypatch):
    monkeypatch.setattr(model.region_encoder, "box_size", model.config.vision.image_size)
    assert not agrees()


def test_levels_reversed(computed, agrees):
    assert not agrees(computed.features.levels[::-1])


@pytest.mark.parametrize("change", [{"aligned": False}, {"sampling_ratio": 0}], ids=["not_aligned", "sampling_ratio_0"])
def test_roi_align(agrees, monkeypatch, change):
    original = region_encoder.roi_align
    monkeypatch.setattr(region_encoder, "roi_align", lambda *a, **k: original(*a, **(k | change)))
    assert not agrees()


def test_box_coordinates_swapped(agrees):
    assert not agrees(change_boxes=lambda b: b[:, [1, 0, 3, 2]])


def test_coarser_and_finer_swapped(computed, agrees, monkeypatch):
    original = LevelMixer.forward
    # On the reversed pyramid the coarser neighbor is the one before; the result is put back in order.
    monkeypatch.setattr(LevelMixer, "forward", lambda self, levels: original(self, levels[::-1])[::-1])
    assert not agrees(computed.features.levels)


def test_group_norm_groups(computed, agrees, monkeypatch):
    for mixer in computed.model.region_encoder.mixers:
        monkeypatch.setattr(mixer.norm, "num_groups", mixer.norm.num_groups // 2)
    assert not agrees(computed.features.levels)


def test_coordinates_swapped(computed, agrees, monkeypatch):
    original = region_encoder._coordinates
    monkeypatch.setattr(region_encoder, "_coordinates", lambda x: original(x).flip(1))
    assert not agrees(computed.features.levels)
