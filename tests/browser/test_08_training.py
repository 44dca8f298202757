"""The scrubber of notebook 08 in JupyterLab: another step brings other masks, another scene another picture."""

from widget_words import wait_for

CELL = """
import torch
from glamm_mini.storybook.dataset import evaluation_samples
from glamm_mini.course.room_08.lesson import HeldOut
from glamm_mini.course.room_08.pictures import training_explorer

samples = list(evaluation_samples("gcg", "val", seed=5, limit=2, long_side=96))
truth = [torch.from_numpy(sample.conversations[0][0].masks) for sample in samples]
held_out = HeldOut.__new__(HeldOut)  # as after a run, without the run
held_out.drawn = [[torch.zeros_like(masks) for masks in truth], truth]
held_out.ious = [[torch.zeros(len(masks)) for masks in truth], [torch.ones(len(masks)) for masks in truth]]
training_explorer(samples, held_out, [0, 40])
"""


def test_the_sliders_move_through_steps_and_scenes(lab):
    page = lab(CELL)
    wait_for(page, "step 0: mean IoU 0.00")
    picture = page.locator("img[data-picture]")
    first = picture.get_attribute("src")
    page.locator("input[data-axis='step']").focus()
    page.keyboard.press("ArrowRight")
    wait_for(page, "step 40: mean IoU 1.00")
    second = picture.get_attribute("src")
    assert second != first
    page.locator("input[data-axis='scene']").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("s => document.querySelector('img[data-picture]').src !== s", arg=second)
