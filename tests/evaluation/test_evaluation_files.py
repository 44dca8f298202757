"""Predictions on disk: stopped runs go on, wrong input gives one clear error."""

import shutil

import pytest
from evaluation_fakes import Oracle, figures, make_sample, run, samples

from glamm_mini.evaluation import predict_samples, score_folder
from glamm_mini.evaluation.predict import fingerprint


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """These tests must pass without Java, and fast with it: test_evaluation_official holds what Java gives."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.mark.parametrize("task", ("gcg", "regcap"))
def test_a_stopped_run_goes_on(task, tmp_path):
    first = Oracle(task)

    def stop_after(count):
        for number, sample in enumerate(samples(task)):
            if number == count:
                raise KeyboardInterrupt
            yield sample

    settings = {"task": task, "data": "storybook", "limit": 8}
    with pytest.raises(KeyboardInterrupt):
        predict_samples(task, first, stop_after(6), tmp_path, "test", settings, batch_size=1)
    second = Oracle(task)
    run(task, second, tmp_path)
    per_image = len(make_sample(task, 0).conversations)
    assert (first.asked, second.asked) == (6 * per_image, 2 * per_image)
    assert figures(task, tmp_path)["missing_predictions"] == 0


def test_other_settings_are_refused_by_name(tmp_path):
    run("gcg", Oracle("gcg"), tmp_path, count=2)
    with pytest.raises(ValueError, match="limit was 2, is 3"):
        run("gcg", Oracle("gcg"), tmp_path, count=3)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="no settings.json"):
        run("gcg", Oracle("gcg"), tmp_path, count=2)


def test_a_missing_prediction_counts_as_empty_and_is_reported(tmp_path):
    run("gcg", Oracle("gcg"), tmp_path)
    (tmp_path / "picture_003.json").unlink()
    scores = figures("gcg", tmp_path)
    assert scores["missing_predictions"] == 1
    assert any("1 of 8 predictions are missing" in note and "picture_003" in note for note in scores["notes"])
    assert scores["fixed"]["miou"] == scores["fixed"]["recall"] == 7 / 8
    assert scores["fixed"]["precision"] == 1.0


def test_names_that_are_unknown_are_refused(tmp_path):
    run("gcg", Oracle("gcg"), tmp_path, count=2)
    truth = tmp_path / "ground_truth"
    with pytest.raises(ValueError, match="'val'.*test_gcg"):
        score_folder("gcg", tmp_path, truth, "val")
    with pytest.raises(ValueError, match="'gcc'.*refseg"):
        score_folder("gcc", tmp_path, truth, "test")
    with pytest.raises(ValueError, match="'all'.*official"):
        score_folder("gcg", tmp_path, truth, "test", protocol="all")
    with pytest.raises(ValueError, match="'gpt'.*trigram"):
        score_folder("gcg", tmp_path, truth, "test", similarity="gpt")


def test_no_caption_for_any_image(tmp_path):
    run("regcap", Oracle("regcap"), tmp_path, count=2)
    (tmp_path / "results_0.json").write_text("[]")
    with pytest.raises(ValueError, match="no caption for any image"):
        figures("regcap", tmp_path)


def test_other_weights_have_another_fingerprint():
    torch = pytest.importorskip("torch")

    class Holder:
        model = torch.nn.Linear(16, 8)

    before = fingerprint(Holder)
    assert before == fingerprint(Holder)
    with torch.no_grad():
        Holder.model.weight.view(-1)[63] += 1e-3
    assert before != fingerprint(Holder)
    assert fingerprint(Oracle("gcg")) is None
