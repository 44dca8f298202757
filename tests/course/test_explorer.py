"""The picture that is drawn anew by what a reader chooses: from Python here, in a browser in tests/browser."""

import base64
import io
import sys
import types

import pytest
from PIL import Image

from glamm_mini.course.drawing.explorer import PictureExplorer


def draw(choice):
    level = choice.get("level", 0)
    if level == 3:
        raise RuntimeError("three is too many")
    return Image.new("RGB", (80, 40), (50 * level, 0, 0)), f"{level} {choice['point']} {choice['text']}"


def shown(explorer):
    picture = Image.open(io.BytesIO(base64.b64decode(explorer.picture.partition(",")[2])))
    return picture.convert("RGB").getpixel((5, 5))[0]


def test_a_choice_from_python_draws_anew():
    explorer = PictureExplorer(draw, {"level": ([0, 1, 2, 3], 1), "kind": ["a", "b"]}, pointer="click", text="hi")
    assert shown(explorer) == pytest.approx(50, abs=6) and explorer.words == "1 None hi"
    explorer.choose(level=2, point=(0.5, 0.25), text="ho")
    assert shown(explorer) == pytest.approx(100, abs=6) and explorer.words == "2 (0.5, 0.25) ho"
    assert explorer.choice["kind"] == "a" and "level=2" in repr(explorer)


def test_what_the_page_sends_is_checked_and_errors_are_said():
    explorer = PictureExplorer(draw, {"level": [1, 3]})
    explorer.wanted = {"level": 7}
    assert "level is 7; expected one of 1, 3" in explorer.words and explorer.choice["level"] == 1
    explorer.wanted = {"level": 3}
    assert explorer.words == "RuntimeError: three is too many" and shown(explorer) == pytest.approx(50, abs=6)
    explorer.wanted = {"point": [0.1, 0.2]}
    assert explorer.choice["point"] == (0.1, 0.2), "a list from the page is a tuple"


def test_the_static_picture_holds_the_panels():
    explorer = PictureExplorer(draw, {"level": [0, 1, 2]}, panels=[{"level": k} for k in range(3)])
    data, metadata = explorer._repr_mimebundle_()
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
    assert [picture.getpixel((x, 80))[0] for x in (150, 600, 1050)] == [0, 50, 100]
    assert metadata["image/png"]["alt"] == "0 None ; 1 None ; 2 None "
    assert "application/vnd.jupyter.widget-view+json" in data
    assert PictureExplorer(draw, alt="black").static_words() == "black"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pointer": "hover"}, "pointer is 'hover'"),
        ({"axes": {"level": []}}, "at least one option"),
        ({"axes": {"box": [1]}}, "a name other than"),
        ({"axes": {"level": ([1, 2], 9)}}, "begins with 9"),
        ({"panels": [{"depth": 1}]}, "nothing is called 'depth'"),
    ],
)
def test_a_wrong_explorer_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        PictureExplorer(draw, **given)


def test_colab_is_asked_to_run_widgets_and_nothing_else_is(monkeypatch):
    asked = []
    output = types.ModuleType("google.colab.output")
    output.enable_custom_widget_manager = lambda: asked.append("asked")
    PictureExplorer(draw)
    assert not asked
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    PictureExplorer(draw)
    assert asked == ["asked"]


@pytest.mark.parametrize(
    "options",
    [("before", "at"), (0.5, 0.75), ("a", "an"), (96, 128), ("a", "b", "c"), (1, 2, 3), ["x", "y"], ("xy", "x")],
)
def test_options_in_a_tuple_are_options(options):
    explorer = PictureExplorer(draw, axes={"kind": options})
    assert explorer.axes[0]["options"] == list(options) and explorer.choice["kind"] == options[0]


def test_options_beside_their_first_one():
    for given, first in ((([96, 128], 128), 128), ((("a", "an"), "an"), "an"), ((range(3), 2), 2)):
        explorer = PictureExplorer(draw, axes={"kind": given})
        assert explorer.axes[0]["options"] == list(given[0]) and explorer.choice["kind"] == first
