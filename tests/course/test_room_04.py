"""What notebook 04 builds: RoIAlign equals the library's, its graders see near misses, its views show what they say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import roi_align as library

from glamm_mini.course.room_04 import grader as regions
from glamm_mini.course.room_04 import pictures as views
from glamm_mini.course.room_04.lesson import bilinear, roi_align, sampling_points, word_after
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.region_encoder import RegionEncoder
from glamm_mini.storybook.pretrain.run import untrained


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(("size", "ratio", "scale"), [(7, 2, 1 / 8), (14, 2, 1 / 1.75), (1, 1, 0.3), (3, 4, 1.0)])
def test_roi_align_is_torchvisions(aligned, size, ratio, scale):
    torch.manual_seed(1)
    features = torch.randn(5, 11, 17)
    boxes = torch.rand(12, 2, 2).sort(dim=1).values.reshape(12, 4) * torch.tensor([17, 11, 17, 11]) / scale
    extremes = torch.tensor([[0, 0, 17, 11], [-3, -2, 4, 5], [14, 8, 21, 14], [30, 30, 40, 40], [5, 5, 5, 5]])
    boxes = torch.cat([boxes, extremes / scale])
    mine = roi_align(features, boxes, size, scale, ratio, aligned)
    theirs = library(features[None], [boxes], size, scale, ratio, aligned)
    assert mine.shape == (17, 5, size, size)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_value_between_cells_is_their_weighted_mean():
    columns = torch.arange(6.0).expand(1, 4, 6)
    x, y = torch.tensor([0.0, 2.25, 5.0, 5.9, -0.9, 6.5]), torch.tensor([0.0, 1.5, 3.0, 3.0, 0.0, 1.0])
    assert bilinear(columns, x, y).tolist() == [[0.0, 2.25, 5.0, 5.0, 0.0, 0.0]]
    assert bilinear(torch.full((2, 1, 1), 3.0), torch.zeros(2), torch.zeros(2)).tolist() == [[3.0, 3.0]] * 2
    x, y = sampling_points(torch.tensor([[0.0, 10.0, 4.0, 12.0]]), 4)
    assert x.tolist() == [[0.5, 1.5, 2.5, 3.5]] and y.tolist() == [[10.25, 10.75, 11.25, 11.75]]


def test_a_region_encoder_of_these_pieces_is_the_packages():
    torch.manual_seed(2)
    config = GlammConfig.of_size("tiny")
    encoder = RegionEncoder(config).eval()
    levels = [torch.randn(1, config.vision.hidden_size, 12, 12) for _ in config.region.scales]
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]])
    maps = encoder.fuse(encoder.pyramid(levels))
    side, region = config.vision.image_size, config.region
    rois = [roi_align(m[0], boxes * side, region.roi_size, m.shape[-1] / side, region.sampling_ratio) for m in maps]
    torch.testing.assert_close(encoder.read_out(rois, boxes), encoder(levels, [boxes]), rtol=1e-5, atol=1e-5)


def pool(features, box, size):
    x0, y0, x1, y1 = box
    out = torch.empty(features.shape[0], size, size)
    for row in range(size):
        for column in range(size):
            tall, wide = y1 - y0 + 1, x1 - x0 + 1
            top, bottom = y0 + row * tall // size, y0 - (-(row + 1) * tall // size)
            left, right = x0 + column * wide // size, x0 - (-(column + 1) * wide // size)
            out[:, row, column] = features[:, top:bottom, left:right].amax((1, 2))
    return out


def crop(boxes, size):
    corner = np.array([size[1] - min(size), size[0] - min(size)] * 2) / 2
    return ((boxes - corner) / min(size)).clip(0, 1)


def test_graders_see_what_is_nearly_right():
    def cells(boxes, h, w):
        return boxes * torch.tensor([w, h, w, h]) - 0.5

    assert regions.grade_cells(cells) and regions.grade_crop(crop) and regions.grade_pool(pool)
    assert "element [0, 0]" in regions.grade_cells(lambda boxes, h, w: cells(boxes, h, w) + 0.5).message
    assert "case" in regions.grade_cells(lambda boxes, h, w: cells(boxes, w, h)).message
    assert "expected a torch.Tensor" in regions.grade_cells(lambda boxes, h, w: cells(boxes, h, w).numpy()).message
    assert not regions.grade_crop(lambda boxes, size: boxes / np.array([size[1], size[0]] * 2))
    assert "case 2" in regions.grade_crop(lambda boxes, size: (boxes / min(size)).clip(0, 1)).message
    assert "expected shape" in regions.grade_pool(lambda f, b, s: pool(f, b, s)[0]).message
    assert not regions.grade_pool(lambda f, b, s: pool(f, [b[0], b[1], b[2] - 1, b[3] - 1], s).nan_to_num(-9))
    assert "not written yet" in regions.grade_pool(_stub).message


def _stub(features, box, size):
    raise NotImplementedError


def test_a_vector_stands_where_the_box_was_named():
    model, processor = untrained("tiny")
    ids, _ = processor.encode([("What is in <bbox>?", None)], has_image=False)
    vectors = torch.randn(3, model.config.text.hidden_size, requires_grad=True)
    logits = word_after(model, torch.tensor(ids), vectors)
    assert logits.shape == (3, model.config.text.vocab_size)
    logits[1].sum().backward()
    assert vectors.grad[1].abs().sum() > 0 and not vectors.grad[[0, 2]].any(), "each row has its own vector"
    with pytest.raises(ValueError, match="<bbox>"):
        word_after(model, torch.tensor(ids[:3]), vectors)


class Fake:
    """A model that says how many pixels wide a box is."""

    def __init__(self):
        self.model, self.processor = untrained("tiny")

    def encode(self, image):
        global_images = self.processor.images([image])["global_images"]
        with torch.no_grad():
            return self.model.encode_images(global_images)

    def describe_region(self, image, box):
        return SimpleNamespace(caption=f"{box[2] - box[0]:.0f} pixels")


def test_the_explorer_shows_samples_and_cells_of_the_box():
    picture = Image.fromarray(np.full((60, 100, 3), 200, np.uint8))
    explorer = views.region_explorer(Fake(), picture, panels=[{"box": [0.1, 0.2, 0.6, 0.9], "show": "level 2"}])
    assert explorer.words == "Draw a box around something."
    explorer.choose(box=(0.1, 0.2, 0.6, 0.9))
    samples = explorer.picture
    assert explorer.words == "50 pixels"
    explorer.choose(show="level 4")
    assert explorer.words == "50 pixels" and explorer.picture != samples
    explorer.choose(box=(0.5, 0.5, 0.501, 0.501))
    assert explorer.words == "Draw a box around something.", "a click that slipped"
    assert explorer.static_picture().width == 1200 and explorer.static_words() == "50 pixels"


def test_features_have_the_colors_of_their_level():
    torch.manual_seed(3)
    level = torch.randn(16, 6, 6)
    colors = views.principal_colors(level)
    assert colors.shape == (6, 6, 3) and colors.dtype == np.uint8 and colors.std() > 20
    assert np.array_equal(views.principal_colors(level[:, 1:3, 2:5], level), colors[1:3, 2:5])
    assert np.array_equal(views.principal_colors(level), views.principal_colors(level.clone()))


def test_views_are_pictures_of_what_they_say():
    picture = Image.fromarray(np.full((200, 300, 3), 200, np.uint8))
    box, level = [0.1, 0.2, 0.6, 0.9], torch.randn(8, 5, 5)
    row = views.levels_picture(picture, [level] * 4, box, ["picture", *"1234"])
    assert row.width == 1600 and row.height > 300
    rois = views.rois_picture(picture, [level] * 2, [torch.randn(8, 3, 3)] * 2, box, ["picture", "1", "2"])
    assert rois.width == 1600
    assert views.mixing_picture(48).size == (1600, 430)
    slip = np.asarray(views.slip_picture(picture, box, 2 / 3), int)
    for color in ((0, 114, 178), (230, 159, 0)):
        assert (np.abs(slip - color).sum(2) < 60).any(), "a frame in this color"
    x, y = sampling_points(torch.tensor([[1.3, 0.7, 4.9, 3.2]]), 4)
    figure = views.sampling_figure([1.3, 0.7, 4.9, 3.2], x[0].numpy(), y[0].numpy(), 2, (5, 7))
    weights = [float(text.get_text()) for text in figure.axes[1].texts]
    assert len(weights) == 4 and sum(weights) == pytest.approx(1, abs=0.02)
