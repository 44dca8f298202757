"""The window widget of notebook 05 in JupyterLab: sliders change the windows, the padding and the cost."""

from widget_words import wait_for

CELL = """
import numpy as np
from PIL import Image
from glamm_mini import GlammConfig
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_05.pictures import windows_view

shades = np.linspace(0, 255, 300 * 300 * 3).reshape(300, 300, 3).astype(np.uint8)
draw = windows_view(Image.fromarray(shades), GlammConfig.of_size("7b").grounding)
PictureExplorer(draw, {"window": ([7, 14, 16], 14), "pixels": ([256, 1024], 1024)}, width=480)
"""


def test_sliders_change_windows_padding_and_cost(lab):
    page = lab(CELL)
    wait_for(page, "25 windows of 14 x 14: 70 x 70, 16% padding")
    picture = page.locator("img[data-picture]")
    shown = picture.get_attribute("src")
    page.locator("[data-axis='window']").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, "16 windows of 16 x 16: 64 x 64, 0% padding")
    assert picture.get_attribute("src") != shown
    page.locator("[data-axis='pixels']").focus()
    page.keyboard.press("ArrowLeft")
    wait_for(page, "16 x 16 patches, 1 window of 16 x 16")
    page.locator("[data-axis='window']").focus()
    page.keyboard.press("ArrowLeft")
    wait_for(page, "4 windows of 14 x 14: 28 x 28, 67% padding")
