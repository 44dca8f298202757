"""An assistant whose words are given by a script, and what the tests of this folder share."""

import numpy as np
import pytest
from scripted import scripted_assistant, scripting, seen_prompts


@pytest.fixture(scope="module")
def glamm():
    """A small model whose words a test decides by `says`."""
    return scripted_assistant()


@pytest.fixture
def picture():
    """(30, 40, 3) uint8 of noise."""
    return np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8)


@pytest.fixture
def says(glamm, monkeypatch):
    """A function that sets what the model says next."""
    yield from scripting(glamm, monkeypatch)


@pytest.fixture
def prompts(glamm, monkeypatch):
    """What the model was asked, as text."""
    return seen_prompts(glamm, monkeypatch)
