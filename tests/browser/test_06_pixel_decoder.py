"""Notebook 06 in JupyterLab: a click into the picture brings a mask, another click another one."""

CELL = """
from glamm_mini.paths import checkpoint_folder
from glamm_mini.storybook.pretrain.run import load_backbones, untrained
from glamm_mini.course.room_06.pictures import ClickToMask
from glamm_mini.course.drawing.explorer import PictureExplorer

glamm, processor = untrained("tiny")
load_backbones(checkpoint_folder("backbones"), glamm)
glamm.eval()
draw = ClickToMask(glamm, processor, scenes=[12, 3], long_side=256)
explorer = PictureExplorer(draw, axes={"scene": [0, 1]}, pointer="click", width=480)
explorer
"""


def wait_for_others(page, selector, before):
    page.wait_for_function(
        "([s, old]) => { const e = [...document.querySelectorAll(s)].at(-1); "
        "return (e.getAttribute('src') ?? e.textContent) !== old }",
        arg=[selector, before],
    )


def test_a_click_brings_a_mask_and_another_scene_keeps_clicking(lab):
    page = lab(CELL)
    words, picture = page.locator("[aria-live]").last, page.locator("img[data-picture]")
    assert words.text_content() == "Click on something."
    plain = picture.get_attribute("src")
    area = picture.bounding_box()
    page.mouse.click(area["x"] + 0.5 * area["width"], area["y"] + 0.1 * area["height"])
    wait_for_others(page, "[aria-live]", "Click on something.")
    above = words.text_content()
    assert "% of the picture" in above and "at your click" in above
    assert picture.get_attribute("src") != plain
    page.mouse.click(area["x"] + 0.5 * area["width"], area["y"] + 0.9 * area["height"])
    wait_for_others(page, "[aria-live]", above)
    shown = picture.get_attribute("src")
    page.locator("input[data-axis='scene']").focus()
    page.keyboard.press("ArrowRight")
    wait_for_others(page, "img[data-picture]", shown)
    assert "% of the picture" in words.text_content()
