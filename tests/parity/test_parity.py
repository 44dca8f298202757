"""Our model against the official one, number by number: same weights, same inputs, float32 on the CPU."""

import pytest

from glamm_mini.checks.parity.case import PARTS
from glamm_mini.checks.parity.compare import compare_stage
from glamm_mini.checks.parity.inputs import compare_inputs


@pytest.mark.parametrize("part", PARTS)
def test_the_case_holds_numbers_for_every_part(case, part):
    assert case.names(part), f"{case.folder} has no {part}.npz or an empty one"
    assert case.meta.get(part), f"meta.json of {case.folder} says nothing about {part}"


def test_configuration_names_the_same_hidden_states(case, model):
    vision = case.meta["vision"]
    assert set(vision["region_levels"]) <= set(model.config.region_layers)
    assert model.config.vision.num_hidden_layers + 1 == vision["n_hidden_states"]


def test_pictures_and_words(keep):
    """Preprocessing, ids, labels, truncation and post-processing: equal to the last bit."""
    wrong = keep(compare_inputs())
    assert not wrong, wrong


def test_stage(computed, stage, keep):
    rows = list(compare_stage(computed, stage))
    assert rows
    wrong = keep(rows)
    assert not wrong, wrong
