"""What notebook 07 builds: the whole pass and both ways of decoding are the package's; graders see near misses."""

import textwrap

import numpy as np
import pytest
import torch
from small_models import SEG, SIDE, SQUARE, small_model
from torch.testing import assert_close

import glamm_mini.model
from glamm_mini.course.room_07 import grader as whole
from glamm_mini.course.room_07 import pictures as flow
from glamm_mini.course.room_07.lesson import decode_anew, decode_cached, whole_pass
from glamm_mini.model.losses import cross_entropy_sum, mask_bce_sum, mask_dice_sum
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

IDS = torch.tensor([[1, 5, IMAGE_TOKEN_INDEX, 6, 7, SEG, 8, SEG, 2]])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def pictures():
    torch.manual_seed(1)
    return torch.randn(1, 3, SIDE, SIDE), torch.randn(1, 3, SQUARE, SQUARE)


@pytest.fixture(scope="module")
def features(model, pictures):
    with torch.no_grad():
        return model.encode_images(*pictures)


# ---- what the notebook builds ----


def test_the_whole_pass_is_the_model_s_forward(model, features):
    with torch.no_grad():
        hidden, prompts, low_res = whole_pass(model, IDS, features)
        out = model(IDS, image_features=features)
    assert_close(hidden, out.last_hidden, rtol=1e-5, atol=1e-5)
    assert_close(prompts, out.prompts, rtol=1e-5, atol=1e-5)
    assert_close(low_res, out.low_res, rtol=1e-5, atol=1e-5)
    assert len(prompts) == 2


