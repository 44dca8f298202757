"""What calls share: threads, kept features, the model's mode, copies; and weights that are damaged."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scripted import scripted_assistant

import glamm_mini
from glamm_mini import paths
from glamm_mini.assistant.assistant import Assistant
from glamm_mini.assistant.memory import REMEMBERED, evaluating
from glamm_mini.processing.images import load_image

SHORT = {"max_new_tokens": 24}


@pytest.fixture(scope="module")
def pictures():
    return [load_image(path)[::2, ::2] for path in sorted(paths.samples_folder().glob("*.png"))]


@pytest.fixture(scope="module")
def tiny():
    return glamm_mini.load("tiny", device="cpu")


@pytest.fixture
def glamm():
    return scripted_assistant()


@pytest.fixture
def picture():
    return np.random.default_rng(5).integers(0, 256, (30, 40, 3), dtype=np.uint8)


# --- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_get_the_words_and_masks_of_a_sequence(tiny, pictures, threads):
    fresh = Assistant(tiny.model, tiny.processor)
    want = [fresh.describe(picture, details=True) for picture in pictures]
    shared, start = Assistant(tiny.model, tiny.processor), threading.Barrier(threads)

    def work(k):
        start.wait()
        return shared.describe(pictures[k % 4], details=True)

    with ThreadPoolExecutor(threads) as pool:
        got = list(pool.map(work, range(threads)))
    for k, answer in enumerate(got):
        assert answer == want[k % 4], "words, masks, logits and scores to the last bit"


def test_eight_threads_are_no_slower_than_eight_in_a_row(tiny, pictures):
    """They take turns; the bar is for machines whose cores have other work."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for picture in pictures * 2:
            Assistant(tiny.model, tiny.processor).describe(picture, **SHORT)
        row = time.perf_counter() - start
        with ThreadPoolExecutor(8) as pool:
            start = time.perf_counter()
            jobs = [pool.submit(Assistant(tiny.model, tiny.processor).describe, p, **SHORT) for p in pictures * 2]
            [job.result() for job in jobs]
            times.append((time.perf_counter() - start) / row)
    assert min(times) < 1.3


class Asking:
    """A streamer that asks the model itself, in its own thread and in another, before it hands on a token."""

    def __init__(self, ask):
        self.ask, self.heard, self.ends = ask, [], 0

    def put(self, value):
        if not self.heard:
            with ThreadPoolExecutor(1) as pool:
                self.heard = [self.ask(), pool.submit(self.ask).result()]

    def end(self):
        self.heard.append(self.ask())
        self.ends += 1


def test_a_streamer_may_ask_the_model(tiny, pictures):
    want = [tiny.describe(picture, **SHORT) for picture in pictures[:2]]
    asking = Asking(lambda: tiny.describe(pictures[1], **SHORT))
    assert tiny.describe(pictures[0], streamer=asking, **SHORT) == want[0]
    assert asking.heard == [want[1]] * 3 and asking.ends == 1


def test_chats_and_assistants_on_one_model_do_not_mix(tiny, pictures):
    def talk(glamm, picture):
        chat = glamm.chat(picture)
        return [chat.say(text, **SHORT) for text in ("Describe the image with masks.", "Segment the sky.")]

    want = [talk(tiny, picture) for picture in pictures[:2]]
    other = Assistant(tiny.model, tiny.processor)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(talk, glamm, pictures[k]) for glamm in (tiny, other) for k in (0, 1)]
        assert [job.result() for job in jobs] == want * 2


def test_threads_that_share_a_chat_take_turns(tiny, pictures):
    chat = tiny.chat(pictures[0])
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda k: chat.say("What is in the picture?", max_new_tokens=4), range(3)))
    assert len(chat.turns) == 3
    again = tiny.chat(pictures[0])
    assert [again.say("What is in the picture?", max_new_tokens=4) for _ in range(3)] == chat.turns


def test_a_call_between_two_steps_of_another_changes_nothing(glamm, picture):
    """The second call comes while the first is encoding, at exactly that place."""
    other = picture[::-1].copy()
    want, encode = glamm.encode(picture), glamm.model.encode_images
    glamm = Assistant(glamm.model, glamm.processor)
    calls = []

    def between(*images):
        calls.append(len(images[0]))
        if len(calls) == 1:
            glamm.encode(other)
        return encode(*images)

    glamm.model.encode_images = between
    try:
        got = glamm.encode(picture)
    finally:
        del glamm.model.encode_images
    assert torch.equal(got.tokens, want.tokens) and torch.equal(got.grounding, want.grounding) and len(calls) == 2


# --- kept features ---------------------------------------------------------------------------------------------------


def test_what_encode_gives_is_the_callers_own(tiny, pictures):
    want = tiny.describe(pictures[0], **SHORT)
    features = tiny.encode(pictures[0])
    with torch.inference_mode():
        for part in (features.tokens, *features.levels, features.grounding):
            part.zero_()
    features.tokens, features.levels[0] = None, None
    assert tiny.describe(pictures[0], **SHORT) == want


def test_features_of_a_batch_take_no_more_room_than_their_own(glamm, picture):
    glamm.caption([np.roll(picture, k, 0) for k in range(12)], max_new_tokens=1)
    kept = glamm._memory._kept.values()
    assert len(kept) == REMEMBERED
    for part in (part for one in kept for part in (one.tokens, *one.levels, one.grounding)):
        assert len(part) == 1 and part.untyped_storage().nbytes() == part.nbytes


