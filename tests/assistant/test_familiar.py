"""The note on pictures that a model cannot know: silent about scenes of its world, there for everything else."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import glamm_mini
from glamm_mini import paths
from glamm_mini.assistant.familiar import FILE, Familiar, summary
from glamm_mini.checkpoints.save import save_model
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene

TINY = paths.checkpoint_folder("tiny")


@pytest.fixture(scope="module")
def glamm():
    return glamm_mini.load("tiny", device="cpu")


@pytest.fixture(scope="module")
def familiar():
    return Familiar.read(TINY)


def distance(glamm, familiar, picture) -> float:
    with torch.inference_mode():
        grounding = glamm.model.grounding_encoder(glamm.processor.images([picture])["grounding_images"])
    return familiar.distances(summary(grounding))[0]


def noise(exponent: float, h: int = 240, w: int = 320, seed: int = 0) -> np.ndarray:
    """Color noise whose power falls with the frequency as that of natural pictures does (exponent about 1)."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    frequency[0, 0] = 1
    shared = rng.normal(size=(h, w))
    planes = [
        np.fft.ifft2(np.fft.fft2(shared + 0.4 * rng.normal(size=(h, w))) / frequency**exponent).real for _ in "RGB"
    ]
    planes = [128 + 50 * (plane - plane.mean()) / plane.std() for plane in planes]
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def strangers() -> dict[str, np.ndarray]:
    page = Image.new("RGB", (400, 500), "white")
    for y in range(20, 480, 16):
        ImageDraw.Draw(page).text((20, y), "What is written here is not a scene, and has no balloon.", fill="black")
    fade = np.linspace(0, 255, 300)[None, :, None] * np.ones((200, 1, 3))
    shade = np.linspace((250, 240, 200), (90, 60, 20), 200)[:, None] * np.ones((1, 300, 1))
    found = {f"1/f^{k}": noise(k, seed=int(10 * k)) for k in (0.8, 1.0, 1.2, 1.5)}
    found |= {"page": np.asarray(page), "fade": fade.astype(np.uint8), "shade": shade.astype(np.uint8)}
    return found | {"white noise": np.random.default_rng(1).integers(0, 256, (200, 200, 3), dtype=np.uint8)}


@pytest.mark.parametrize(("split", "side"), [("test", 96), ("test", 256), ("test", 640), ("compositional", 200)])
def test_scenes_of_the_world_get_no_note(glamm, familiar, split, side):
    """300 scenes in all; another seed than that of the scenes which were measured, at the worst one in a hundred."""
    far = [distance(glamm, familiar, render(sample_scene(split, 7, k), side).image) > familiar.limit for k in range(75)]
    assert sum(far) == 0


@pytest.mark.parametrize("name", strangers())
def test_pictures_of_other_kinds_get_a_note(glamm, name):
    answer = glamm.caption(strangers()[name], max_new_tokens=8)
    assert [note for note in answer.notes if "picture-book" in note and "likely wrong" in note]


def test_the_note_stands_first_in_every_call_and_with_its_own_picture(glamm):
    scene, stranger = render(sample_scene("test", 7, 0), 128).image, noise(1.0)
    how = {"max_new_tokens": 4}
    known, other = glamm.describe([scene, stranger], **how)
    assert "picture-book" in other.notes[0] and not any("picture-book" in note for note in known.notes)
    for answer in (glamm.segment(stranger, "the sea", **how), glamm.chat(stranger).say("What is this?", **how)):
        assert "picture-book" in answer.notes[0]
    assert "picture-book" in other._repr_html_()


def noted(glamm) -> bool:
    return any("unlike" in note for note in glamm.caption(noise(1.0), max_new_tokens=2).notes)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_copies_and_other_number_types_note_it_too(dtype):
    glamm = glamm_mini.load("tiny", device="cpu", dtype=dtype)
    assert noted(glamm) and noted(copy.deepcopy(glamm)) and noted(pickle.loads(pickle.dumps(glamm)))
    glamm.model.to(torch.float16 if dtype == "bfloat16" else torch.bfloat16)
    assert noted(glamm)


@pytest.mark.parametrize("part", ["global_encoder", "vl_projector", "grounding_encoder"])
def test_a_model_that_learned_on_says_nothing(tmp_path, part):
    glamm = glamm_mini.load("tiny", device="cpu", dtype="bfloat16")
    save_model(tmp_path / "m", glamm.model, glamm.processor)
    assert noted(glamm) and not (tmp_path / "m" / FILE).exists() and not noted(glamm_mini.load(tmp_path / "m"))
    with torch.no_grad():
        next(p for p in getattr(glamm.model, part).parameters() if p.ndim > 1).mul_(1.01)
    assert not noted(glamm)
    # Nor does it when it was saved over the model that was measured.
    shutil.copy(TINY / FILE, tmp_path / "m")
    assert noted(glamm_mini.load(tmp_path / "m"))
    save_model(tmp_path / "m", glamm.model, glamm.processor)
    assert not noted(glamm_mini.load(tmp_path / "m"))


def test_weights_that_lie_elsewhere_are_not_compared(glamm, familiar):
    elsewhere = copy.deepcopy(glamm.model)
    elsewhere.global_encoder.to("meta")
    assert familiar.fits(elsewhere)
    elsewhere.grounding_encoder = torch.nn.Linear(2, 2)
    assert not familiar.fits(elsewhere)


def test_distances_are_measured_by_mean_and_spread(tmp_path):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(6, 6))
    draw = lambda count: rng.normal(size=(count, 6)) @ mixed + 3  # noqa: E731
    familiar = Familiar.measure("dots", draw(4000), draw(400), np.array([1.5, 0.0, 3.25]))
    inside = familiar.distances(draw(400))
    assert np.sqrt((inside**2).mean()) == pytest.approx(1, abs=0.05) and inside.max() < 1.3 * familiar.limit
    # Along a narrow direction, three units may be far although they are near along a wide one.
    assert familiar.distances(3 + np.full((1, 6), np.nan))[0] == np.inf
    wide, narrow = np.linalg.svd(mixed)[2][[0, -1]]
    near, far = familiar.distances(np.stack([3 + 3 * wide, 3 + 3 * narrow]))
    assert near < familiar.limit and far > 2 * near
    back = Familiar.read(familiar.write(tmp_path).parent)
    assert back.about == "dots" and back.limit == pytest.approx(familiar.limit, abs=1e-4)
    assert back.weights.tolist() == [1.5, 0.0, 3.25]
    np.testing.assert_allclose(back.distances(3 + mixed), familiar.distances(3 + mixed), rtol=1e-3)
    assert Familiar.read(tmp_path / "none") is None


@pytest.mark.parametrize("text", ["", "[]", "{}",
                                  '{"about": "x", "mean": [1], "whiten": "a", "limit": 1}',
                                  '{"about": "x", "mean": [1], "whiten": [[1]], "limit": 1}'])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, text):
    folder = tmp_path / "m"
    shutil.copytree(TINY, folder)
    (folder / FILE).write_text(text)
    with pytest.raises(ValueError, match=FILE):
        glamm_mini.load(folder, device="cpu")


def test_the_file_says_what_it_is_about():
    found = json.loads((TINY / FILE).read_text("utf-8"))
    assert found["about"] == "picture-book scenes" and len(found["whiten"]) == len(found["mean"])
    assert (TINY / FILE).stat().st_size < 60_000
