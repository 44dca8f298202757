"""Predictions on disk: stopped runs go on, wrong input gives one clear error."""

import json
import shutil

import numpy as np
import pytest
from evaluation_fakes import Oracle, figures, make_sample, run, samples

from glamm_mini.evaluation import predict_samples, score_folder
from glamm_mini.evaluation.predict import fingerprint
from glamm_mini.processing.images import encode_mask


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


def test_one_clear_error_for_each_kind_of_bad_input(tmp_path):
    run("gcg", Oracle("gcg"), tmp_path / "good")
    truth = tmp_path / "good" / "ground_truth"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no prediction for any of the 8 images"):
        score_folder("gcg", tmp_path / "empty", truth, "test")
    with pytest.raises(ValueError, match="doesn't exist"):
        score_folder("gcg", tmp_path / "nowhere", truth, "test")
    with pytest.raises(ValueError, match="split 'val'.*the folder holds test_gcg"):
        score_folder("gcg", tmp_path / "good", truth, "val")
    with pytest.raises(ValueError, match="Unknown task 'gcc'"):
        score_folder("gcc", tmp_path / "good", truth, "test")
    with pytest.raises(ValueError, match="Unknown protocol"):
        score_folder("gcg", tmp_path / "good", truth, "test", protocol="all")
    with pytest.raises(ValueError, match="Unknown similarity"):
        score_folder("gcg", tmp_path / "good", truth, "test", similarity="gpt")
    path = tmp_path / "good" / "picture_002.json"
    record = json.loads(path.read_text())
    path.write_text("{broken")
    with pytest.raises(ValueError, match="picture_002.json isn't valid JSON"):
        score_folder("gcg", tmp_path / "good", truth, "test")
    path.write_text('{"image_id": "picture_002", "caption": "x"}')
    with pytest.raises(ValueError, match="picture_002.json: expected image_id, caption, phrases and pred_masks"):
        score_folder("gcg", tmp_path / "good", truth, "test")
    record["pred_masks"] = [encode_mask(np.ones((3, 5), bool))] * 2
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="3 x 5.*48 x 64"):
        score_folder("gcg", tmp_path / "good", truth, "test")


@pytest.mark.parametrize("task, part", [("refseg", "expressions"), ("vqa", "questions")])
def test_records_of_another_form_are_named(task, part, tmp_path):
    run(task, Oracle(task), tmp_path, count=2)
    (tmp_path / "picture_001.json").write_text(json.dumps({"image_id": "picture_001", part: [{}]}))
    with pytest.raises(ValueError, match=f"picture_001.json: expected a list '{part}'"):
        figures(task, tmp_path)
    truth = next((tmp_path / "ground_truth").iterdir())
    truth.write_text("{}")
    with pytest.raises(ValueError, match=f"{truth.name}: expected a list of"):
        figures(task, tmp_path)


def test_results_of_another_form_are_named(tmp_path):
    run("regcap", Oracle("regcap"), tmp_path, count=2)
    (tmp_path / "results_0.json").write_text('{"image_id": 1}')
    with pytest.raises(ValueError, match="results_0.json: expected a list of"):
        figures("regcap", tmp_path)
    (tmp_path / "results_0.json").write_text("[]")
    with pytest.raises(ValueError, match="no caption for any image"):
        figures("regcap", tmp_path)


def test_other_weights_have_another_fingerprint():
    torch = pytest.importorskip("torch")

    class Holder:
        model = torch.nn.Linear(3, 2)

    before = fingerprint(Holder)
    assert before == fingerprint(Holder)
    with torch.no_grad():
        Holder.model.weight += 1e-3
    assert before != fingerprint(Holder)
    assert fingerprint(Oracle("gcg")) is None
