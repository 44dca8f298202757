"""The scene browser of notebook 01 in JupyterLab: a place and a seed bring another scene."""

CELL = """
from glamm_mini.course.room_01.pictures import first_of_place
from glamm_mini.course.drawing.explorer import PictureExplorer

PictureExplorer(first_of_place, {"seed": list(range(20)), "place": ["countryside", "winter"]}, width=480)
"""


def test_a_place_and_a_seed_bring_another_scene(lab):
    page = lab(CELL)
    words = page.locator("[aria-live]").last
    picture = page.locator("img[data-picture]")
    first, shown = words.text_content(), picture.get_attribute("src")
    page.get_by_role("button", name="winter").click()
    page.wait_for_function("w => [...document.querySelectorAll('[aria-live]')].at(-1).textContent !== w", arg=first)
    assert picture.get_attribute("src") != shown
    winter = words.text_content()
    page.locator("input[data-axis='seed']").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("w => [...document.querySelectorAll('[aria-live]')].at(-1).textContent !== w", arg=winter)
    assert page.get_by_role("button", name="winter").get_attribute("aria-pressed") == "true"
