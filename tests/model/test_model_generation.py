"""Generation with a key-value cache against a loop that computes the whole sequence anew at every step."""

import warnings

import pytest
import torch
from small_models import BBOX, SEG, box_set, images, padded, row, small_model
from transformers import LogitsProcessor

from glamm_mini.model.splice import language_states

FORCED = (1, 4)
NEW = 7


class ForceSeg(LogitsProcessor):
    """Makes [SEG] the best token at chosen steps."""

    def __init__(self):
        self.step = 0

    def __call__(self, input_ids, scores):
        if self.step in FORCED:
            scores = scores.clone()
            scores[:, SEG] += 1e4
        self.step += 1
        return scores


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return small_model()


def uncached(model, prompt, image, boxes):
    """Greedy answer, its masks, and the length fed at each step: the whole sequence, every time."""
    ids, lengths = prompt[None], []
    for step in range(NEW):
        with torch.no_grad():
            features = model.encode_images(image["global_images"], image["grounding_images"]) if image else None
            spliced = model.splice(ids, None, None, features, None, boxes)
            logits = model.language_model.lm_head(language_states(model.language_model, spliced)[:, -1])
        lengths.append(spliced.embeds.shape[1])
        if step in FORCED:
            logits[:, SEG] += 1e4
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    if image is None:
        return ids[0, len(prompt) :], None, lengths
    with torch.no_grad():
        return ids[0, len(prompt) :], model(ids, **image, boxes=boxes).mask_logits[0], lengths


def one_image(batch, i):
    return {name: value[i : i + 1] for name, value in batch.items()}


