"""The bar of notebook 09 in JupyterLab: moved up, it lets fewer masks pass; another scene shows another picture."""

from widget_words import wait_for

CELL = """
import numpy as np
from glamm_mini.evaluation.gcg import GroundedImage
from glamm_mini.evaluation.records import GroundedPrediction, GroundedTruth
from glamm_mini.processing.images import encode_mask
from glamm_mini.course.room_09.pictures import bar_explorer

def scene(shift):
    truth, said = np.zeros((2, 60, 80), bool)
    truth[10:40, 10:50] = said[10:40, 10 + shift:50] = True
    words = ["a kite"]
    image = GroundedImage(
        GroundedTruth(0, (60, 80), [], words, [encode_mask(truth)], [None]),
        GroundedPrediction("", words, [encode_mask(said)], [1.0]),
        np.array([[(truth & said).sum() / (truth | said).sum()]]), np.ones((1, 1)))
    return np.full((60, 80, 3), 180, np.uint8), image

bar_explorer(*zip(scene(10), scene(2)))
"""


def test_a_higher_bar_lets_fewer_masks_pass(lab):
    page = lab(CELL)
    wait_for(page, "Scene 0: 1 of 1 phrases found and named")
    wait_for(page, "recall 1.00, precision 1.00")
    before = page.locator("img[data-picture]").get_attribute("src")
    bar = page.locator("input[data-axis='IoU at least']")
    bar.focus()
    for _ in range(6):  # 0.5 to 0.8: the first scene's mask has an IoU of 0.75
        page.keyboard.press("ArrowRight")
    wait_for(page, "IoU at least 0.80. Scene 0: 0 of 1 phrases found and named")
    wait_for(page, "recall 0.50, precision 0.50")
    assert page.locator("img[data-picture]").get_attribute("src") != before
    page.locator("input[data-axis='scene']").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, "Scene 1: 1 of 1 phrases found and named")
