"""Notebook 07 in JupyterLab: another phrase brings another prompt and another mask."""

CELL = """
import numpy as np
import torch
from glamm_mini import GlammConfig
from glamm_mini.model.sam import PixelDecoder
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.room_07.pictures import SegQueries

torch.manual_seed(0)
c = GlammConfig.of_size("tiny")
dim, grid, side = c.grounding.prompt_dim, c.grounding.grid, c.grounding.image_size
image = np.full((96, 128, 3), 160, np.uint8)
prompts, features = torch.randn(2, dim), torch.randn(1, dim, grid, grid)
queries = SegQueries(image, ["the sky", "a red tree"], prompts, features, PixelDecoder(c), side, (96, 128))
PictureExplorer(queries, axes={"phrase": queries.names}, width=480)
"""


def test_another_phrase_shows_its_own_prompt_and_mask(lab):
    page = lab(CELL)
    words, picture = page.locator("[aria-live]").last, page.locator("img[data-picture]")
    assert "1: the sky: " in words.text_content()
    shown = picture.get_attribute("src")
    page.locator("[data-axis='phrase'] button", has_text="a red tree").click()
    page.wait_for_function("old => document.querySelector('img[data-picture]').getAttribute('src') !== old", arg=shown)
    assert "2: a red tree: " in words.text_content()
    page.locator("[data-axis='phrase'] button", has_text="the sky").click()
    page.wait_for_function("old => document.querySelector('img[data-picture]').getAttribute('src') === old", arg=shown)
    assert "1: the sky" in words.text_content()
