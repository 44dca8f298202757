"""The box explorer of notebook 04 in JupyterLab: a drawn box is named, and the levels show what they hold there."""

CELL = """
from PIL import Image

import glamm_mini
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.course.room_04.pictures import region_explorer

page = render(sample_scene("test", seed=0, index=8), long_side=256)
region_explorer(glamm_mini.load("tiny"), Image.fromarray(page.image))
"""
CHANGED = "w => [...document.querySelectorAll('[aria-live]')].at(-1).textContent !== w"


def test_a_drawn_box_is_named_and_its_cells_are_shown(lab):
    page = lab(CELL)
    words, picture = page.locator("[aria-live]").last, page.locator("img[data-picture]")
    assert words.text_content() == "Draw a box around something."
    empty = picture.get_attribute("src")
    area = picture.bounding_box()
    page.mouse.move(area["x"] + 0.2 * area["width"], area["y"] + 0.2 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.7 * area["width"], area["y"] + 0.7 * area["height"], steps=4)
    page.mouse.up()
    page.wait_for_function(CHANGED, arg="Draw a box around something.")
    said, samples = words.text_content(), picture.get_attribute("src")
    assert len(said.split()) >= 2 and "Error" not in said and samples != empty
    page.get_by_role("button", name="level 4").click()
    page.wait_for_function("s => document.querySelector('img[data-picture]').src !== s", arg=samples)
    assert words.text_content() == said, "the same box, the same name"
