"""The widget of notebook 13 in JupyterLab: choose what to break, and the first quantity that differs changes."""

from widget_words import wait_for

CELL = """
from torch import nn
from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.paths import parity_folder
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_13.pictures import broken_flow

breaks = {
    "nothing": lambda model: None,
    "box scale 336": lambda model: setattr(model.region_encoder, "box_size", 336),
    "L-P: GELU": lambda model: model.lp_projector.__setitem__(1, nn.GELU()),
}
draw = broken_flow(ReferenceCase(parity_folder() / "case_small"), breaks)
PictureExplorer(draw, {"broken": list(breaks)}, title="Break one thing", width=640)
"""


def test_what_is_broken_decides_where_the_flows_part(lab):
    page = lab(CELL)
    wait_for(page, "nothing: all 23 quantities agree")
    picture = page.locator("img[data-picture]")
    whole = picture.get_attribute("src")
    page.locator("[data-axis='broken'] button", has_text="box scale 336").click()
    wait_for(page, "the first that does not: boxes cut out (region encoder)")
    boxes = picture.get_attribute("src")
    assert boxes != whole
    page.locator("[data-axis='broken'] button", has_text="L-P: GELU").click()
    wait_for(page, "the first that does not: states as prompts (L-P projector)")
    assert picture.get_attribute("src") not in (whole, boxes)
    page.locator("[data-axis='broken'] button", has_text="nothing").click()
    wait_for(page, "nothing: all 23 quantities agree")
    assert picture.get_attribute("src") == whole