def fed_lengths(model, run):
    fed = []

    def note(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        fed.append((kwargs["input_ids"] if given is None else given).shape[1])

    hook = model.language_model.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        return run(), fed
    finally:
        hook.remove()


def generate(model, *args, **kwargs):
    return model.generate(*args, **kwargs, max_new_tokens=NEW, logits_processor=[ForceSeg()], eos_token_id=None)


@pytest.mark.parametrize("with_boxes", [False, True])
@pytest.mark.parametrize("seg_state", ["before", "at"])
def test_cached_equals_uncached(with_boxes, seg_state):
    model = small_model(seg_state=seg_state)
    image = images(1)
    prompt = row(5, *["bbox", 7, "bbox"] * with_boxes, 9)
    boxes = [box_set(2)] if with_boxes else None
    ids, masks, whole = uncached(model, prompt, image, boxes)
    got, fed = fed_lengths(model, lambda: generate(model, prompt[None], **image, boxes=boxes))
    length = len(prompt) + model.config.image_tokens - 1
    assert whole == list(range(length, length + NEW))
    assert fed == [length] + [1] * (NEW - 1)
    assert torch.equal(got.sequences[0], ids)
    steps = (ids == SEG).nonzero().flatten().tolist()
    assert got.seg_steps[0].tolist() == steps
    assert got.mask_logits[0].shape == masks.shape and len(masks) >= len(FORCED)
    torch.testing.assert_close(got.mask_logits[0], masks, atol=1e-4, rtol=0)


def test_batch_with_left_padding_equals_single_rows(model):
    batch = images(3)
    prompts = [row(5, "bbox", 9), row(7, 8, 9, 10, 11), row(12, 13, image=False), row(5, "bbox", "bbox", 6)]
    which = [0, 1, -1, 1]
    boxes = [box_set(1), None, None, box_set(2)]
    ids, mask = padded(prompts, left=True)
    got, fed = fed_lengths(
        model, lambda: generate(model, ids, mask, **batch, image_index=torch.tensor(which), boxes=boxes)
    )
    assert fed[1:] == [1] * (NEW - 1)
    for i, prompt in enumerate(prompts):
        image = one_image(batch, which[i]) if which[i] >= 0 else None
        words, masks, _ = uncached(model, prompt, image, [boxes[i]])
        assert torch.equal(got.sequences[i], words), f"row {i}"
        if image is not None:
            torch.testing.assert_close(got.mask_logits[i], masks, atol=1e-4, rtol=0)


def test_right_padded_prompts_are_put_right(model):
    batch = images(2)
    prompts = [row(5, 9), row(7, 8, 9, 10)]
    left, right = padded(prompts, left=True), padded(prompts)
    a, b = generate(model, *left, **batch), generate(model, *right, **batch)
    assert torch.equal(a.sequences, b.sequences)
    for x, y in zip(a.mask_logits, b.mask_logits, strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=0)


def test_row_that_ends_early_gets_no_masks_from_padding(model):
    """One row ends at once, the other goes on with [SEG]s."""

    class EndFirstRow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[0, model.config.text.eos_token_id] += 1e5
            scores[1, SEG] += 1e5
            return scores

    ids, mask = padded([row(5, 9), row(7, 8)], left=True)
    got = model.generate(ids, mask, **images(2), max_new_tokens=4, logits_processor=[EndFirstRow()])
    assert got.sequences[0].tolist() == [2, 0, 0, 0]
    assert got.sequences[1].tolist() == [SEG] * 4
    assert [len(m) for m in got.mask_logits] == [0, 4]
    assert got.mask_logits[0].shape[1:] == (40, 25) and got.mask_logits[1].shape[1:] == (30, 40)


def test_images_are_encoded_once_for_all_turns_and_masks(model):
    calls = {"global": 0, "grounding": 0}

    def count(name):
        def hook(module, args):
            calls[name] += len(args[0])

        return hook

    hooks = [
        model.global_encoder.register_forward_pre_hook(count("global")),
        model.grounding_encoder.register_forward_pre_hook(count("grounding")),
    ]
    batch = images(1)
    with torch.no_grad():
        features = model.encode_images(batch["global_images"], batch["grounding_images"])
    sizes = dict(resized=batch["resized"], original=batch["original"])
    prompt = row(5, 9)
    for turn in range(3):
        out = generate(model, prompt[None], image_features=features, **sizes)
        assert len(out.mask_logits[0]) >= len(FORCED)
        prompt = torch.cat([prompt, out.sequences[0], torch.tensor([20 + turn])])
    assert calls == {"global": 1, "grounding": 1}
    ids, mask = padded([row(5, "seg"), row(6, "seg", "seg"), row(7)])
    with torch.no_grad():
        model(ids, mask, **images(2), image_index=torch.tensor([0, 0, 1]))
    assert calls == {"global": 3, "grounding": 3}
    for hook in hooks:
        hook.remove()


def test_generation_without_grounding_image_has_no_masks(model):
    out = generate(model, row(5)[None], global_images=images(1)["global_images"])
    assert out.mask_logits is None and len(out.states[0]) >= len(FORCED)


def test_boxes_change_the_answer_state(model):
    prompt = row(5, "bbox", 9)
    assert int((prompt == BBOX).sum()) == 1
    near, far = torch.tensor([[0.0, 0.0, 0.3, 0.3]]), torch.tensor([[0.6, 0.6, 1.0, 1.0]])
    a = generate(model, prompt[None], **images(1), boxes=[near])
    b = generate(model, prompt[None], **images(1), boxes=[far])
    assert float((a.last_hidden - b.last_hidden).abs().max()) > 1e-3


def test_several_questions_about_one_image_encode_it_once(model):
    calls = []
    hooks = [
        encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        for encoder in (model.global_encoder, model.grounding_encoder)
    ]
    prompts = [row(5, 9), row(7, "bbox", 8), row(9, 10, 11)]
    ids, mask = padded(prompts, left=True)
    boxes = [None, box_set(1), None]
    one = torch.zeros(3, dtype=torch.long)
    # The sizes of the one picture are given once, too.
    together = generate(model, ids, mask, **images(1), image_index=one, boxes=boxes)
    assert calls == [1, 1]
    for hook in hooks:
        hook.remove()
    for i, prompt in enumerate(prompts):
        alone = generate(model, prompt[None], **images(1), boxes=[boxes[i]])
        assert torch.equal(together.sequences[i], alone.sequences[0])
        torch.testing.assert_close(together.mask_logits[i], alone.mask_logits[0], atol=1e-4, rtol=0)


def test_all_masks_of_all_rows_are_decoded_in_one_call(model):
    decoded = []
    hook = model.pixel_decoder.mask_decoder.register_forward_hook(lambda module, args, out: decoded.append(len(out[0])))
    out = generate(model, *padded([row(5, 9), row(7, 8)], left=True), **images(2))
    hook.remove()
    assert decoded == [sum(len(masks) for masks in out.low_res)] and decoded[0] >= 2 * len(FORCED)


def test_no_deprecated_argument_is_passed(model):
    """transformers 5.24 calls `past_key_values` `cache`; releases before know the old name only."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, row(5, 9)[None], **images(1))
        model(row(5, "seg")[None], **images(1))


def test_a_model_in_half_precision_generates_finite_masks_of_its_type(model):
    image, prompt = images(1), row(5, "bbox", 9)
    exact = generate(model, prompt[None], **image, boxes=[box_set(1)])
    for dtype, near in ((torch.bfloat16, 0.15), (torch.float16, 0.02)):
        half = small_model().to(dtype)
        own = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in image.items()}
        out = generate(half, prompt[None], **own, boxes=[box_set(1)])
        masks = out.mask_logits[0]
        assert out.last_hidden.dtype == out.states[0].dtype == out.low_res[0].dtype == dtype
        assert masks.dtype == torch.float32 and masks.shape[0] >= len(FORCED) and masks.isfinite().all()
        assert out.sequences[0, 0] == exact.sequences[0, 0]
        away = (out.states[0][0].float() - exact.states[0][0]).norm() / exact.states[0][0].norm()
        assert away < near
