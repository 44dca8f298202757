"""The explorer in JupyterLab: slider, buttons, click, drag and text reach Python, and its picture comes back."""

from widget_words import wait_for

CELL = """
from PIL import Image, ImageDraw
from glamm_mini.course.drawing.explorer import PictureExplorer

def draw(choice):
    picture = Image.new("RGB", (400, 200), (40 * choice["level"], 90, 90))
    if choice["box"]:
        x0, y0, x1, y1 = choice["box"]
        ImageDraw.Draw(picture).rectangle((400 * x0, 200 * y0, 400 * x1, 200 * y1), outline="white")
    spot = [round(v, 1) for v in choice["point"] or choice["box"] or ()]
    return picture, f"level {choice['level']}, kind {choice['kind']}, at {spot}, says {choice['text']}"

axes = {"level": [0, 1, 2, 3], "kind": ["plain", "<b>bold</b>"]}
"""


def test_controls_reach_python_and_the_picture_comes_back(lab):
    page = lab(CELL, "PictureExplorer(draw, axes, pointer='box', text='hello', title='Try it', width=500)")
    wait_for(page, "level 0, kind plain, at [], says hello")
    before = page.locator("img[data-picture]").get_attribute("src")
    page.locator("input[data-axis='level']").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, "level 1")
    assert page.locator("img[data-picture]").get_attribute("src") != before
    page.locator("[data-axis='kind'] button").nth(1).click()
    wait_for(page, "kind <b>bold</b>")
    assert page.locator("[data-explorer] b").count() == 0, "texts are shown as text"
    page.locator("input[data-text]").fill("good day")
    wait_for(page, "says good day")
    area = page.locator("img[data-picture]").bounding_box()
    x, y = area["x"], area["y"]
    page.mouse.move(x + 0.2 * area["width"], y + 0.2 * area["height"])
    page.mouse.down()
    page.mouse.move(x + 0.7 * area["width"], y + 0.6 * area["height"], steps=4)
    page.mouse.up()
    wait_for(page, "at [0.2, 0.2, 0.7, 0.6]")
    assert page.locator("[data-mark]").is_visible()


def test_a_click_sets_the_point(lab):
    page = lab(CELL, "PictureExplorer(draw, axes, pointer='click', width=500)")
    area = page.locator("img[data-picture]").bounding_box()
    page.mouse.click(area["x"] + 0.3 * area["width"], area["y"] + 0.5 * area["height"])
    wait_for(page, "at [0.3, 0.5]")