def test_the_page_of_the_model_says_the_whole_pass(model, pictures, features):
    """What `glamm_mini.model` opens with is code that runs, and the notebook's."""
    page = [line for line in glamm_mini.model.__doc__.splitlines() if line.startswith("    ")]
    names = {"glamm": model, "ids": IDS, "IMAGE": IMAGE_TOKEN_INDEX, "SEG": SEG, "torch": torch}
    names["images"] = dict(zip(("global_images", "grounding_images"), pictures, strict=True))
    with torch.no_grad():
        exec(textwrap.dedent("\n".join(page)), names)
        expected = whole_pass(model, IDS, features)
        logits = model(IDS, image_features=features).logits
    for name, value in zip(("hidden", "prompts", "low_res", "logits"), (*expected, logits), strict=True):
        assert_close(names[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("most", [1, 9])
def test_a_cache_changes_nothing(model, features, most):
    prompt = IDS[:, :5]
    with torch.no_grad():
        embeds = model.splice(prompt, features=features).embeds
    made = model.generate(prompt, image_features=features, max_new_tokens=most)
    for decode in (decode_anew, decode_cached):
        ids, states, seconds = decode(model.language_model, embeds, most, end=2)
        assert ids == made.sequences[0].tolist() and len(seconds) == len(ids)
        assert states.shape[1] == embeds.shape[1] + len(ids) - 1
        assert_close(states, made.last_hidden, rtol=1e-5, atol=1e-5)


def test_decoding_stops_at_the_end(model, features):
    with torch.no_grad():
        embeds = model.splice(IDS[:, :5], features=features).embeds
    first = decode_cached(model.language_model, embeds, 4, end=-1)[0][0]
    for decode in (decode_anew, decode_cached):
        assert decode(model.language_model, embeds, 4, end=first)[0] == [first]


# ---- graders ----


def places(ids, patches):
    at = ids.index(IMAGE_TOKEN_INDEX) if IMAGE_TOKEN_INDEX in ids else len(ids)
    return [k + (patches - 1) * (k > at) for k in range(len(ids))]


def seg_states(steps, new, seg, before=1):
    states = torch.cat(steps, dim=1)[0]
    at = (torch.tensor(new) == seg).nonzero()[:, 0] + steps[0].shape[1] - before
    return states[at.clamp(max=len(states) - 1)]


def glamm_loss(logits, labels, mask_logits, masks, weights, shift=1, count=None, undefined=False):
    target = labels[shift:]
    words = cross_entropy_sum(logits[: len(logits) - shift], target) / (count or (target != IGNORE_INDEX).sum())
    many = len(masks) if undefined else max(len(masks), 1)
    bce = mask_bce_sum(mask_logits, masks) / many
    dice = mask_dice_sum(mask_logits, masks, weights.dice_scale, weights.dice_eps) / many
    return weights.cross_entropy * words + weights.mask_bce * bce + weights.mask_dice * dice


def test_graders_pass_what_is_right():
    assert whole.grade_places(places)
    assert whole.grade_states(seg_states)
    assert whole.grade_loss(glamm_loss)


def off_by_one(ids, patches):
    at = ids.index(IMAGE_TOKEN_INDEX) if IMAGE_TOKEN_INDEX in ids else len(ids)
    return [k + patches * (k > at) for k in range(len(ids))]


def test_the_grader_of_places_sees_the_lost_minus_one():
    grade = whole.grade_places(off_by_one)
    assert not grade and "case 1" in grade.message and "expected [0, 1, 5], got [0, 1, 6]" in grade.message
    grade = whole.grade_places(lambda ids, patches: places(ids[: ids.index(IMAGE_TOKEN_INDEX) + 9], patches))
    assert not grade and "case 2, for [1, 5, 6], 4: stops with ValueError" in grade.message


def test_the_grader_of_states_sees_one_position_too_late():
    grade = whole.grade_states(lambda *given: seg_states(*given, before=0))
    assert not grade and "element [0, 0]" in grade.message
    grade = whole.grade_states(lambda *given: seg_states(*given)[None])
    assert not grade and "shape" in grade.message


def test_the_grader_of_the_loss_sees_a_missing_shift_a_wrong_count_and_an_answer_without_masks():
    for wrong in ({"shift": 0}, {"count": 1}, {"undefined": True}):
        grade = whole.grade_loss(lambda *given, wrong=wrong: glamm_loss(*given, **wrong))
        assert not grade and "the value is" in grade.message


def test_graders_name_an_exercise_that_is_not_written():
    def stub(*given):
        raise NotImplementedError

    for grader in (whole.grade_places, whole.grade_states, whole.grade_loss):
        assert "not written yet" in grader(stub).message


# ---- pictures ----


def test_live_shapes_are_those_of_the_run_and_hooks_go_away(model, pictures):
    with flow.LiveShapes(model) as live, torch.no_grad():
        model(IDS, global_images=pictures[0], grounding_images=pictures[1])
    c = model.config
    tokens = IDS.shape[1] - 1 + c.image_tokens
    assert set(live.shapes) == set(flow.HOOKED)
    assert live.shapes["global encoder"][0] == (1, 3, SIDE, SIDE)
    assert live.shapes["language model"] == ((1, tokens, c.text.hidden_size),) * 2
    assert live.shapes["L-P projector"] == ((2, c.text.hidden_size), (2, c.grounding.prompt_dim))
    assert live.shapes["pixel decoder"] == (
        (2, 1, c.grounding.prompt_dim),
        (2, 4 * c.grounding.grid, 4 * c.grounding.grid),
    )
    live.shapes.clear()
    with torch.no_grad():
        model(IDS, global_images=pictures[0], grounding_images=pictures[1])
    assert not live.shapes, "the hooks are gone"


def test_the_flow_picture_shows_parts_that_ran_in_color(model, pictures):
    from PIL import Image

    with flow.LiveShapes(model) as live, torch.no_grad():
        model(IDS, global_images=pictures[0])
    assert "pixel decoder" not in live.shapes
    blank = Image.new("RGB", (32, 32))
    part = flow.flow_picture(live.shapes, blank, blank, "What?", "A kite. " * 60)
    none = flow.flow_picture({}, blank, blank, "What?", "A kite. " * 60)
    assert part.size == (1600, 900)
    changed = np.abs(np.asarray(part).astype(int) - np.asarray(none)).sum(2) > 0
    assert changed[60:210, 300:600].any() and not changed[700:850, 300:600].any()


def test_a_phrase_is_shown_with_its_prompt_and_mask(model, features):
    torch.manual_seed(2)
    prompts, image = torch.randn(2, model.config.grounding.prompt_dim), np.full((24, 32, 3), 128, np.uint8)
    given = (prompts, features.grounding, model.pixel_decoder, SQUARE, (24, 32))
    draw = flow.SegQueries(image, ["a kite", "a kite"], *given)
    assert draw.names == ["1: a kite", "2: a kite"]
    (first, words), (second, _) = (draw({"phrase": name}) for name in draw.names)
    assert first.size == second.size and words.startswith("1: a kite: ")
    draw.masks[:] = False
    assert "empty mask" in draw({"phrase": "2: a kite"})[1]
    with pytest.raises(ValueError, match="1 phrases, 2 prompts"):
        flow.SegQueries(image, ["a kite"], *given)


def test_looks_are_weights_and_masks_are_the_decoder_s(model, features):
    prompts = torch.randn(3, model.config.grounding.prompt_dim)
    looks, low_res = flow.prompt_attention(model.pixel_decoder, features.grounding, prompts)
    assert_close(looks.sum((1, 2)), torch.ones(3))
    assert looks.min() >= 0 and looks.shape[1:] == features.grounding.shape[2:]
    with torch.no_grad():
        alone, _ = model.pixel_decoder(features.grounding, prompts[:, None], torch.zeros(3, dtype=torch.long))
    assert_close(low_res, alone)
