"""Pictures of answers: the palette is legible and color-blind safe, masks lie where they belong, words are kept."""

import base64
import io
import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from glamm_mini.course.drawing.compose import labeled
from glamm_mini.visuals.answer_html import answer_html, answer_page
from glamm_mini.visuals.answer_png import answer_png, compose
from glamm_mini.visuals.encode import BYTES, png_bytes
from glamm_mini.visuals.overlay import TINT, mask_path, overlay_at_size, overlay_masks, shown_ratio
from glamm_mini.visuals.palette import PALETTE, color, contrast, hex_color, ink_on
from glamm_mini.visuals.sentence import Run, loose_phrases, question_words, sentence_runs
from glamm_mini.visuals.typeset import Style, set_lines


@dataclass
class Phrase:
    text: str
    span: tuple[int, int] | None
    mask: np.ndarray
    box: tuple | None = None
    score: float = 0.9


@dataclass
class Answer:
    caption: str = ""
    phrases: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    image: np.ndarray | None = None
    question: str = ""
    text: str = ""


def disc(height, width, cx, cy, radius):
    y, x = np.mgrid[:height, :width]
    return (x - cx) ** 2 + (y - cy) ** 2 < radius**2


def answer_with(count: int, height=60, width=80, words="a {} dot") -> Answer:
    """`count` discs in a row, each with a phrase."""
    answer = Answer(image=np.full((height, width, 3), 200, np.uint8), question="What is where?")
    for k in range(count):
        name = words.format(k)
        start = len(answer.caption)
        answer.caption += f"{name}, "
        mask = disc(height, width, (k + 0.5) * width / count, height / 2, 0.4 * min(height, width / count))
        answer.phrases.append(Phrase(name, (start, start + len(name)), mask))
    answer.caption = answer.caption.rstrip(", ") + "." if count else "It is quiet."
    return answer


# -- palette