def one_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.enable_grad():
        model.encode_images(torch.ones(1, 3, 24, 24), torch.ones(1, 3, 32, 32)).grounding.square().sum().backward()
    optimizer.step()


def other_weights(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def assigned_weights(model):
    model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()}, assign=True)


def through_data(model):
    for parameter in model.grounding_encoder.parameters():
        parameter.data.mul_(1.5)  # torch does not count such changes


def through_numpy(model):
    next(model.vl_projector.parameters()).detach().numpy()[:] *= 1.5


def in_half(model):
    model.to(torch.bfloat16)


def swapped(model):
    weight = next(model.vl_projector.parameters())
    with torch.no_grad():
        weight.copy_(weight.flip(0))  # the same sum of bits


@pytest.mark.parametrize(
    "change", [one_step, other_weights, assigned_weights, through_data, through_numpy, in_half, swapped]
)
def test_changed_weights_are_asked_anew(glamm, picture, change):
    before = glamm.encode(picture)
    assert glamm.encode(picture.copy()) is before or torch.equal(glamm.encode(picture).tokens, before.tokens)
    change(glamm.model)
    after, fresh = glamm.encode(picture), Assistant(glamm.model, glamm.processor).encode(picture)
    assert torch.equal(after.tokens, fresh.tokens) and torch.equal(after.grounding, fresh.grounding)
    assert after.tokens.dtype == fresh.tokens.dtype
    assert before.tokens.dtype != after.tokens.dtype or not (
        torch.equal(before.tokens, after.tokens) and torch.equal(before.grounding, after.grounding)
    )


def test_another_mode_is_another_picture(glamm, picture, monkeypatch):
    fixed = glamm.encode(picture)
    monkeypatch.setattr(glamm.processor.config, "mode", "official")
    assert not torch.equal(glamm.encode(picture).tokens, fixed.tokens), "the crop differs"


def test_the_last_pictures_are_kept_and_no_more(glamm, monkeypatch):
    counts, encode = [], glamm.model.encode_images
    monkeypatch.setattr(glamm.model, "encode_images", lambda a, b=None: counts.append(len(a)) or encode(a, b))
    many = [np.full((8, 8, 3), k, np.uint8) for k in range(REMEMBERED + 1)]
    for image in many:
        glamm.encode(image)
    for image in reversed(many[1:]):
        glamm.encode(image)
    assert sum(counts) == REMEMBERED + 1
    glamm.encode(many[0])
    assert sum(counts) == REMEMBERED + 2
    glamm.describe([many[0], many[3], many[0]], max_new_tokens=2)
    assert counts[-1] == 1 and sum(counts) == REMEMBERED + 2 + (REMEMBERED < 8)


# --- mode, copies ----------------------------------------------------------------------------------------------------


def test_an_answer_leaves_a_training_as_it_was(glamm, picture):
    model = glamm.model.train()
    model.lp_projector.eval()
    modes, seen = [m.training for m in model.modules()], []
    model.grounding_encoder.register_forward_hook(lambda module, *_: seen.append(module.training))
    glamm.ask(picture, "What is this?", max_new_tokens=3)
    with pytest.raises(ValueError):
        glamm.ask(picture, "")
    Assistant(model, glamm.processor)
    assert [m.training for m in model.modules()] == modes and seen == [False]
    batch = glamm.processor([picture], [[("What is this?", "a red kite")]])
    model(**batch).loss.backward()  # nothing of the answer is in the way
    with evaluating(model), evaluating(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == modes


def test_assistants_and_answers_can_be_copied_and_sent(glamm, picture):
    for _ in range(2):  # fresh, and after an answer
        for twin in (copy.deepcopy(glamm), pickle.loads(pickle.dumps(glamm))):
            assert twin.ask(picture, "What?", **SHORT) == glamm.ask(picture, "What?", **SHORT)
    chat = glamm.chat(picture)
    answer = chat.say("What?", **SHORT)
    assert pickle.loads(pickle.dumps(answer)) == answer
    twin = copy.deepcopy(chat)
    assert twin.turns == chat.turns and twin.say("And?", **SHORT) == chat.say("And?", **SHORT)


# --- damaged weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "part", ["global_encoder", "vl_projector", "language_model", "grounding_encoder", "pixel_decoder", "lp_projector"]
)
def test_numbers_that_are_not_finite_are_an_error_and_never_an_answer(glamm, picture, monkeypatch, part, value):
    from scripted import scripting

    says = next(scripting(glamm, monkeypatch))
    says("the sea [SEG] .")
    with torch.no_grad():
        for parameter in getattr(glamm.model, part).parameters():
            parameter.fill_(value)
    for call in (lambda: glamm.ask(picture, "What?"), lambda: glamm.teacher_force(picture, [("What?", "[SEG]")])):
        with pytest.raises(ValueError, match="not finite"):
            call()


def test_a_region_that_is_not_finite_is_an_error(glamm, picture):
    with torch.no_grad():
        next(glamm.model.region_encoder.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        glamm.ask(picture, "What is this?", boxes=[1, 1, 9, 9], max_new_tokens=3)
    glamm.ask(picture, "What is this?", max_new_tokens=3)  # without a box that part is not asked
