"""Labels made by hand, and the joint stage: what reaches which part, losses that add up."""

import math

import numpy as np
import pytest
import torch

from glamm_mini.data.sample import Sample
from glamm_mini.storybook.dataset import StorybookDataset
from glamm_mini.storybook.language.vocabulary import CLASSES, STUFF
from glamm_mini.storybook.pretrain.dense_labels import (
    ATTRIBUTES,
    IGNORE,
    KINDS,
    DenseHeads,
    DenseLabels,
    dense_labels,
    mask_boxes,
    mask_labels,
    region_labels,
)
from glamm_mini.storybook.pretrain.joint_stage import JointCollate, JointTraining
from glamm_mini.training.data_order import COUNTS

# --- dense labels ----------------------------------------------------------------------------------------------------


def scene(size=(16, 16)):
    """Two things on two stuffs in 16 x 16 pixels; on a grid of 4 a patch is 4 x 4 pixels."""
    things = [
        dict(cls=CLASSES[0], colour="red", pattern="plain", size="large", box=[0, 0, 8, 4]),
        dict(cls=CLASSES[3], colour="blue", pattern="striped", size="small", box=[8, 4, 10, 6]),
    ]
    masks = np.zeros((4, *size), bool)
    masks[0, 0:4, 0:8] = True  # two patches, whole
    masks[1, 4:6, 8:11] = True  # six of sixteen pixels of one patch: 0.375
    masks[1, 4:5, 12:16] = True  # four of sixteen of the next: too few
    masks[2, 0:8] = True
    masks[3, 8:] = True
    masks[2:] &= ~masks[:2].any(0)
    extras = dict(things=things, thing_masks=masks[:2], stuff=[STUFF[0], STUFF[2]], stuff_masks=masks[2:])
    return Sample(np.zeros((*size, 3), np.uint8), [], "hand", extras=extras)


def test_every_patch_is_told_what_covers_it():
    labels = dense_labels([scene()], 4)
    kind = labels.attributes["kind"][0]
    a, b, top, ground = (KINDS.index(k) for k in (CLASSES[0], CLASSES[3], STUFF[0], STUFF[2]))
    assert kind.tolist() == [[a, a, top, top], [top, top, b, top], [ground] * 4, [ground] * 4]
    for name, first, second in (("colour", "red", "blue"), ("pattern", "plain", "striped"), ("size", "large", "small")):
        i, j, no = ATTRIBUTES[name].index(first), ATTRIBUTES[name].index(second), IGNORE
        assert labels.attributes[name][0].tolist() == [[i, i, no, no], [no, no, j, no], [no] * 4, [no] * 4]
    assert labels.has_box[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 2]]
    torch.testing.assert_close(labels.boxes[0, 0, 1], torch.tensor([0, 0, 0.5, 0.25]))
    torch.testing.assert_close(labels.boxes[0, 1, 2], torch.tensor([0.5, 0.25, 0.625, 0.375]))


def test_padding_has_no_label_and_boxes_are_fractions_of_the_square():
    whole, flat = scene(), scene()
    flat.image = flat.image[:8]
    for key in ("thing_masks", "stuff_masks"):
        flat.extras[key] = flat.extras[key][:, :8]
    labels = dense_labels([whole, flat], 4)
    for name in ATTRIBUTES:
        assert torch.equal(labels.attributes[name][1, :2], labels.attributes[name][0, :2])
        assert (labels.attributes[name][1, 2:] == IGNORE).all()
    torch.testing.assert_close(labels.boxes[1, 0, 0], labels.boxes[0, 0, 0])
    assert labels.to("cpu").has_box.shape == (2, 4, 4)