# Machado, Oliveira, Fernandes (2009), full severity, for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(rgb, sight):
    c = np.array(rgb) / 255
    linear = np.clip(sight @ np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = to_xyz @ linear / (0.9505, 1.0, 1.089)
    x, y, z = (np.cbrt(v) if v > 0.008856 else 7.787 * v + 16 / 116 for v in (x, y, z))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("name", SIGHT)
def test_colors_stay_apart_for_all_eyes(name):
    seen = [lab(rgb, SIGHT[name]) for rgb in PALETTE]
    distance, i, j = min((np.linalg.norm(a - b), i, j) for (i, a), (j, b) in itertools.combinations(enumerate(seen), 2))
    assert distance > 12, f"{PALETTE[i]} and {PALETTE[j]} are {distance:.1f} apart"


def test_text_on_every_color_is_legible():
    assert len(set(PALETTE)) == 12
    for rgb in PALETTE:
        assert contrast(rgb, ink_on(rgb)) >= 4.5
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert color(12) == color(0) and hex_color((0, 114, 178)) == "#0072b2"


# -- overlay


def test_overlay_tints_inside_and_leaves_the_rest():
    image = np.full((40, 60, 3), 100, np.uint8)
    mask = disc(40, 60, 30, 20, 10)
    drawn = overlay_masks(image, [mask], [(255, 0, 0)], alpha=0.5, outline=1)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert drawn[20, 30].tolist() == [178, 50, 50]
    assert (drawn[0] == 100).all() and (image == 100).all()
    assert (overlay_masks(image, [mask], [(255, 0, 0)], alpha=0, outline=0) == image).all()


def test_overlay_draws_a_crisp_outline_on_the_border():
    image = np.zeros((60, 60, 3), np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[20:40, 20:40] = True
    drawn = overlay_masks(image, [mask], [(0, 0, 255)], alpha=0, outline=2)
    assert drawn[30, 19:21].tolist() == [[0, 0, 255]] * 2
    assert drawn[30, 30].sum() == 0 and drawn[30, 10].sum() == 0


def test_small_masks_lie_on_top_whatever_the_order():
    image = np.zeros((50, 50, 3), np.uint8)
    large, small = np.ones((50, 50), bool), disc(50, 50, 25, 25, 6)
    for masks, tints in (([large, small], [(255, 0, 0), (0, 255, 0)]), ([small, large], [(0, 255, 0), (255, 0, 0)])):
        drawn = overlay_masks(image, masks, tints, alpha=1, outline=0)
        assert drawn[25, 25].tolist() == [0, 255, 0] and drawn[2, 2].tolist() == [255, 0, 0]


def test_overlay_without_masks_and_with_an_empty_one_is_the_picture():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert (overlay_masks(image, []) == image).all()
    assert (overlay_masks(image, [np.zeros((20, 30), bool)]) == image).all()
    assert (overlay_masks(image, np.zeros((2, 20, 30), bool)) == image).all()


@pytest.mark.parametrize(
    ("image", "masks", "tints", "alpha", "message"),
    [
        (np.zeros((4, 4), np.uint8), [], None, 0.5, "expected uint8"),
        (np.zeros((4, 4, 3), np.float32), [], None, 0.5, "expected uint8"),
        (np.zeros((4, 4, 3), np.uint8), [np.zeros((4, 5))], None, 0.5, "mask 0 has shape"),
        (np.zeros((4, 4, 3), np.uint8), [np.zeros((4, 4))], [], 0.5, "0 colors for 1 masks"),
        (np.zeros((4, 4, 3), np.uint8), [], None, 1.5, "opacity between 0 and 1"),
    ],
)
def test_overlay_explains_bad_input(image, masks, tints, alpha, message):
    with pytest.raises(ValueError, match=message):
        overlay_masks(image, masks, tints, alpha)


def test_overlay_at_another_size_keeps_places_and_draws_boxes():
    answer = answer_with(2)
    drawn = np.asarray(overlay_at_size(answer.image, [p.mask for p in answer.phrases], (320, 240)), int)
    assert drawn.shape == (240, 320, 3)
    for k in (0, 1):
        at = drawn[120, 80 + 160 * k]
        assert np.abs(at - (200 * (1 - TINT) + np.array(color(k)) * TINT)).max() < 3
    box = np.array([[10, 10, 30, 30]])
    boxed = np.asarray(overlay_at_size(answer.image, [], (320, 240), box), int)
    assert (boxed[80, 40] == 255).all() and (boxed[80, 80] == 200).all()


def test_frames_and_their_numbers_stay_inside_the_picture():
    image = np.full((60, 80, 3), 200, np.uint8)
    for box in ([0, 0, 80, 60], [70, 50, 80, 60], [78, 58, 79, 59]):
        drawn = np.asarray(overlay_at_size(image, [], (320, 240), np.array([box])), int)
        assert (drawn[1:-1, 1:-1] == 255).all(-1).sum() > 100, "a frame or a number in white"
    whole = np.asarray(overlay_at_size(image, [], (320, 240), np.array([[0, 0, 80, 60]])), int)
    for side in (whole[:8, 160], whole[-8:, 160], whole[120, :8], whole[120, -8:]):
        assert (side == 255).all(-1).any() and (side == 0).all(-1).any(), "all four sides are seen"


def test_extremely_long_pictures_are_shown_stretched():
    shapes = {(400, 1): 1 / 8, (1, 400): 8, (30, 60): 2, (90, 30): 1 / 3}
    for shape, ratio in shapes.items():
        assert shown_ratio(np.zeros((*shape, 3), np.uint8)) == pytest.approx(ratio)


def test_mask_path_encloses_the_mask():
    from matplotlib.path import Path as Polygon

    mask = np.zeros((50, 100), bool)
    mask[10:30, 20:60] = True
    mask[15:20, 30:40] = False  # a hole
    loops = re.findall(r"M([^Z]+)Z", mask_path(mask))
    assert len(loops) == 2
    polygons = [Polygon([tuple(map(float, p.split())) for p in loop.split("L")]) for loop in loops]
    y, x = np.mgrid[:50, :100]
    centers = np.stack([(x.ravel() + 0.5) * 10, (y.ravel() + 0.5) * 20], 1)
    inside = sum(p.contains_points(centers).astype(int) for p in polygons) % 2
    assert (inside.reshape(mask.shape).astype(bool) != mask).mean() < 0.01
    assert mask_path(np.zeros((5, 5), bool)) == ""
    assert mask_path(np.ones((5, 5), bool)).count("M") == 1


# -- sentence and type


def test_runs_are_the_caption_cut_at_its_phrases():
    answer = answer_with(3)
    runs = sentence_runs(answer)
    assert "".join(run.text for run in runs) == answer.caption
    assert [run.phrase for run in runs] == [0, None, 1, None, 2, None]
    assert loose_phrases(answer) == []


def test_phrases_without_a_place_are_shown_behind():
    answer = answer_with(3)
    answer.phrases[0].span, answer.phrases[0].text = None, ""
    answer.phrases[2].span = (answer.phrases[1].span[0] + 1, answer.phrases[1].span[1] + 2)
    assert [r.phrase for r in sentence_runs(answer)] == [None, 1, None]
    assert loose_phrases(answer) == [Run("mask 1", 0), Run("a 2 dot", 2)]
    alone = Answer(caption="It is.", phrases=[Phrase("", None, np.ones((2, 2), bool))])
    assert loose_phrases(alone) == [Run("mask", 0)]


def test_a_question_names_its_boxes():
    assert question_words(Answer(question="Is <bbox>  left of <bbox>?")) == "Is [box 1] left of [box 2]?"
    assert question_words(Answer(question=None)) == ""


@pytest.mark.parametrize("width", [150, 300, 900])
def test_lines_hold_all_words_and_fit(width):
    answer = answer_with(9, words="number {} of the many round dots")
    answer.caption += " " + "w" * 80
    lines = set_lines(sentence_runs(answer), Style(20), width)
    pieces = [piece for line in lines for piece in line]
    assert "".join(p.text for p in pieces).replace(" ", "") == answer.caption.replace(" ", "")
    for line in lines:
        assert line[-1].x + line[-1].width <= width + 1
        for left, right in itertools.pairwise(line):
            assert left.x + left.width <= right.x + 0.01
    for k in range(9):
        own = [p for p in pieces if p.phrase == k]
        assert own[0].starts and own[-1].ends and not any(p.starts for p in own[1:])
    assert set_lines([], Style(20), width) == []


def test_punctuation_stays_with_its_phrase():
    lines = set_lines(sentence_runs(answer_with(6, words="dot {}")), Style(20), 160)
    assert all(line[0].text[0] not in ",." for line in lines)


# -- the answer


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize(("height", "width"), [(60, 80), (40, 120), (120, 40)])
def test_answer_png_shows_each_mask_and_each_phrase(count, height, width):
    card = answer_png(answer_with(count, height, width))
    assert card.width == 1200 and card.mode == "RGB" and card.height < 1400
    seen = {rgb for _, rgb in card.getcolors(card.width * card.height)}
    for k in range(count):
        assert color(k) in seen, f"no pill in the color of phrase {k}"
    gray = PALETTE[-1]  # also the color of half a letter
    assert not (set(PALETTE) - set(map(color, range(count))) - {gray}) & seen


def test_answer_png_sets_the_sentence_beside_or_below():
    square, wide = answer_png(answer_with(1, 60, 60)), answer_png(answer_with(1, 40, 120))
    assert (np.asarray(square)[-38:, :600] == 255).all()
    assert (np.asarray(wide)[60, 60:1140] != 255).all(), "a wide picture takes the whole width"
    narrow = answer_png(answer_with(1, 60, 60), width=500)
    assert narrow.width == 500 and narrow.height > 500
    with pytest.raises(ValueError, match="at least 320"):
        answer_png(answer_with(1), width=100)


def test_answer_png_without_words_without_picture_and_with_an_empty_mask():
    assert (np.asarray(answer_png(Answer(image=np.zeros((30, 30, 3), np.uint8)))) < 150).any()
    assert answer_png(Answer(caption="Words alone.", notes=["a note"])).width == 1200
    answer = answer_with(1)
    full = np.asarray(answer_png(answer), int)
    answer.phrases[0].mask[:] = False
    hollow = np.asarray(answer_png(answer), int)
    blue = [(np.abs(card - color(0)).sum(-1) == 0).sum() for card in (full, hollow)]
    assert 0 < blue[1] < blue[0] / 3, "the pill of an empty mask is a frame"


def test_longer_sentences_make_taller_cards():
    short, long = answer_with(2, 40, 120), answer_with(12, 40, 120, words="the rather long name of dot {}")
    assert answer_png(long).height > answer_png(short).height + 80


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.spans, self.words, self.open = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "hr", "br"):
            self.open.append(tag)
        if tag == "span":
            self.spans.append([dict(attrs)["style"], ""])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words += data
        if self.open and self.open[-1] == "span":
            self.spans[-1][1] += data


def parse(html: str) -> Page:
    page = Page()
    page.feed(html)
    assert page.open == []
    return page


def test_answer_html_colors_phrases_inline_and_holds_the_picture():
    answer = answer_with(12)
    page = parse(answer_html(answer))
    assert [words for _, words in page.spans] == [p.text for p in answer.phrases]
    for k, (style, _) in enumerate(page.spans):
        assert f"background-color:{hex_color(color(k))};color:{hex_color(ink_on(color(k)))}" in style
    assert answer.caption in page.words and answer.question in page.words
    [picture] = [attrs for tag, attrs in page.tags if tag == "img"]
    data = base64.b64decode(picture["src"].removeprefix("data:image/webp;base64,"))
    assert Image.open(io.BytesIO(data)).size == (640, 480)
    assert sum(tag == "path" for tag, _ in page.tags) == 24
    assert "<script" not in answer_html(answer)


def test_answer_html_escapes_everything():
    evil = "<script>alert(1)</script>\"'&"
    phrase = Phrase(evil, (0, len(evil)), np.ones((9, 9), bool))
    answer = Answer(evil, [phrase], [evil], np.zeros((9, 9, 3), np.uint8), evil)
    page = parse(answer_page([answer], title=evil))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count(evil) == 4
    answer.phrases[0].span, answer.caption = None, ""
    assert "script" not in {tag for tag, _ in parse(answer_html(answer)).tags}


def test_answer_html_of_little_is_still_something():
    assert "(no words)" in answer_html(Answer())
    answer = answer_with(1)
    answer.phrases[0].mask[:] = False
    assert "background-color" not in answer_html(answer) and "no pixel was found" in answer_html(answer)


def test_answer_html_stays_small_for_noisy_pictures():
    noise = np.random.default_rng(0).integers(0, 255, (640, 640, 3), dtype=np.uint8)
    assert len(png_bytes(Image.fromarray(noise), 9_000)) <= 9_000
    assert len(answer_html(Answer("Noise.", image=noise))) < 8 / 3 * BYTES + 2_000


@pytest.mark.browser
def test_pointing_at_a_phrase_lights_up_its_mask_and_the_other_way_round(tmp_path, chromium):
    (tmp_path / "page.html").write_text(answer_page([answer_with(3)]), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 1000, "height": 700}, color_scheme="dark")
    page.goto((tmp_path / "page.html").as_uri())
    look = "e => getComputedStyle(e)"
    assert page.locator(".s1").evaluate(f"{look}.opacity") == "0"
    page.locator(".p1").hover()
    page.wait_for_timeout(400)
    assert [page.locator(f".s{k}").evaluate(f"{look}.opacity") for k in range(3)] == ["0", "1", "0"]
    page.locator(".m2").hover()
    page.wait_for_timeout(400)
    assert page.locator(".p2").evaluate(f"{look}.boxShadow") != "none"
    assert page.locator(".p1").evaluate(f"{look}.boxShadow") == "none"
    plain = page.get_by_text("What is where?").evaluate(f"{look}.color")
    assert plain == "rgb(255, 255, 255)", "plain words follow the dark theme"
    page.close()


