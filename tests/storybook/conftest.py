"""Views that the tests of the language share."""

import pytest

from glamm_mini.storybook.world.relations import View
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene

SCENES = 60


@pytest.fixture(scope="session")
def views():
    scenes = [sample_scene(split, 0, index) for split in ("train", "compositional") for index in range(SCENES // 2)]
    return [View(scene, render(scene, 128, supersample=1)) for scene in scenes]
