"""Where the official code fails, or quietly does something odd, ours says what is wrong and what to do."""

import pytest
import torch


def _row(case, *kinds):
    """One row of ids of the case, from words: "image", "bbox", "seg", "word"."""
    ids = case.meta["config"]["ids"]
    numbers = {"image": -200, "bbox": ids["bbox"], "seg": ids["seg"], "word": 5}
    return [1] + [numbers[kind] for kind in kinds]


def _splice(case, computed, rows, boxes):
    ids = torch.tensor(rows)
    index = torch.zeros(len(rows), dtype=torch.long)
    return computed.model.splice(ids, None, None, computed.features, index, boxes)


def _boxes(count):
    return torch.tensor([0.1, 0.2, 0.6, 0.7]).repeat(count, 1)


SPLICE_ERRORS = {
    "too_few_boxes": (2, [_boxes(0)], "2 <bbox> in its text but 0 boxes"),
    "one_box_two_tokens": (2, [_boxes(1)], "2 <bbox> in its text but 1 boxes"),
    "flickr_group_2n_bbox_tokens": (4, [_boxes(2)], "4 <bbox> in its text but 2 boxes"),
    "three_rows_two_box_entries": (1, [_boxes(1)] * 2, "boxes has 2 entries for 3 rows"),
}


def test_splice_error(case, computed, splice_error):
    if splice_error not in SPLICE_ERRORS:
        pytest.skip(f"{splice_error} is no failure that can be repeated from its name")
    tokens, boxes, message = SPLICE_ERRORS[splice_error]
    rows = [_row(case, "image", *["bbox"] * tokens, "word")] * (3 if "three_rows" in splice_error else 1)
    with pytest.raises(ValueError, match=message):
        _splice(case, computed, rows, boxes)


def test_surplus_boxes_are_an_error(case, computed):
    """Official: surplus boxes are dropped; test_parity compares what remains."""
    with pytest.raises(ValueError, match="1 <bbox> in its text but 3 boxes"):
        _splice(case, computed, [_row(case, "image", "bbox")], [_boxes(3)])


def test_train_error(case, computed, train_error):
    if train_error != "fewer_gt_than_seg":
        pytest.skip(f"{train_error} is no failure that can be repeated from its name")
    tag = next(tag for tag in case.tags("train") if "seg_positions_in_input_ids" in case.meta["train"][tag])
    batch = computed.batch(tag)
    batch["masks"] = [masks[:-1] for masks in batch["masks"]]
    with pytest.raises(ValueError, match=r"\[SEG\] in its answers but \d+ true masks"), torch.no_grad():
        computed.model(**batch)


def test_generate_error(case, computed, generate_error):
    """The official code cannot use a key-value cache. Ours does: after the prompt each step is fed one token."""
    if generate_error != "with_kv_cache":
        pytest.skip(f"{generate_error} is no failure that can be repeated from its name")
    fed = []
    decoder = computed.model.language_model.model

    def note(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        fed.append((kwargs["input_ids"] if given is None else given).shape[1])

    hook = decoder.register_forward_pre_hook(note, with_kwargs=True)
    row = torch.tensor([_row(case, "image", "word", "word")])
    computed.model.generate(row, global_images=case.global_images[:1], max_new_tokens=4)
    hook.remove()
    assert fed == [row.shape[1] + computed.model.config.image_tokens - 1, 1, 1, 1]