def test_compose_fills_the_shortest_column():
    cards = [Image.new("RGB", (100, h), (h, 0, 0)) for h in (50, 200, 60, 70)]
    sheet = compose(cards, columns=2, gap=10)
    assert sheet.size == (230, 220)
    assert sheet.getpixel((15, 15)) == (50, 0, 0) and sheet.getpixel((125, 15)) == (200, 0, 0)
    assert sheet.getpixel((15, 75)) == (60, 0, 0) and sheet.getpixel((15, 145)) == (70, 0, 0)
    assert compose(cards[:1], columns=3, gap=0).size == (100, 50)
    for wrong in ([], [cards[0], Image.new("RGB", (90, 50))]):
        with pytest.raises(ValueError, match="equal widths"):
            compose(wrong)


def test_labeled_pictures_stand_in_rows_with_their_words():
    red, blue = Image.new("RGB", (40, 20), "red"), Image.new("RGB", (40, 40), "blue")
    sheet = labeled([red, blue, red], ["one", "two", "three"], columns=2, width=600)
    assert sheet.width == 600 and sheet.getpixel((100, 50)) == (255, 0, 0) and sheet.getpixel((400, 100)) == (0, 0, 255)
    assert sheet.getpixel((400, sheet.height - 60)) == (255, 255, 255)
    with pytest.raises(ValueError, match="1 pictures and 2 texts"):
        labeled([red], ["one", "two"])
