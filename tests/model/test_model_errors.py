"""Bad input is one clear ValueError that names the row or image and both counts."""

import pytest
import torch
from small_models import answer_labels, box_set, images, padded, row, small_model, truths

from glamm_mini.model.config import GlammConfig


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return small_model()


@pytest.mark.parametrize("given, wanted", [(1, 2), (3, 2), (0, 1), (1, 0)])
def test_boxes_and_bbox_tokens(model, given, wanted):
    rows, mask = padded([row(5, 6), row(5, *["bbox"] * wanted, 6)])
    with pytest.raises(ValueError, match=f"row 1 has {wanted} <bbox> in its text but {given} boxes"):
        model(rows, mask, **images(2), boxes=[None, box_set(given)])


@pytest.mark.parametrize("given, wanted", [(1, 2), (0, 1), (2, 1)])
def test_masks_and_seg_tokens(model, given, wanted):
    ids = row(5, *["seg"] * wanted, 6)[None]
    batch = images(1)
    with pytest.raises(ValueError, match=rf"image 0 .* {wanted} \[SEG\] .* but {given} true masks"):
        model(ids, labels=answer_labels(ids, ids != 0, 5), **batch, masks=truths([given], batch["original"]))


def test_official_mode_cuts_surplus_masks():
    model = small_model(mode="official")
    ids = row(5, "seg", 6)[None]
    batch = images(1)
    masks = truths([3], batch["original"])
    labels = answer_labels(ids, ids != 0, 5)
    more = model(ids, labels=labels, **batch, masks=masks)
    exact = model(ids, labels=labels, **batch, masks=[masks[0][:1]])
    assert torch.equal(more.loss, exact.loss)


def test_number_of_images_in_a_row(model):
    two = torch.cat([row(5), row(6)])[None]
    with pytest.raises(ValueError, match="row 0 has 2 <image>"):
        model(two, **images(1))
    with pytest.raises(ValueError, match="row 0 has 0 <image> and is given an image"):
        model(row(5, image=False)[None], **images(1))
    with pytest.raises(ValueError, match="row 0 has 1 <image> and is given no image"):
        model(row(5)[None], **images(1), image_index=torch.tensor([-1]))


def test_boxes_need_an_image(model):
    with pytest.raises(ValueError, match="a box needs the image it lies in"):
        model(row(5, "bbox", image=False)[None], boxes=[box_set(1)])


def test_one_entry_for_every_row(model):
    ids, mask = padded([row(5), row(6)])
    with pytest.raises(ValueError, match="boxes has 1 entries for 2 rows"):
        model(ids, mask, **images(2), boxes=[None])
    with pytest.raises(ValueError, match="image_index has 3 entries for 2 rows"):
        model(ids, mask, **images(2), image_index=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="image_index names image 2, but the batch has 2 images"):
        model(ids, mask, **images(2), image_index=torch.tensor([0, 2]))


def test_masks_need_sizes_and_images(model):
    ids = row(5, "seg")[None]
    labels = answer_labels(ids, ids != 0, 5)
    batch = images(1)
    masks = truths([1], batch["original"])
    with pytest.raises(ValueError, match="also needs grounding_images"):
        model(ids, labels=labels, global_images=batch["global_images"], masks=masks)
    with pytest.raises(ValueError, match="masks has 2 entries for 1 images"):
        model(ids, labels=labels, **batch, masks=masks * 2)


def test_image_shapes(model):
    with pytest.raises(ValueError, match=r"global images have shape \(1, 3, 20, 20\); expected \(B, 3, 24, 24\)"):
        model.encode_images(torch.zeros(1, 3, 20, 20))
    with pytest.raises(ValueError, match=r"grounding images have shape .* expected \(B, 3, 32, 32\)"):
        model.encode_images(torch.zeros(1, 3, 24, 24), torch.zeros(1, 3, 24, 24))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GlammConfig.of_size("huge"), "size 'huge' is unknown; expected one of tiny, colab, 7b"),
        (lambda: GlammConfig(mode="broken"), "mode is 'broken'"),
        (lambda: GlammConfig(seg_state="after"), "seg_state is 'after'"),
        (lambda: GlammConfig(region={"chanels": 3}), r"RegionConfig has no setting \['chanels'\]"),
        (lambda: GlammConfig.of_size("tiny", level_step=9).region_layers, "needs hidden states"),
        (lambda: GlammConfig.of_size("tiny").memory_report(dtype="float63"), "dtype 'float63' is unknown"),
        (lambda: GlammConfig.of_size("tiny").memory_report(trained="some"), "trained is 'some'"),
    ],
)
def test_configuration(make, message):
    with pytest.raises(ValueError, match=message):
        make()
