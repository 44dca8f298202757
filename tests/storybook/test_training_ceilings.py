"""Perfect encoders: what the language model is handed, and the table that tells what limits the tiny model."""

import sys

import pytest
import torch

from glamm_mini.storybook.dataset import evaluation_samples
from glamm_mini.storybook.pretrain import ceilings as module
from glamm_mini.storybook.pretrain import run as pretraining
from glamm_mini.storybook.pretrain.ceilings import OracleEncoders, ceilings
from glamm_mini.storybook.pretrain.dense_labels import dense_labels, region_labels


@pytest.fixture(scope="module")
def samples():
    return list(evaluation_samples("regcap", "val", 1, 3, long_side=64))


def test_the_language_model_is_handed_the_true_code(samples):
    torch.set_num_threads(1)
    oracle = OracleEncoders(*pretraining.untrained("tiny"))
    oracle.learn(samples)
    with torch.no_grad():
        features = oracle._features([samples[2].image, samples[0].image])
    expected = oracle.picture_code(dense_labels([samples[2], samples[0]], oracle.config.image_grid))
    assert torch.equal(features.tokens, expected)
    boxes = [oracle.processor.normalize_boxes(s.conversations[0][0].boxes, s.image.shape[:2]) for s in samples]
    # Two rows about two pictures, in another order than the pictures.
    vectors = oracle.model._regions(features, [1, 0], [boxes[0], boxes[2]])
    true = region_labels([samples[0], samples[2]], [boxes[0], boxes[2]])
    assert torch.equal(vectors, oracle.model.region_encoder.book(true)[:, 0])


def test_answers_come_from_the_scenes_and_unknown_pictures_are_an_error(samples, monkeypatch):
    monkeypatch.setattr("glamm_mini.assistant.assistant.MAX_NEW_TOKENS", dict.fromkeys(("fixed", "official"), 4))
    oracle = OracleEncoders(*pretraining.untrained("tiny"))
    oracle.learn(samples[:1])
    turn = samples[0].conversations[0][0]
    assert oracle.ask(samples[0].image, turn.question, turn.boxes).text
    with pytest.raises(ValueError, match="1 pictures, the first of shape .* were not given to `learn`"):
        oracle.describe(samples[1].image)


def test_the_table_has_a_row_a_figure_and_a_column_for_each_kind_of_encoders(monkeypatch, capsys, tmp_path):
    asked = []

    def figures(assistant, scenes, before=None):
        asked.append((type(assistant).__name__, scenes, before == getattr(assistant, "learn", None)))
        return {"gcg_miou": 0.5 if len(asked) == 1 else 0.75}

    monkeypatch.setattr(module, "storybook_figures", figures)
    monkeypatch.setattr(pretraining, "load_backbones", lambda folder, glamm: asked.append(folder) or asked.pop())
    assert ceilings(tmp_path, 3) == {"own encoders": {"gcg_miou": 0.5}, "perfect encoders": {"gcg_miou": 0.75}}
    assert asked == [("Assistant", 3, True), ("OracleEncoders", 3, True)]
    asked.clear()
    monkeypatch.setattr(sys, "argv", ["ceilings", "--backbones", str(tmp_path), "--scenes", "2"])
    module.main()
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["own", "encoders", "perfect", "encoders"] and row.split() == ["gcg_miou", "0.500", "0.750"]
