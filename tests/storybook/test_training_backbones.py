"""The backbones' own training: the code they share, prompts against the library, losses that add up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from glamm_mini.data.sample import Sample
from glamm_mini.storybook.language.vocabulary import CLASSES, STUFF
from glamm_mini.storybook.pretrain.code_book import CodeBook
from glamm_mini.storybook.pretrain.dense_labels import ATTRIBUTES, IGNORE, KINDS, DenseLabels, dense_labels
from glamm_mini.storybook.pretrain.encoder_stage import EncoderTraining, collate_encoder
from glamm_mini.storybook.pretrain.language_stage import LanguageCollate, LanguageTraining
from glamm_mini.storybook.pretrain.segmenter_stage import CODED, SegmenterTraining, _targets, collate_segmenter

# --- the code --------------------------------------------------------------------------------------------------------


def labels_of(kinds, colours, boxes=None):
    """Single labels (N, 1, 1) that state a kind, a colour and perhaps a box."""
    n = len(kinds)
    attributes = {name: torch.full((n, 1, 1), IGNORE) for name in ATTRIBUTES}
    attributes["kind"][:, 0, 0] = torch.tensor(kinds)
    attributes["colour"][:, 0, 0] = torch.tensor(colours)
    has = torch.full((n, 1, 1), boxes is not None)
    return DenseLabels(attributes, torch.zeros(n, 1, 1, 4) if boxes is None else boxes.reshape(n, 1, 1, 4), has)


def test_a_code_is_the_sum_of_what_is_said_and_zero_for_nothing():
    book = CodeBook(64)
    said = book(labels_of([3, 3, IGNORE, IGNORE], [IGNORE, 2, 2, IGNORE]))[:, 0]
    torch.testing.assert_close(said[1], said[0] + said[2])
    assert not said[3].any()
    boxed = book(labels_of([IGNORE], [IGNORE], torch.tensor([[0.1, 0.2, 0.5, 0.9]])))[0, 0]
    assert float(boxed.square().mean().sqrt()) == pytest.approx(book.scale, rel=0.5)
    only_kind = CodeBook(64, names=("kind",))(labels_of([IGNORE], [2]))
    assert not only_kind.any()


def test_codes_can_be_told_apart_and_are_the_same_everywhere():
    book = CodeBook(160)
    kinds = book(labels_of(list(range(len(KINDS))), [IGNORE] * len(KINDS)))[:, 0]
    likeness = F.normalize(kinds, dim=1) @ F.normalize(kinds, dim=1).T
    assert float((likeness - torch.eye(len(KINDS))).abs().max()) < 0.4
    assert torch.equal(kinds, CodeBook(160)(labels_of(list(range(len(KINDS))), [IGNORE] * len(KINDS)))[:, 0])
    assert not list(book.parameters()) and not book.state_dict()  # nothing to train, nothing to store


def test_boxes_that_differ_have_codes_that_differ_more_the_further_apart():
    book, base = CodeBook(160), torch.tensor([0.2, 0.3, 0.6, 0.7])
    boxes = torch.stack([base, base + 0.02, base + 0.1, base + 0.3])
    code = book(labels_of([IGNORE] * 4, [IGNORE] * 4, boxes))[:, 0]
    apart = (code - code[0]).norm(dim=1)
    assert apart[0] == 0 and (apart.diff() > 0).all()


def test_places_of_a_grid_are_coded():
    labels = labels_of([IGNORE] * 9, [IGNORE] * 9)
    grid = DenseLabels({k: v.reshape(1, 3, 3) for k, v in labels.attributes.items()},
                       labels.boxes.reshape(1, 3, 3, 4), labels.has_box.reshape(1, 3, 3))  # fmt: skip
    places = CodeBook(32, grid=3)(grid)[0]
    assert places.shape == (9, 32)
    assert (torch.cdist(places, places) + 10 * torch.eye(9)).min() > 0.1


# --- the encoder -----------------------------------------------------------------------------------------------------


def test_encoder_stage_trains_encoder_projector_and_region_encoder(glamm, processor, samples):
    stage, batch = EncoderTraining(glamm), collate_encoder(samples, processor)
    visible = [t for s in samples for t in s.extras["things"] if t["visible"]]
    assert sum(len(b) for b in batch["boxes"]) == len(visible) == len(batch["regions"].boxes)
    assert batch["regions"].attributes["kind"].flatten().tolist() == [KINDS.index(t["cls"]) for t in visible]
    out = stage(**batch)
    assert set(out.losses) == {*ATTRIBUTES, "box", "code", "regions"}
    assert float(out.loss.detach()) == pytest.approx(sum(float(v.detach()) for v in out.losses.values()), rel=1e-5)
    out.loss.backward()
    for part in (stage.heads, stage.region_heads, stage.vl_projector, stage.region_encoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_the_projectors_loss_is_none_where_it_writes_the_code(glamm, processor, samples, monkeypatch):
    stage, batch = EncoderTraining(glamm), collate_encoder(samples, processor)
    monkeypatch.setattr(stage.vl_projector, "forward", lambda tokens: stage.picture_code(batch["dense"]))
    assert float(stage(**batch).losses["code"].detach()) == pytest.approx(0, abs=1e-9)
    monkeypatch.setattr(stage.vl_projector, "forward", lambda tokens: stage.picture_code(batch["dense"]) + 0.25)
    assert float(stage(**batch).losses["code"].detach()) == pytest.approx(1, rel=1e-4)


# --- the segmenter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (20, 64)])
def test_prompts_are_codes_points_inside_and_boxes_around_their_masks(processor, size):
    rng = np.random.default_rng(0)
    masks = np.zeros((9, *size), bool)
    for k in range(8):  # the ninth stays empty and is never asked for
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        masks[k, y : y + 8, x : x + 8] = True
        masks[k, y + 4 :, x + 4 :] = False
    things = [dict(cls=CLASSES[k], colour="red", pattern="plain", size="small", box=[0, 0, 1, 1]) for k in range(4)]
    extras = {"things": things, "thing_masks": masks[:4], "stuff": list(STUFF[:5]), "stuff_masks": masks[4:]}
    data = [Sample(np.zeros((*size, 3), np.uint8), [], f"hand {k}", extras=extras) for k in range(6)]
    batch = collate_segmenter(data, processor)
    assert batch["image_of_mask"].tolist() == [k for k in range(6) for _ in range(6)]
    side, small = processor.config.grounding.image_size, 4 * processor.config.grounding.grid
    assert batch["masks"].shape == (36, small, small) and batch["masks"].max() <= 1
    found = []
    for points, labels, mask in zip(batch["points"], batch["labels"].tolist(), batch["masks"], strict=True):
        assert mask.sum() > 0
        found.append(tuple(labels))
        at = (points * small / side).numpy()  # on the decoder's map
        ys, xs = np.nonzero(mask.numpy())
        if labels == [1, -1]:
            assert mask[int(at[0, 1]), int(at[0, 0])] > 0
        elif labels == [2, 3]:
            extent = np.array([xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()])
            assert (np.abs(at[0] - [xs.min(), ys.min()]) <= 0.1 * extent + 1).all()
            assert (np.abs(at[1] - [xs.max() + 1, ys.max() + 1]) <= 0.1 * extent + 1).all()
    assert set(found) == {(1, -1), (2, 3), (-1, -1)} and found.count((-1, -1)) == 6 * CODED
    again = collate_segmenter(data, processor)
    assert torch.equal(again["points"], batch["points"])


def test_things_of_one_class_are_asked_for_together_too():
    masks = np.zeros((3, 32, 32), bool)
    for k in range(3):
        masks[k, 8 * k : 8 * k + 6, 4:20] = True
    things = [{"cls": CLASSES[0]}, {"cls": CLASSES[1]}, {"cls": CLASSES[0]}]
    extras = {"things": things, "thing_masks": masks, "stuff_masks": np.zeros((1, 32, 32), bool)}
    targets = _targets(Sample(np.zeros((32, 32, 3), np.uint8), [], "hand", extras=extras), np.random.default_rng(0))
    assert {m.tobytes() for m in targets} == {m.tobytes() for m in (*masks, masks[[0, 2]].any(0))}


def test_classes_are_asked_for_in_the_order_of_their_things():
    """That of a set of words changes from process to process, and a run that is resumed with it."""
    masks = np.eye(16, dtype=bool).reshape(16, 4, 4)
    things = [{"cls": CLASSES[k % 8]} for k in range(16)]
    extras = {"things": things, "thing_masks": masks, "stuff_masks": np.zeros((0, 4, 4), bool)}
    rng = SimpleNamespace(permutation=np.arange)
    targets = _targets(Sample(np.zeros((4, 4, 3), np.uint8), [], "hand", extras=extras), rng)
    assert np.array_equal(targets, [*masks, *(masks[k] | masks[k + 8] for k in range(8))])


def test_points_and_boxes_are_embedded_as_the_library_does_and_codes_alone(glamm):
    stage, seen = SegmenterTraining(glamm), []
    stage.pixel_decoder.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    library, embeddings = stage.pixel_decoder.prompt_encoder, torch.randn(1, 16, 4, 4)
    index, coded = torch.zeros(3, dtype=torch.long), labels_of([0, 1, 2], [0, 1, 2])
    points = torch.rand(3, 2, 2) * 31
    points[:, 1] = 0
    with torch.no_grad():
        for label in (0, 1):
            labels = torch.tensor([[label, -1]] * 3)
            stage.predict(embeddings, points, labels, index, coded)
            expected, _ = library((points[:, :1], labels[:, :1]), None, None)
            torch.testing.assert_close(seen.pop(), expected, atol=1e-6, rtol=1e-6)
        boxes = torch.rand(3, 2, 2) * 31
        boxed = stage.predict(embeddings, boxes, torch.tensor([[2, 3]] * 3), index, coded)
        expected, _ = library(None, boxes.flatten(1), None)
        torch.testing.assert_close(seen.pop(), expected, atol=1e-6, rtol=1e-6)
        code = stage.predict(embeddings, boxes, torch.tensor([[-1, -1]] * 3), index, coded)
        torch.testing.assert_close(seen.pop(), stage.prompt_code(coded))
        mixed = stage.predict(embeddings, boxes, torch.tensor([[2, 3], [-1, -1], [2, 3]]), index, coded)
    torch.testing.assert_close(mixed, torch.stack([boxed[0], code[1], boxed[2]]), atol=1e-5, rtol=1e-5)


def test_every_pixel_is_told_what_it_shows(processor, samples):
    batch = collate_segmenter(samples, processor)
    side = processor.config.grounding.image_size
    for sample, kinds in zip(samples, batch["kinds"], strict=True):
        h, w = sample.image.shape[:2]
        names = [*(t["cls"] for t in sample.extras["things"]), *sample.extras["stuff"]]
        masks = np.concatenate([sample.extras["thing_masks"], sample.extras["stuff_masks"]])
        assert (h, w) == (side, side) or (kinds == IGNORE).any()
        fine = len(kinds)
        for y, x in ((1, 1), (fine * h // side // 2, fine * w // side // 2)):
            step = side // fine
            block = masks[:, y * step : (y + 1) * step, x * step : (x + 1) * step].sum((1, 2))
            assert KINDS[kinds[y, x]] in {names[k] for k in np.flatnonzero(block == block.max())}


def test_segmenter_loss_rewards_the_right_mask(glamm, processor, samples, monkeypatch):
    stage, batch = SegmenterTraining(glamm), collate_segmenter(samples, processor)
    out = stage(**batch)
    assert torch.isfinite(out.loss) and set(out.losses) == {"balanced", "bce", "dice", "patches", "pixels"}
    out.loss.backward()
    for part in (stage.grounding_encoder, stage.pixel_decoder.mask_decoder.transformer, stage.pixel_head):
        assert all(p.grad is not None for p in part.parameters())
    assert stage.pixel_decoder.prompt_encoder.point_embeddings[3].weight.grad.abs().sum() > 0
    hard = (batch["masks"] > 0.5).float()
    batch["masks"] = hard
    for logits, low, high in ((hard * 40 - 20, 0, 0.01), (20 - hard * 40, 5, math.inf)):
        monkeypatch.setattr(stage, "predict", lambda *_, logits=logits: logits)
        losses = stage(**batch).losses
        assert low <= sum(float(losses[name]) for name in ("balanced", "bce", "dice")) < high


# --- the language model ----------------------------------------------------------------------------------------------


def test_the_language_model_reads_codes_in_place_of_the_picture(glamm, processor, samples, monkeypatch):
    monkeypatch.setattr("glamm_mini.storybook.pretrain.language_stage.NOISE", 0.0)
    stage, batch = LanguageTraining(glamm), LanguageCollate(processor)(samples)
    assert any(b is not None for b in batch["boxes"]) and len(batch["prompts"].boxes) == len(batch["seg_boxes"]) > 0
    out = stage(**batch)
    assert set(out.losses) == {"ce", "box", "point", "prompt"} and torch.isfinite(out.loss)
    out.loss.backward()
    for part in (stage.language_model, stage.lp_projector, stage.box, stage.point):
        assert any(p.grad is not None and p.grad.abs().any() for p in part.parameters())
    # GLaMM itself, whose encoders write exactly the code, has the same loss.
    glamm.vl_projector.forward = lambda tokens: stage.picture_code(dense_labels(samples, 3))
    glamm.region_encoder.forward = lambda levels, boxes: stage.region_code(batch["regions"])[:, 0]
    images = processor.images([s.image for s in samples])["global_images"]
    names = ("input_ids", "attention_mask", "labels", "segment_ids", "image_index", "boxes")
    with torch.no_grad():
        whole = glamm(global_images=images, **{name: batch[name] for name in names})
    torch.testing.assert_close(out.losses["ce"].detach(), whole.losses["ce"], atol=1e-5, rtol=1e-5)


def test_noise_on_the_codes_is_drawn_anew(glamm, processor, samples):
    stage, batch = LanguageTraining(glamm), LanguageCollate(processor)(samples)
    with torch.no_grad():
        assert float(stage(**batch).losses["ce"]) != float(stage(**batch).losses["ce"])