def test_dense_losses_are_means_over_patches_summed_over_images():
    heads, labels = DenseHeads(8), dense_labels([scene(), scene()], 4)
    labels.attributes["colour"][1] = IGNORE  # nothing to learn from the second image
    with torch.no_grad():
        for p in (*heads.heads.parameters(), *heads.box.parameters()):
            p.zero_()
    with torch.no_grad():
        losses = heads(torch.randn(2, 16, 8), labels)
    for name, values in ATTRIBUTES.items():
        assert float(losses[name]) == pytest.approx((1 if name == "colour" else 2) * math.log(len(values)), rel=1e-5)
    boxes = labels.boxes[0][labels.has_box[0]]
    assert float(losses["box"]) == pytest.approx(2 * float((0.5 - boxes).abs().sum(1).mean()), rel=1e-5)
    nothing = DenseLabels({k: torch.full_like(v, IGNORE) for k, v in labels.attributes.items()}, labels.boxes * 0,
                          torch.zeros_like(labels.has_box))  # fmt: skip
    assert all(float(loss.detach()) == 0 for loss in heads(torch.randn(2, 16, 8), nothing).values())


def test_dense_heads_learn_and_tell_their_accuracy():
    torch.manual_seed(0)
    heads, labels, tokens = DenseHeads(32), dense_labels([scene()], 4), torch.randn(1, 16, 32)
    optimizer = torch.optim.Adam(heads.parameters(), 0.05)
    before = heads.accuracy(tokens, labels)
    for _ in range(40):
        optimizer.zero_grad()
        sum(heads(tokens, labels).values()).backward()
        optimizer.step()
    after = heads.accuracy(tokens, labels)
    assert set(after) == set(ATTRIBUTES) and all(value == 1 for value in after.values())
    assert before["kind"] < 0.5


def named(labels: DenseLabels, name: str) -> list:
    """The attribute of each single label in words; None where nothing is said."""
    index = labels.attributes[name].flatten().tolist()
    return [None if i == IGNORE else ATTRIBUTES[name][i] for i in index]


def test_a_box_is_labeled_as_the_thing_it_fits_best():
    boxes = torch.tensor([[8, 4, 11, 6], [0, 0, 8, 5.0]]) / 16
    labels = region_labels([scene(), scene(), scene()], [boxes, None, boxes[:1]])
    assert named(labels, "kind") == [CLASSES[3], CLASSES[0], CLASSES[3]]
    assert named(labels, "size") == ["small", "large", "small"]
    assert labels.has_box.all() and labels.boxes.shape == (3, 1, 1, 4)
    torch.testing.assert_close(labels.boxes[:, 0, 0], torch.cat([boxes, boxes[:1]]))
    nothing = region_labels([scene()], [None])
    assert len(nothing.boxes) == 0 and nothing.attributes["kind"].shape == (0, 1, 1)


def test_a_mask_is_labeled_with_what_all_of_it_shares():
    sample = scene()
    sample.extras["things"][1]["size"] = "large"
    masks = sample.extras["thing_masks"]
    both = masks.any(0, keepdims=True)
    given = torch.from_numpy(np.concatenate([masks, both, sample.extras["stuff_masks"][:1]]))
    labels = mask_labels([sample, sample], [given, given[:0]])
    assert named(labels, "kind") == [CLASSES[0], CLASSES[3], None, STUFF[0]]
    assert named(labels, "colour") == ["red", "blue", None, None]
    assert named(labels, "size") == ["large", "large", "large", None]
    torch.testing.assert_close(labels.boxes[:, 0, 0], mask_boxes(given) / 16)


# --- joint -----------------------------------------------------------------------------------------------------------


def test_boxes_of_masks():
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 9, 13), bool)
    expected = np.zeros((6, 4))
    for k in range(5):
        x0, y0 = rng.integers(0, 12), rng.integers(0, 8)
        x1, y1 = rng.integers(x0 + 1, 14), rng.integers(y0 + 1, 10)
        masks[k, y0, x0] = masks[k, y1 - 1, x1 - 1] = True
        expected[k] = x0, y0, x1, y1
    np.testing.assert_array_equal(mask_boxes(torch.from_numpy(masks)).numpy(), expected)
    assert mask_boxes(torch.zeros(0, 5, 5, dtype=torch.bool)).shape == (0, 4)


