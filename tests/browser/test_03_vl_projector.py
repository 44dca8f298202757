"""The widget of notebook 03 in JupyterLab: a click chooses a patch, buttons and slider choose what is shown of it."""

from widget_words import wait_for

CELL = """
import torch
from PIL import Image
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_03.pictures import attention_view

torch.manual_seed(0)
looks = torch.rand(4, 144, 144).softmax(-1)
word_looks = torch.rand(3, 144)
PictureExplorer(
    attention_view(Image.new("RGB", (384, 384), "skyblue"), looks, ["a", "red", "kite"], word_looks),
    {"layer": (list(range(1, 5)), 4), "show": ["it looks at", "it is seen by"]},
    pointer="click",
    width=520,
)
"""


def test_a_click_chooses_the_patch(lab):
    page = lab(CELL)
    wait_for(page, "patch 78: row 6, column 6, layer 4")
    picture = page.locator("img[data-picture]")
    area = picture.bounding_box()
    page.mouse.click(area["x"] + 0.30 * area["width"], area["y"] + 0.20 * area["height"])
    wait_for(page, "patch 27: row 2, column 3, layer 4")
    page.locator("input[data-axis='layer']").focus()
    page.keyboard.press("ArrowLeft")
    wait_for(page, "patch 27: row 2, column 3, layer 3")
    before = picture.get_attribute("src")
    page.get_by_role("button", name="it is seen by").click()
    page.wait_for_function("b => document.querySelector('img[data-picture]').src !== b", arg=before)
    assert "words that look at it most" in page.locator("[aria-live]").last.text_content()
