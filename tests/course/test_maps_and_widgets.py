"""The course's maps, the diagrams they are drawn with, and the widget with its picture for pages without Python."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image
from traitlets import TraitError

from glamm_mini import GroundedAnswer, GroundedPhrase
from glamm_mini.course.drawing import maps
from glamm_mini.course.drawing.diagram import PAPER, Diagram, fitted, tint
from glamm_mini.course.drawing.illustration import illustration
from glamm_mini.course.drawing.panels import phrase_panels, spotlight
from glamm_mini.course.drawing.widgets import PhraseExplorer
from glamm_mini.visuals.palette import PALETTE, contrast, hex_color

FIGURES = Path(__file__).resolve().parents[2] / "figures"


@pytest.fixture
def answer() -> GroundedAnswer:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    left, right, none = np.zeros((3, 60, 80), bool)
    left[10:50, 5:35], right[10:50, 45:75] = True, True
    caption = "A <b>kite</b> left of a boat and a fish."
    phrases = [
        GroundedPhrase("A <b>kite</b>", (0, 13), left, (5, 10, 35, 50), 0.9),
        GroundedPhrase("a boat", (22, 28), right, (45, 10, 75, 50), 0.8),
        GroundedPhrase("a fish", (33, 39), none, None, 0.0),
    ]
    return GroundedAnswer("", caption, phrases, image=image, question="What <i>is</i> it?")


def test_the_series_map_lights_one_room_and_grays_the_others():
    plain, lit = maps.series_map(), maps.series_map("00_tour")
    assert plain.width == 1600 and plain.size == lit.size
    blue = np.asarray(lit, int) - PALETTE[0]
    assert (np.abs(blue).sum(2) == 0).sum() > (np.abs(np.asarray(plain, int) - PALETTE[0]).sum(2) == 0).sum()
    with pytest.raises(ValueError, match="no room '99'"):
        maps.series_map("99")


def test_words_on_the_maps_stay_inside_their_cards():
    diagram = Diagram(10, 10)
    for floor in maps.FLOORS:
        width = (maps.WIDTH - 2 * maps.MARGIN - (floor.per_row - 1) * maps._ARROW) / floor.per_row
        for room in floor.rooms:
            title = diagram.length(room.title, 27, True) + diagram.length(room.number, 27, True)
            assert title + 22 + 14 + 0.8 * 27 + 10 < width, room.title
            assert len(diagram.wrap(room.builds, width - 44, 24)) <= 2, room.builds
    for name, ((x0, _, x1, _), does, _, _) in maps.PARTS.items():
        assert max(diagram.length(name, 25, True), diagram.length(does, 24)) < x1 - x0 - 12, name


def test_the_list_of_rooms_links_open_ones_alone():
    table = maps.room_table()
    assert "[00_tour](00_tour.ipynb)" in table
    assert table.count("\n") == 17 and table.count("not built yet") == sum(not room.built for room in maps.ROOMS)


def test_the_architecture_can_light_single_parts():
    square = Image.new("RGB", (50, 50), "red")
    whole, part = maps.architecture(square, square), maps.architecture(square, square, ["pixel decoder"])
    x0, y0, x1, _ = maps.PARTS["pixel decoder"][0]
    inside = (x0 + 20, y0 + 10)
    assert whole.getpixel(inside) == part.getpixel(inside) == tint(PALETTE[3], 0.2)
    elsewhere = (340, 70)
    assert whole.getpixel(elsewhere) != part.getpixel(elsewhere)
    with pytest.raises(ValueError, match="no part"):
        maps.architecture(square, square, ["heart"])


@pytest.mark.parametrize("size", [(60, 60), (80, 60), (60, 80), (90, 30)])
def test_pictures_on_the_map_keep_their_shape(size):
    left, top, right, bottom = fitted(Image.new("RGB", size), (100, 200, 300, 400))
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1])
    assert max(right - left, bottom - top) == 200 and left + right == 400 and top + bottom == 600
    drawn = np.asarray(maps.architecture(Image.new("RGB", size, "red"), Image.new("RGB", size, "lime")))
    for pure in ((255, 0, 0), (0, 255, 0)):
        rows, columns = np.nonzero((drawn == pure).all(-1))
        wide, high = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert wide / high == pytest.approx(size[0] / size[1], rel=0.03)


def test_the_answer_on_the_map_names_what_the_caller_says():
    square = Image.new("RGB", (50, 50))
    named = maps.architecture(square, square, phrase="a red boat")
    changed = np.argwhere((np.asarray(named) != np.asarray(maps.architecture(square, square))).any(-1))
    assert (changed.min(0) > (90, 1345)).all() and (changed.max(0) < (318, 1570)).all(), "the words stay in their box"


def test_words_are_readable_on_the_tints_of_the_cards():
    for color in PALETTE[:4]:
        assert contrast((26, 29, 33), tint(color, 0.3)) > 7
    assert tint((10, 20, 30), 0) == PAPER and tint((10, 20, 30), 1) == (10, 20, 30)


def test_an_illustration_has_words(answer):
    data, metadata = illustration(Image.new("RGB", (40, 30)), "a black field", width=20)._repr_png_()
    assert metadata["alt"] == "a black field" and metadata["width"] == 20 and data
    figure, _ = pyplot.subplots(figsize=(2, 1))
    assert illustration(figure, "empty axes").data[:4] == b"\x89PNG" and not pyplot.fignum_exists(figure.number)
    with pytest.raises(ValueError, match="no words"):
        illustration(Image.new("RGB", (40, 30)), " ")


def test_a_spotlight_keeps_the_mask_and_dims_the_rest(answer):
    shown = np.asarray(spotlight(answer.image, answer.phrases[0].mask, 0))
    assert (shown[25:35, 15:25] == answer.image[25:35, 15:25]).all()
    assert (shown[25:35, 55:65] <= answer.image[25:35, 55:65] * 0.3).all()


def test_panels_show_every_phrase_and_an_answer_without_any(answer):
    three = phrase_panels(answer)
    assert three.width == 1200 and phrase_panels(answer, columns=1).height > three.height
    answer.phrases = []
    assert phrase_panels(answer).size == (80, 60)


def test_the_widget_carries_a_picture_of_itself(answer):
    data, metadata = PhraseExplorer(answer)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "PhraseExplorer(3 phrases)"
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width >= 600, "noise is hard to store"
    assert "a boat" in metadata["image/png"]["alt"]


def test_the_widget_knows_the_chosen_phrase(answer):
    explorer = PhraseExplorer(answer)
    assert explorer.phrase is None and explorer.phrases[0]["color"] == hex_color(PALETTE[0])
    explorer.selected = 1
    assert explorer.phrase.text == "a boat"
    with pytest.raises(TraitError, match="phrase 3 of 3"):
        explorer.selected = 3
    assert explorer.selected == 1
    answer.image = None
    with pytest.raises(ValueError, match="no image"):
        PhraseExplorer(answer)


PAGE = """<!doctype html><meta charset="utf-8"><body><div id="here"></div><script type="module">
const state = STATE, listeners = [];
window.model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; listeners.forEach((call) => call()); },
  save_changes: () => {}, on: (event, call) => listeners.push(call), off: () => {},
};
const module = await import(URL.createObjectURL(new Blob([SCRIPT], { type: "text/javascript" })));
module.default.render({ model: window.model, el: document.getElementById("here") });
</script></body>"""


@pytest.mark.browser
def test_clicking_a_phrase_shows_its_mask_alone(answer, tmp_path, chromium):
    explorer = PhraseExplorer(answer)
    names = ("picture", "alt", "question", "runs", "phrases", "selected")
    safe = {key: json.dumps(value).replace("<", "\\u003c") for key, value in {
        "STATE": {name: getattr(explorer, name) for name in names}, "SCRIPT": PhraseExplorer._esm}.items()}  # fmt: skip
    page_text = PAGE.replace("STATE", safe["STATE"]).replace("SCRIPT", safe["SCRIPT"])
    (tmp_path / "page.html").write_text(page_text, encoding="utf-8")
    page = chromium.new_page(viewport={"width": 900, "height": 500})
    page.goto((tmp_path / "page.html").as_uri())
    boat = page.get_by_role("button", name="a boat")
    boat.click()
    assert page.evaluate("model.get('selected')") == 1 and boat.get_attribute("aria-pressed") == "true"
    assert "score 0.80" in page.locator("[aria-live]").text_content()
    masks = [page.locator(f"[data-mask='{k}']").get_attribute("stroke-opacity") for k in range(2)]
    assert masks == ["0", "1"]
    page.locator("[data-mask='0']").click()
    assert page.evaluate("model.get('selected')") == 0
    page.locator("[data-mask='0']").click()
    assert page.evaluate("model.get('selected')") == -1
    assert page.get_by_role("button", name="A <b>kite</b>").count() == 1, "texts are shown as text"
    assert page.locator("b, i").count() == 0
    page.screenshot(path=str(tmp_path / "widget.png"))
    page.close()


@pytest.mark.parametrize("name", ["series", "architecture", "hero", "contact_sheet"])
def test_figures_are_small(name):
    assert (FIGURES / f"{name}.png").stat().st_size < 300_000


def test_the_drawn_map_is_what_the_script_draws():
    kept = np.asarray(Image.open(FIGURES / "series.png").convert("RGB"), int)
    drawn = np.asarray(maps.series_map(), int)
    assert kept.shape == drawn.shape and np.abs(kept - drawn).mean() < 1, "run `make figures`"
