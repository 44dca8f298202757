"""Score every task without a model: an oracle gets everything right, a careless one loses what it should."""

import json
import shutil

import numpy as np
import pytest
from evaluation_fakes import Careless, FakeAnswer, H, Oracle, StorybookOracle, W, figures, run

from glamm_mini.evaluation import TASKS, get_similarity, predict_samples, score_folder, similarity
from glamm_mini.evaluation.score import answer_accuracy
from glamm_mini.evaluation.segmentation import draw_expressions
from glamm_mini.processing.images import encode_mask
from glamm_mini.storybook.dataset import evaluation_samples
from glamm_mini.storybook.scores.attributes import mentioned_classes


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """These tests must pass without Java, and fast with it: test_evaluation_official holds what Java gives."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


PERFECT = {
    "gcg": ("ap50", "miou", "recall", "precision", "pq", "phrase_accuracy"),
    "grounding": ("ap50", "miou", "recall", "precision", "pq", "phrase_accuracy"),
    "refseg": ("ciou", "giou", "p50"),
    "regcap": ("class_accuracy", "exact"),
    "caption": ("class_recall", "class_precision"),
    "vqa": ("accuracy",),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_is_perfect(task, tmp_path):
    run(task, Oracle(task), tmp_path)
    scores = figures(task, tmp_path)
    fixed = scores["fixed"] if task == "gcg" else scores
    assert {name: fixed[name] for name in PERFECT[task]} == dict.fromkeys(PERFECT[task], 1.0)
    for name, value in (scores["official"] or {}).items():
        if name in ("ap50", "miou", "recall", "ciou", "giou"):
            assert value == pytest.approx(1.0, abs=1e-5)
    if task in ("gcg", "regcap", "caption"):
        pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
        assert fixed["cider"] > 5


@pytest.mark.parametrize("task", TASKS)
def test_carelessness_costs(task, tmp_path):
    run(task, Careless(task), tmp_path)
    scores = figures(task, tmp_path)
    fixed = scores["fixed"] if task == "gcg" else scores
    if task != "caption":  # what Careless changes isn't a class
        assert fixed[PERFECT[task][-1]] < 1
    if task in ("gcg", "grounding"):
        assert fixed["miou"] < scores["official"]["miou"]  # a forgotten mask costs nothing officially
        assert fixed["recall"] <= 0.5 and fixed["precision"] <= 1
    if task == "refseg":
        assert scores["official"]["giou"] == pytest.approx(1, abs=1e-5)  # teacher-forced: the answers aren't used
        assert 0 < scores["giou"] < 0.7
    if task == "regcap":
        assert (scores["images"], scores["regions"]) == (8, 16)
        assert scores["class_accuracy"] == 1.0 and scores["exact"] == 0.75  # the striped balloon became plain
    if task == "vqa":
        assert scores["accuracy"] == 0.5


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_and_one_give_the_same_figures(task, tmp_path):
    alone, both = Careless(task), (Careless(task), Careless(task))
    run(task, alone, tmp_path / "one", count=7)
    for rank in (0, 1):
        run(task, both[rank], tmp_path / "two", count=7, rank=rank, world=2)
    assert [4 * alone.asked, 3 * alone.asked] == [7 * one.asked for one in both], "each answers its share"
    one, two = (figures(task, tmp_path / name) for name in ("one", "two"))
    assert one == two
    for path in (tmp_path / "one" / "ground_truth").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "ground_truth" / path.name).read_bytes()


def test_a_model_that_grounds_nothing_scores_zero(tmp_path):
    class Mute(Oracle):
        def answer(self, turn):
            return FakeAnswer("nothing", turn.masks[:0])

    run("gcg", Mute("gcg"), tmp_path)
    scores = figures("gcg", tmp_path)
    for name in ("ap50", "miou", "recall"):
        assert scores["official"][name] == scores["fixed"][name] == 0.0
    assert scores["fixed"]["precision"] == scores["fixed"]["pq"] == 0.0


def test_protocol_picks_the_columns(tmp_path):
    run("gcg", Oracle("gcg"), tmp_path / "gcg", count=2)
    run("refseg", Oracle("refseg"), tmp_path / "refseg", count=2)
    assert "fixed" not in figures("gcg", tmp_path / "gcg", protocol="official")
    assert "official" not in figures("gcg", tmp_path / "gcg", protocol="fixed")
    assert "giou" not in figures("refseg", tmp_path / "refseg", protocol="official")
    assert "official" not in figures("refseg", tmp_path / "refseg", protocol="fixed")


@pytest.mark.parametrize("task", ["vqa", "refseg"])
def test_kinds_have_figures_of_their_own(task, tmp_path):
    """Together those of all; what has no kind is in no row."""
    run(task, Careless(task), tmp_path)
    whole = figures(task, tmp_path)
    assert "kinds" not in whole, "no kind is known"
    path, part = tmp_path / "ground_truth" / f"test_{task}_gt.json", "questions" if task == "vqa" else "expressions"
    truth = json.loads(path.read_text())
    asked = [one for image in truth for one in image[part]]
    for k, one in enumerate(asked):
        one["kind"] = "many" if k % 3 else "few"
    path.write_text(json.dumps(truth))
    kinds, name = figures(task, tmp_path)["kinds"], "accuracy" if task == "vqa" else "p50"
    assert list(kinds) == ["few", "many"] and kinds["few"][part] == (len(asked) + 2) // 3
    assert sum(row[part] for row in kinds.values()) == len(asked)
    assert sum(row[name] * row[part] for row in kinds.values()) / len(asked) == pytest.approx(whole[name])
    assert "kinds" not in figures(task, tmp_path, protocol="official")
    del asked[0]["kind"]
    path.write_text(json.dumps(truth))
    assert figures(task, tmp_path)["kinds"]["few"][part] == kinds["few"][part] - 1


@pytest.mark.parametrize(("task", "kinds"), [
    ("vqa", {"exists", "colour", "pattern", "count", "where", "size: which", "box: what", "box: colour"}),
    ("refseg", {"absent", "attribute", "class", "group", "relation", "stuff", "superlative"}),
])  # fmt: skip
def test_storybook_tells_kinds(task, kinds, tmp_path):
    watch = StorybookOracle()
    stories = watch.watch(evaluation_samples(task, "test", 7, 80, long_side=48))
    predict_samples(task, watch, stories, tmp_path, "test", {"task": task, "data": "storybook"})
    found = figures(task, tmp_path)["kinds"]
    assert kinds <= set(found)
    for row in found.values():
        assert row["accuracy" if task == "vqa" else "p50"] == 1.0
    if task == "refseg":
        whole = figures(task, tmp_path)
        assert (whole["false_alarms"], whole["missed"]) == (0.0, 0.0)


def test_scores_rank_the_answers_masks(tmp_path):
    """AP rises when the wrong masks have the lower scores; officially every score is 1."""
    run("gcg", Oracle("gcg"), tmp_path)
    for number in range(4):
        path = tmp_path / f"picture_{number:03}.json"
        record = json.loads(path.read_text())
        record["pred_masks"][0], record["scores"] = encode_mask(np.ones((H, W), bool)), [0.1, 0.9]
        path.write_text(json.dumps(record))
    scores = figures("gcg", tmp_path)
    assert scores["fixed"]["ap50"] > scores["official"]["ap50"]


def test_storybook_similarity():
    same = get_similarity("storybook")
    record = {"cls": "boat", "colour": "blue", "pattern": "plain", "size": "large"}
    assert same("the blue boat", "a ship", record) == 1  # a synonym; silence contradicts nothing
    assert same("the blue boat", "a large blue sailboat", record) == 1
    assert same("the boat", "the red boat", record) == 0  # the record knows more than the words
    assert same("the boat", "the red boat", None) == 1
    assert same("the boat", "two boats", record) == 0
    assert same("the boat", "the blue car", record) == 0
    assert same("the boat", "", record) == 0


def test_expressions_are_drawn_by_seed():
    assert draw_expressions("a", 2, 0) == [0, 1]
    draws = {tuple(draw_expressions("a", 9, seed)) for seed in range(10)}
    assert all(len(set(draw)) == 3 for draw in draws) and len(draws) > 3
    assert draw_expressions("a", 9, 7) == draw_expressions("a", 9, 7)


def test_answers_and_mentions():
    assert answer_accuracy([["Three."], ["No", "Yes"], ["a red one"]], ["3", "yes!", "a blue one"]) == 2 / 3
    assert mentioned_classes("A ship, two trees and a red house under the night sky.") == {
        "boat", "tree", "house", "night sky",
    }  # fmt: skip


def test_meteor_is_null_without_java(tmp_path):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    run("gcg", Oracle("gcg"), tmp_path)
    scores = score_folder("gcg", tmp_path, tmp_path / "ground_truth", "test")["gcg"]
    assert scores["fixed"]["meteor"] is None and scores["fixed"]["cider"] > 5
    assert any("meteor is null" in note and "Java" in note for note in scores["notes"])


@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_is_perfect_on_storybook(task, tmp_path):
    oracle = StorybookOracle()
    stories = oracle.watch(evaluation_samples(task, "compositional", 3, 6, long_side=96))
    predict_samples(task, oracle, stories, tmp_path, "compositional", {"data": "storybook"}, batch_size=4)
    scores = score_folder(task, tmp_path, tmp_path / "ground_truth", "compositional", meteor=False)[task]
    fixed = scores["fixed"] if task == "gcg" else scores
    assert {name: fixed[name] for name in PERFECT[task]} == dict.fromkeys(PERFECT[task], 1.0)


def test_bert_similarity_is_the_cosine_of_mean_states(monkeypatch):
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=128, **shape)).eval()

    def tokenizer(text, **options):
        return {"input_ids": torch.tensor([[1, *(ord(letter) % 128 for letter in text), 2]])}

    monkeypatch.setattr(similarity, "_bert", lambda: (tokenizer, model))
    similarity.bert_vector.cache_clear()
    with torch.no_grad():
        means = [model(**tokenizer(text)).last_hidden_state[0].mean(0) for text in ("a kite", "two boats")]
    expected = torch.nn.functional.cosine_similarity(*means, dim=0).item()
    assert get_similarity("bert")("a kite", "two boats", None) == pytest.approx(expected, abs=1e-6)
    similarity.bert_vector.cache_clear()


def test_bert_out_of_reach_is_one_clear_error(monkeypatch):
    import transformers

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    similarity._bert.cache_clear()
    with pytest.raises(ValueError, match="--similarity trigram or storybook"):
        get_similarity("bert")
