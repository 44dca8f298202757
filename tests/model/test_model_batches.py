"""One batch against its parts: packing, several conversations an image, mixed rows, losses over micro-batches."""

import pytest
import torch
from small_models import BBOX, answer_labels, box_set, images, padded, row, small_model, truths

FIRST = 5  # supervised from here on: behind the image and one word


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return small_model()


def run(model, ids, mask, batch, counts=None, **kwargs):
    masks = truths(counts, batch["original"]) if counts else None
    with torch.no_grad():
        return model(ids, mask, answer_labels(ids, mask, FIRST), **batch, masks=masks, return_logits=True, **kwargs)


def conversations():
    """Three conversations about two images, with their rows' images."""
    return [row(5, 6, "seg", 7), row(8, 9, 10, "seg", "seg"), row(11, 12, "seg", 2)], [0, 0, 1]


def test_packed_conversations_equal_separate_rows(model):
    rows, which = conversations()
    batch = images(2)
    ids, mask = padded(rows)
    separate = run(model, ids, mask, batch, [3, 1], image_index=torch.tensor(which))

    packed_rows = [torch.cat([rows[0], rows[1][4:]]), rows[2]]
    segments, _ = padded([torch.tensor([0] * 4 + [1] * 4 + [2] * 5), torch.tensor([0] * 4 + [1] * 4)])
    ids, mask = padded(packed_rows)
    labels = answer_labels(ids, mask, FIRST)
    labels[0, 8] = -100  # the first word of the second conversation is a question too
    with torch.no_grad():
        packed = model(
            ids,
            mask,
            labels,
            **batch,
            masks=truths([3, 1], batch["original"]),
            segment_ids=segments,
            return_logits=True,
        )
    torch.testing.assert_close(packed.loss, separate.loss, atol=1e-5, rtol=0)
    for name, value in separate.losses.items():
        torch.testing.assert_close(packed.losses[name], value, atol=1e-5, rtol=0)
    for a, b in zip(packed.mask_logits, separate.mask_logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    p = model.config.image_tokens - 1
    first, second = separate.last_hidden[0], separate.last_hidden[1]
    torch.testing.assert_close(packed.last_hidden[0, : p + 8], first[: p + 8], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.last_hidden[0, p + 8 : p + 13], second[p + 4 : p + 9], atol=1e-5, rtol=0)


def test_packing_a_single_conversation_changes_nothing(model):
    ids, mask = padded([row(5, 6, "seg"), row(7, 8, 9, 10, "seg")])
    segments, _ = padded([torch.tensor([0] * 4 + [1] * 3), torch.tensor([0] * 4 + [1] * 5)])
    plain = run(model, ids, mask, images(2), [1, 1])
    packed = run(model, ids, mask, images(2), [1, 1], segment_ids=segments)
    torch.testing.assert_close(packed.loss, plain.loss, atol=1e-5, rtol=0)


def test_several_conversations_of_one_image(model):
    rows, which = conversations()
    batch = images(2)
    ids, mask = padded(rows)
    together = run(model, ids, mask, batch, [3, 1], image_index=torch.tensor(which))
    assert [m.shape for m in together.mask_logits] == [(3, 40, 25), (1, 30, 40)]
    alone = []
    for r, image in zip(rows, which, strict=True):
        one = {name: value[image : image + 1] for name, value in batch.items()}
        with torch.no_grad():
            alone.append(model(r[None], **one).mask_logits[0])
    torch.testing.assert_close(together.mask_logits[0], torch.cat(alone[:2]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.mask_logits[1], alone[2], atol=1e-5, rtol=1e-5)


def test_rows_without_masks_boxes_or_image_share_a_batch(model):
    """Each row's states are what they are when the row is alone."""
    rows = [row(5, "bbox", 6, "seg"), row(7, 8, 9), row(10, 11, 12, 13, 14, image=False), row(5, "seg", 6, "seg")]
    which, boxes = [0, 1, -1, 2], [box_set(1), None, None, torch.zeros(0, 4)]
    batch = images(3)
    ids, mask = padded(rows)
    together = run(model, ids, mask, batch, [1, 0, 2], image_index=torch.tensor(which), boxes=boxes)
    assert [len(m) for m in together.mask_logits] == [1, 0, 2]
    assert torch.isfinite(together.loss)
    for i, r in enumerate(rows):
        one = {} if which[i] < 0 else {name: value[which[i] : which[i] + 1] for name, value in batch.items()}
        with torch.no_grad():
            alone = model(r[None], **one, boxes=[boxes[i]]).last_hidden[0]
        torch.testing.assert_close(together.last_hidden[i, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_a_row_that_was_given_no_boxes_keeps_the_plain_token(model):
    ids = row(5, "bbox", 6)[None]
    features = model.encode_images(images(1)["global_images"])
    spliced = model.splice(ids, features=features)
    at = (spliced.ids == BBOX).nonzero()[0, 1]
    assert torch.equal(spliced.embeds[0, at], model.get_input_embeddings().weight[BBOX])


@pytest.mark.parametrize("lengths", [(2, 1), (1, 2), (1, 1, 1)])
def test_micro_batches_sum_to_one_big_batch(model, lengths):
    """`fixed` losses: with the whole step's counts as normalizers, how the batch is cut does not matter."""
    rows = [row(5, 6, "seg", 7, 8), row(9, "bbox", "seg", "seg"), row(11, 12)]
    batch, boxes, counts = images(3), [None, box_set(1), None], [1, 2, 0]
    masks = truths(counts, batch["original"])
    ids, mask = padded(rows)
    labels = answer_labels(ids, mask, FIRST)
    total = {"tokens": float((labels[:, 1:] != -100).sum()), "masks": float(sum(counts))}
    model.train()
    big, big_grads = _loss_and_gradients(model, [dict(rows=slice(0, 3))], ids, mask, labels, batch, boxes, masks, None)
    ends = torch.tensor((0, *lengths)).cumsum(0).tolist()
    cuts = [dict(rows=slice(a, b)) for a, b in zip(ends, ends[1:], strict=False)]
    parts, grads = _loss_and_gradients(model, cuts, ids, mask, labels, batch, boxes, masks, total)
    model.eval()
    torch.testing.assert_close(parts, big, atol=1e-5, rtol=0)
    assert set(grads) == set(big_grads)
    for name, gradient in big_grads.items():
        torch.testing.assert_close(grads[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def _loss_and_gradients(model, cuts, ids, mask, labels, batch, boxes, masks, normalizers):
    model.zero_grad()
    total = 0.0
    for cut in cuts:
        part = cut["rows"]
        images_of = {name: value[part] for name, value in batch.items()}
        out = model(
            ids[part],
            mask[part],
            labels[part],
            **images_of,
            boxes=boxes[part],
            masks=masks[part],
            normalizers=normalizers,
        )
        out.loss.backward()
        total = total + out.loss.detach()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_official_losses_depend_on_the_cut(model):
    """Without shared normalizers each micro-batch averages for itself, which is another number."""
    rows = [row(5, 6, "seg", 7, 8, 9, 10), row(9, 11)]
    batch = images(2)
    masks = truths([1, 0], batch["original"])
    ids, mask = padded(rows)
    labels = answer_labels(ids, mask, FIRST)
    model.train()
    big, _ = _loss_and_gradients(model, [dict(rows=slice(0, 2))], ids, mask, labels, batch, [None] * 2, masks, None)
    cuts = [dict(rows=slice(0, 1)), dict(rows=slice(1, 2))]
    parts, _ = _loss_and_gradients(model, cuts, ids, mask, labels, batch, [None] * 2, masks, None)
    model.eval()
    assert abs(float(parts / 2 - big)) > 1e-3


@pytest.mark.parametrize("grounded", [True, False])
def test_batch_without_masks_touches_the_decoder(model, grounded):
    """The parameters that get a gradient are the same with and without masks, with gradients of zero without."""
    decoder = ("pixel_decoder.", "lp_projector.")

    def gradients(ids, **kwargs):
        model.train()
        model.zero_grad()
        model(ids, labels=answer_labels(ids, ids != 0, FIRST), **kwargs).loss.backward()
        model.eval()
        return {n: p.grad for n, p in model.named_parameters() if n.startswith(decoder) and p.grad is not None}

    batch = images(1)
    with_masks = gradients(row(5, 6, "seg")[None], **batch, masks=truths([1], batch["original"]))
    if not grounded:
        batch = dict(global_images=batch["global_images"])
    without = gradients(row(5, 6, 7)[None], **batch)
    assert set(without) == set(with_masks) and with_masks
    assert all(float(g.abs().max()) == 0 for g in without.values())
    assert any(float(g.abs().max()) > 0 for g in with_masks.values())
