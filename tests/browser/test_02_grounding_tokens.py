"""The typing widget of notebook 02 in JupyterLab: a typed [SEG] is a token in an answer, and plain in a question."""

from widget_words import wait_for

CELL = """
from glamm_mini.paths import checkpoint_folder
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_02.pictures import TYPED, typed_tokens

processor = GlammProcessor.from_pretrained(checkpoint_folder("tiny"))
PictureExplorer(typed_tokens(processor), {"as": list(TYPED)}, text="Where is [SEG]?", width=620)
"""


def test_a_typed_seg_is_plain_in_a_question_and_a_token_in_an_answer(lab):
    page = lab(CELL)
    wait_for(page, "reads as a token: 0")
    picture = page.locator("img[data-picture]")
    shown = picture.get_attribute("src")
    page.locator("[data-axis='as'] button").nth(1).click()
    wait_for(page, "reads as a token: 1")
    assert picture.get_attribute("src") != shown
    page.locator("[data-axis='as'] button").nth(2).click()
    page.locator("input[data-text]").fill("<p> A kite </p> [SEG] and <p> a boat </p> [SEG].")
    wait_for(page, "reads as a token: 2")
    wait_for(page, "phrases: A kite, a boat")
