"""The calculator of notebook 14 in JupyterLab: buttons and sliders change the sum and the verdict."""

from widget_words import wait_for

CELL = """
from glamm_mini.course.room_14.pictures import memory_calculator

memory_calculator()
"""


def test_buttons_and_sliders_change_the_verdict(lab):
    page = lab(CELL)
    wait_for(page, "16 rows of 1536 tokens in a pass")
    picture = page.locator("img[data-picture]")
    shown = picture.get_attribute("src")
    page.locator("[data-axis='sharing'] button", has_text="copies").click()
    page.locator("[data-axis='trained'] button", has_text="everything").click()
    wait_for(page, "fits on no card of 80 GB")
    assert picture.get_attribute("src") != shown
    page.locator("[data-axis='trained'] button", has_text="nothing").click()
    page.locator("[data-axis='numbers'] button", has_text="4 bits").click()
    wait_for(page, "cache")
    page.locator("[data-axis='size'] button", has_text="tiny").click()
    wait_for(page, "MB a GPU: fits on a card of 16 GB")
    page.locator("[data-axis='trained'] button", has_text="everything").click()
    wait_for(page, "cannot be kept in 4 bits")
    page.locator("[data-axis='numbers'] button", has_text="float32").click()
    wait_for(page, "16 rows of 512 tokens in a pass")
    page.locator("[data-axis='rows']").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, "32 rows of 512 tokens in a pass")