def split(batch):
    counts = {name: batch.pop(key) for name, key in COUNTS.items() if key in batch}
    return batch, counts


def test_joint_batch_holds_what_the_aids_need(processor, samples):
    batch, counts = split(JointCollate(processor)(samples))
    assert counts["masks"] == len(batch["seg_boxes"]) == sum(len(m) for m in batch["masks"]) > 0
    assert counts["images"] == 3 and set(counts) == set(COUNTS)
    at = 0
    for masks in batch["masks"]:
        side = max(masks.shape[-2:])
        for mask in masks:
            x0, y0, x1, y1 = (batch["seg_boxes"][at] * side).round().long().tolist()
            assert mask[y0:y1, x0:x1].sum() == mask.sum() and mask[y0].any() and mask[:, x1 - 1].any()
            at += 1


def test_joint_loss_reaches_every_part(glamm, processor, samples):
    stage = JointTraining(glamm).train()
    batch, counts = split(JointCollate(processor)(samples))
    assert any(b is not None for b in batch["boxes"])
    out = stage(**batch, normalizers=counts)
    assert torch.isfinite(out.loss)
    assert {"ce", "mask_bce", "mask_dice", "dense", "regions", "box", "point"} <= set(out.losses)
    out.loss.backward()
    untouched = {n for n, p in stage.named_parameters() if p.grad is None or not p.grad.abs().any()}
    # What GLaMM never asks for: quality, more than one proposal, points, boxes and masks as prompts; and of the
    # encoder what lies behind the layer that is read.
    unused = ("iou_prediction_head", "output_hypernetworks_mlps.1", "output_hypernetworks_mlps.2",
              "output_hypernetworks_mlps.3", "point_embeddings", "not_a_point_embed", "mask_downscaling",
              "post_layernorm", "layers.3.", "k_proj.bias")  # fmt: skip
    assert [n for n in sorted(untouched) if not any(u in n for u in unused)] == []
    aids = {name: getattr(stage, name) for name in ("heads", "region_heads", "box", "point")}
    for name, part in [*glamm.named_children(), *aids.items()]:
        assert any(p.grad is not None and p.grad.abs().any() for p in part.parameters()), name


def test_micro_batches_add_up_to_the_whole_batch(glamm, processor, samples):
    stage, collate = JointTraining(glamm), JointCollate(processor)
    batch, totals = split(collate(samples))
    whole = stage(**batch, normalizers=totals)
    plain = stage(**split(collate(samples))[0])  # without totals the batch's own counts are taken
    torch.testing.assert_close(plain.loss, whole.loss)
    whole.loss.backward()
    gradient = {n: p.grad.clone() for n, p in stage.named_parameters() if p.grad is not None}
    stage.zero_grad()
    parts = [stage(**split(collate(s))[0], normalizers=totals) for s in (samples[:1], samples[1:])]
    sum(p.loss for p in parts).backward()
    for name in ("ce", "mask_bce", "mask_dice", "dense", "regions", "box", "point"):
        torch.testing.assert_close(sum(p.losses[name] for p in parts), whole.losses[name], atol=1e-5, rtol=1e-4)
    for name, p in stage.named_parameters():
        if name in gradient:
            torch.testing.assert_close(p.grad, gradient[name], atol=1e-4, rtol=1e-3)


def test_a_batch_without_masks_still_touches_the_decoder(glamm, processor):
    data = StorybookDataset("train", size=3, long_side=32, mixture={"caption": 1})
    stage = JointTraining(glamm).train()
    batch, counts = split(JointCollate(processor)([data[0], data[1]]))
    assert counts["masks"] == 0
    out = stage(**batch, normalizers=counts | {"masks": 7})
    assert torch.isfinite(out.loss) and "box" not in out.losses
    out.loss.backward()
    decoder = glamm.pixel_decoder.mask_decoder.transformer
    assert all(p.grad is not None and not p.grad.any() for p in decoder.parameters())
