"""The tour's widget in JupyterLab: a click on a phrase shows its mask, and Python knows."""

SCENE = """
import numpy as np
from glamm_mini import GroundedAnswer, GroundedPhrase
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.course.drawing.widgets import PhraseExplorer

scene = sample_scene("test", seed=0, index=8)
page = render(scene, long_side=320)
phrases, caption = [], ""
for k, thing in enumerate(scene.things):
    words = f"{thing.colour} {thing.cls}"
    phrases.append(GroundedPhrase(words, (len(caption), len(caption) + len(words)), page.thing_masks[k], None, 0.9))
    caption += words + ", "
answer = GroundedAnswer("", caption, phrases, image=page.image, question="What is there?")
"""


def test_a_click_on_a_phrase_shows_its_mask_and_python_knows(lab):
    page = lab(SCENE, "explorer = PhraseExplorer(answer)\nexplorer")
    buttons = page.locator("button[data-phrase]")
    assert buttons.count() >= 3
    buttons.nth(1).click()
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    assert page.locator("[data-mask='1']").get_attribute("stroke-opacity") == "1"
    assert page.locator("[data-mask='0']").get_attribute("stroke-opacity") == "0"
    assert "score 0.90" in page.locator("[aria-live]").last.text_content()
