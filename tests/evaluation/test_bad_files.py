"""Predictions and ground truth that somebody hands in: each fault is one error that names file, record and field."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluation_fakes import H, Oracle, W, figures, run

from glamm_mini.cli.main import main
from glamm_mini.evaluation import TASKS, score_folder
from glamm_mini.evaluation.records import read_grounded_predictions
from glamm_mini.processing.images import encode_mask

ONE = "picture_001.json"
MASKS, CAPTIONS = "ground_truth/test_gcg_coco_mask_gt.json", "ground_truth/test_gcg_coco_caption_gt.json"
REFSEG, VQA = "ground_truth/test_refseg_gt.json", "ground_truth/test_vqa_gt.json"
REGCAP, CAPTION = "ground_truth/test_regcap_gt.json", "ground_truth/test_caption_gt.json"
GONE, TWICE = object(), object()
OTHER = encode_mask(np.ones((3, 5), bool))
NAN = float("nan")


def rle(counts, size=(H, W)) -> dict:
    return {"size": list(size), "counts": counts}


# task, file, where in it, what is put there, and what the error names beside the file
CHANGES = [
    # predictions of grounded captions
    ("gcg", ONE, (), [], ["a list of 0"]),
    ("gcg", ONE, (), "text", ["'text'"]),
    ("gcg", ONE, (), None, ["None"]),
    ("gcg", ONE, ("caption",), GONE, ["'caption'"]),
    ("gcg", ONE, ("caption",), None, ["'caption'", "None"]),
    ("gcg", ONE, ("caption",), 7, ["'caption'", "7"]),
    ("gcg", ONE, ("caption",), "half \ud800", ["'caption'"]),
    ("gcg", ONE, ("phrases",), GONE, ["'phrases'"]),
    ("gcg", ONE, ("phrases",), "a kite", ["'phrases'"]),
    ("gcg", ONE, ("phrases", 1), None, ["'phrases'"]),
    ("gcg", ONE, ("phrases", 1), ["a kite"], ["'phrases'"]),
    ("gcg", ONE, ("pred_masks",), GONE, ["'pred_masks'"]),
    ("gcg", ONE, ("pred_masks",), {"size": [1, 1]}, ["'pred_masks'"]),
    ("gcg", ONE, ("pred_masks", 1), None, ["pred_masks[1]"]),
    ("gcg", ONE, ("pred_masks", 1), [[1, 2, 3, 4, 5, 6]], ["pred_masks[1]"]),
    ("gcg", ONE, ("pred_masks", 1), OTHER, ["pred_masks[1]", "3 x 5", f"{H} x {W}"]),
    ("gcg", ONE, ("pred_masks", 1, "size"), [W, H], ["pred_masks[1]", f"{W} x {H}"]),
    ("gcg", ONE, ("pred_masks", 1, "size"), GONE, ["pred_masks[1]", "'size'"]),
    ("gcg", ONE, ("pred_masks", 1, "size"), [H], ["pred_masks[1]", "'size'"]),
    ("gcg", ONE, ("pred_masks", 1, "size"), [float(H), W], ["pred_masks[1]", "'size'"]),
    ("gcg", ONE, ("pred_masks", 1, "size"), [-H, -W], ["pred_masks[1]", "'size'"]),
    ("gcg", ONE, ("pred_masks", 1, "size"), [10**9, 10**9], ["pred_masks[1]", "'size'"]),
    ("gcg", ONE, ("pred_masks", 1, "counts"), GONE, ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1, "counts"), 5, ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1, "counts"), "", ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1, "counts"), "not a run length", ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1, "counts"), "ø", ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1), rle([H * W - 1]), ["pred_masks[1]", str(H * W - 1), str(H * W)]),
    ("gcg", ONE, ("pred_masks", 1), rle([H * W, 1]), ["pred_masks[1]", str(H * W + 1), str(H * W)]),
    ("gcg", ONE, ("pred_masks", 1), rle([H * W + 5, -5]), ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1), rle([5, -5, H * W]), ["pred_masks[1]", "negative"]),
    ("gcg", ONE, ("pred_masks", 1), rle([1.5, H * W - 1.5]), ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("pred_masks", 1), rle([True, H * W - 1]), ["pred_masks[1]", "'counts'"]),
    ("gcg", ONE, ("scores",), [0.5], ["'scores'", "1 numbers for 2 masks"]),
    ("gcg", ONE, ("scores",), [], ["'scores'", "0 numbers for 2 masks"]),
    ("gcg", ONE, ("scores",), 0.5, ["'scores'"]),
    ("gcg", ONE, ("scores", 0), NAN, ["'scores'"]),
    ("gcg", ONE, ("scores", 0), float("inf"), ["'scores'"]),
    ("gcg", ONE, ("scores", 0), "0.9", ["'scores'"]),
    ("gcg", ONE, ("scores", 0), True, ["'scores'"]),
    ("gcg", ONE, ("scores", 0), None, ["'scores'"]),
    ("gcg", ONE, ("image_id",), "picture_002", ["'image_id'", "'picture_002'"]),
    ("gcg", ONE, ("image_id",), 1.5, ["'image_id'", "1.5"]),
    # ground truth of grounded captions
    ("gcg", MASKS, (), [], ["a list of 0"]),
    ("gcg", MASKS, ("images",), GONE, ["'images'"]),
    ("gcg", MASKS, ("images",), [], ["no image"]),
    ("gcg", MASKS, ("images", 1), GONE, ["'image_id'", "'picture_001'"]),
    ("gcg", MASKS, ("images", 1, "id"), 7, ["annotations[2]", "'picture_001'", "not an id of its images"]),
    ("gcg", MASKS, ("images", 1), TWICE, ["images[2]", "'picture_001'", "twice"]),
    ("gcg", MASKS, ("images", 1), None, ["images[1]"]),
    ("gcg", MASKS, ("info",), ["storybook"], ["'info'"]),
    ("gcg", MASKS, ("annotations",), {}, ["'annotations'"]),
    ("gcg", MASKS, ("annotations", 3), None, ["annotations[3]"]),
    ("gcg", MASKS, ("annotations", 3), GONE, ["image picture_001", "1 masks", "2 labels"]),
    ("gcg", MASKS, ("annotations", 3, "image_id"), GONE, ["annotations[3]", "'image_id'"]),
    ("gcg", MASKS, ("annotations", 3, "image_id"), "elsewhere", ["annotations[3]", "'elsewhere'"]),
    ("gcg", MASKS, ("annotations", 3, "segmentation"), GONE, ["annotations[3]", "'segmentation'"]),
    ("gcg", MASKS, ("annotations", 3, "segmentation"), [[1, 1, 9, 1, 9, 9]], ["annotations[3]", "'segmentation'"]),
    ("gcg", MASKS, ("annotations", 3, "segmentation"), OTHER, ["image picture_001", "masks[1]", "3 x 5"]),
    ("gcg", MASKS, ("annotations", 3, "segmentation", "counts"), "zz", ["image picture_001", "masks[1]"]),
    ("gcg", MASKS, ("annotations", 3, "area"), "big", ["annotations[3]", "'area'"]),
    ("gcg", MASKS, ("annotations", 3, "area"), -50, ["annotations[3]", "'area'", "-50"]),
    ("gcg", MASKS, ("annotations", 3, "area"), True, ["annotations[3]", "'area'"]),
    ("gcg", MASKS, ("annotations", 3, "iscrowd"), "no", ["annotations[3]", "'iscrowd'"]),
    ("gcg", MASKS, ("annotations", 3, "iscrowd"), -1, ["annotations[3]", "'iscrowd'", "0 or 1"]),
    ("gcg", MASKS, ("annotations", 3, "iscrowd"), 7, ["annotations[3]", "'iscrowd'", "0 or 1"]),
    ("gcg", MASKS, ("annotations", 3, "unseen"), "no", ["annotations[3]", "'unseen'"]),
    ("refseg", REFSEG, (1, "expressions", 2, "unseen"), "no", ["expressions[2]", "'unseen'"]),
    ("regcap", REGCAP, ("annotations", 1, "unseen"), "no", ["annotations[1]", "'unseen'"]),
    ("refseg", REFSEG, (1, "expressions", 2, "kind"), 3, ["expressions[2]", "'kind'"]),
    ("refseg", REFSEG, (1, "expressions", 2, "kind"), "absent", ["1]", "expression '2'", "absent", "not empty"]),
    ("vqa", VQA, (1, "questions", 0, "kind"), ["x"], ["questions[0]", "'kind'"]),
    ("vqa", VQA, (1, "questions", 0, "also"), "x", ["questions[0]", "'also'"]),
    ("gcg", MASKS, ("annotations", 3, "attributes"), "a red kite", ["annotations[3]", "'attributes'"]),
    ("gcg", MASKS, ("images",), [{"id": f"picture_{k:03}"} for k in range(4)], ["different images", "caption_gt.json"]),
    ("gcg", CAPTIONS, ("images", 1, "height"), GONE, ["images[1]", "'height'"]),
    ("gcg", CAPTIONS, ("images", 1, "height"), 0, ["images[1]", "'height'"]),
    ("gcg", CAPTIONS, ("images", 1, "width"), 10**9, ["images[1]", "'size'"]),
    ("gcg", CAPTIONS, ("images", 1, "width"), 64.0, ["images[1]", "'width'"]),
    ("gcg", CAPTIONS, ("annotations", 1, "caption"), GONE, ["annotations[1]", "'caption'"]),
    ("gcg", CAPTIONS, ("annotations", 1, "image_id"), "picture_000", ["image picture_001"]),
    ("gcg", CAPTIONS, ("annotations", 1, "labels"), GONE, ["image picture_001", "2 masks", "0 labels"]),
    ("gcg", CAPTIONS, ("annotations", 1, "labels"), "a kite", ["annotations[1]", "'labels'"]),
    ("gcg", CAPTIONS, ("annotations", 1, "labels", 0), GONE, ["1 labels"]),
    # referring expressions
    ("refseg", ONE, ("expressions",), GONE, ["'expressions'"]),
    ("refseg", ONE, ("expressions", 2), 7, ["expressions[2]"]),
    ("refseg", ONE, ("expressions", 2, "sent_id"), GONE, ["expressions[2]", "'sent_id'"]),
    ("refseg", ONE, ("expressions", 2, "sent_id"), 1, ["expressions[2]", "'sent_id'", "twice"]),
    ("refseg", ONE, ("expressions", 2, "sent_id"), "1", ["expressions[2]", "'sent_id'", "twice"]),
    ("refseg", ONE, ("expressions", 2, "sent_id"), 99, ["sent_id", "'99'"]),
    ("refseg", ONE, ("expressions", 2, "mask"), "none", ["expressions[2]", "'mask'"]),
    ("refseg", ONE, ("expressions", 2, "mask"), OTHER, ["expression '2'", "3 x 5"]),
    ("refseg", ONE, ("teacher_forced",), [1], ["'teacher_forced'"]),
    ("refseg", ONE, ("teacher_forced", "sent_ids"), GONE, ["teacher_forced", "'sent_ids'"]),
    ("refseg", ONE, ("teacher_forced", "sent_ids", 0), 99, ["teacher_forced", "'sent_ids'", "'99'"]),
    ("refseg", ONE, ("teacher_forced", "masks"), GONE, ["teacher_forced", "'masks'"]),
    ("refseg", ONE, ("teacher_forced", "masks", 0), OTHER, ["teacher_forced", "masks[0]", "3 x 5"]),
    ("refseg", REFSEG, (), {}, ["an object of 0"]),
    ("refseg", REFSEG, (1, "image_id"), GONE, ["[1]", "'image_id'"]),
    ("refseg", REFSEG, (1, "image_id"), "picture_000", ["[1]", "'image_id'", "twice"]),
    ("refseg", REFSEG, (1, "image_id"), "../../secret", ["'../../secret'", "out of the folder"]),
    ("refseg", REFSEG, (1, "image_id"), "..\\secret", ["out of the folder"]),
    ("refseg", REFSEG, (1, "image_id"), "/secret", ["'/secret'", "out of the folder"]),
    ("refseg", REFSEG, (1, "size"), [H, W, 3], ["[1]", "'size'"]),
    ("refseg", REFSEG, (1, "expressions"), None, ["[1]", "'expressions'"]),
    ("refseg", REFSEG, (1, "expressions", 0, "mask"), GONE, ["[1]", "expressions[0]", "'mask'"]),
    ("refseg", REFSEG, (1, "expressions", 0, "mask"), OTHER, ["[1]", "masks[0]", "3 x 5"]),
    ("refseg", REFSEG, (1, "expressions", 1, "sent_id"), 0, ["[1]", "expressions[1]", "twice"]),
    # captions
    ("regcap", "results_0.json", (), {"image_id": 1}, ["an object of 1"]),
    ("regcap", "results_0.json", (1,), "a kite", ["[1]"]),
    ("regcap", "results_0.json", (1, "image_id"), GONE, ["[1]", "'image_id'"]),
    ("regcap", "results_0.json", (1, "image_id"), [2], ["[1]", "'image_id'"]),
    ("regcap", "results_0.json", (1, "image_id"), 1, ["[1]", "'1'"]),
    ("regcap", "results_0.json", (1, "image_id"), "1", ["[1]", "'1'"]),
    ("regcap", "results_0.json", (1, "caption"), None, ["[1]", "'caption'"]),
    ("regcap", "results_0.json", (1, "caption"), 5, ["[1]", "'caption'"]),
    ("regcap", REGCAP, ("annotations", 2, "caption"), GONE, ["annotations[2]", "'caption'"]),
    ("regcap", REGCAP, ("annotations", 2, "attributes"), [], ["annotations[2]", "'attributes'"]),
    ("regcap", REGCAP, ("annotations", 2, "attributes"), {}, ["annotations[2]", "attributes", "'cls'"]),
    ("caption", CAPTION, ("images", 1, "classes"), "boat", ["images[1]", "'classes'"]),
    # questions
    ("vqa", ONE, ("questions",), "two", ["'questions'"]),
    ("vqa", ONE, ("questions", 1, "question_id"), GONE, ["questions[1]", "'question_id'"]),
    ("vqa", ONE, ("questions", 1, "question_id"), 0, ["questions[1]", "'question_id'", "twice"]),
    ("vqa", ONE, ("questions", 1, "question_id"), 9, ["question_id", "'9'"]),
    ("vqa", ONE, ("questions", 1, "text"), GONE, ["questions[1]", "'text'"]),
    ("vqa", ONE, ("questions", 1, "text"), ["no"], ["questions[1]", "'text'"]),
    ("vqa", VQA, (1, "questions", 0, "answer"), 3, ["[1]", "questions[0]", "'answer'"]),
]  # fmt: skip

TEXTS = [
    (ONE, b""),
    (ONE, b"{broken"),
    (ONE, b'{"image_id": "picture_001", "caption": "a ki'),
    (ONE, b"\xff\xfe{}"),
    (ONE, b"[" * 100_000),
    (ONE, b'{"scores": [' + b"9" * 5000 + b"]}"),
    (MASKS, b""),
    (CAPTIONS, b"null"),
]


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """Captions are scored without Java here."""
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Three perfect predictions of each task, with their ground truth."""
    folder = tmp_path_factory.mktemp("good")
    for task in TASKS:
        run(task, Oracle(task), folder / task, count=3)
    return folder


def edited(folder: Path, file: str, steps: tuple, value) -> None:
    content = json.loads((folder / file).read_text())
    if not steps:
        content = value
    else:
        place = content
        for step in steps[:-1]:
            place = place[step]
        if value is GONE:
            del place[steps[-1]]
        elif value is TWICE:
            place.insert(steps[-1], copy.deepcopy(place[steps[-1]]))
        else:
            place[steps[-1]] = value
    (folder / file).write_text(json.dumps(content))


def expect_error(task: str, folder: Path, named: list[str], capsys, truth: Path | None = None) -> None:
    truth = truth or folder / "ground_truth"
    with pytest.raises(ValueError) as caught:
        score_folder(task, folder, truth, "test", meteor=False)
    missing = [word for word in named if word not in str(caught.value)]
    assert not missing and "\n" not in str(caught.value), f"{missing} is not named in: {caught.value}"
    with pytest.raises(SystemExit) as end:
        words = ["score", task, "--predictions", folder, "--split", "test", "--ground-truth", truth, "--no-meteor"]
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    told = " ".join(err.split())
    assert end.value.code == 1 and out == "" and "Traceback" not in err
    assert all(word in told or word in err.replace("\n", "") for word in named), told


@pytest.mark.parametrize(("task", "file", "steps", "value", "named"), CHANGES)
def test_a_wrong_field_is_named(task, file, steps, value, named, good, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(good / task, folder)
    edited(folder, file, steps, value)
    expect_error(task, folder, [Path(file).name, *named], capsys)


@pytest.mark.parametrize(("file", "text"), TEXTS)
def test_a_file_that_is_not_json_is_named(file, text, good, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(good / "gcg", folder)
    (folder / file).write_bytes(text)
    expect_error("gcg", folder, [Path(file).name], capsys)


@pytest.mark.parametrize("file", [ONE, MASKS])
def test_a_folder_in_place_of_a_file_is_named(file, good, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(good / "gcg", folder)
    (folder / file).unlink()
    (folder / file).mkdir()
    expect_error("gcg", folder, [Path(file).name], capsys)


def test_folders_that_are_not_what_they_should_be(good, tmp_path, capsys):
    truth = good / "gcg" / "ground_truth"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("{}")
    expect_error("gcg", tmp_path / "empty", ["empty", "3 images"], capsys, truth)
    expect_error("gcg", tmp_path / "nowhere", ["nowhere", "doesn't exist"], capsys, truth)
    expect_error("gcg", tmp_path / "file", ["file", "is a file"], capsys, truth)
    expect_error("gcg", good / "gcg", ["empty", "test_gcg_coco_mask_gt.json"], capsys, tmp_path / "empty")
    expect_error("regcap", tmp_path / "empty", ["results_"], capsys, good / "regcap" / "ground_truth")


# --- what is taken, by rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "file", "steps", "value"),
    [
        ("gcg", ONE, ("scores",), GONE),
        ("gcg", ONE, ("scores",), None),
        ("gcg", ONE, ("image_id",), GONE),
        ("gcg", ONE, ("image_id",), "picture_001.jpg"),
        ("gcg", ONE, ("phrases",), ["a kite", "a boat", "a tree"]),
        ("gcg", MASKS, ("annotations", 3, "id"), GONE),
        ("gcg", MASKS, ("annotations", 3, "id"), 1),
        ("gcg", MASKS, ("annotations", 3, "area"), GONE),
        ("gcg", MASKS, ("annotations", 3, "bbox"), GONE),
        ("gcg", MASKS, ("annotations", 3, "iscrowd"), GONE),
        ("gcg", MASKS, ("categories",), GONE),
        ("refseg", ONE, ("expressions", 2, "mask"), GONE),
        ("refseg", ONE, ("expressions", 2, "sent_id"), "2"),
        ("refseg", ONE, ("teacher_forced",), GONE),
        ("regcap", "results_0.json", (1, "image_id"), "2"),
        ("regcap", REGCAP, ("images", 0, "file_name"), GONE),
        ("caption", CAPTION, ("images", 1, "classes"), GONE),
        ("vqa", ONE, ("questions", 1), GONE),
    ],
)
def test_what_may_be_left_out_or_written_otherwise(task, file, steps, value, good, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(good / task, folder)
    edited(folder, file, steps, value)
    scores = figures(task, folder)
    assert scores["missing_predictions"] == 0
    if task == "gcg" and file == MASKS:
        assert scores == figures(task, good / task)


def test_an_expression_without_a_mask_is_an_empty_one(good, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(good / "refseg", folder)
    whole = figures("refseg", folder)
    assert not any("official covers" in note for note in whole["notes"])
    edited(folder, ONE, ("expressions", 2, "mask"), None)
    edited(folder, "picture_002.json", ("teacher_forced",), GONE)
    scores = figures("refseg", folder)
    count = scores["expressions"]
    assert scores["giou"] == pytest.approx((count - 1) / count) and scores["p50"] == pytest.approx((count - 1) / count)
    assert any("official covers the 2 images" in note for note in scores["notes"])


def test_a_caption_that_is_missing_is_left_out_officially_and_empty_when_fixed(good, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="needs the extra eval")
    folder = tmp_path / "run"
    shutil.copytree(good / "regcap", folder)
    edited(folder, "results_0.json", (0,), GONE)
    scores = figures("regcap", folder)
    assert scores["missing_predictions"] == 1 and scores["regions"] == 6
    assert scores["class_accuracy"] == scores["exact"] == pytest.approx(5 / 6)
    assert scores["cider"] < scores["official"]["cider"]


def test_without_scores_every_mask_is_sure(good, tmp_path):
    edited_folder = tmp_path / "run"
    shutil.copytree(good / "gcg", edited_folder)
    edited(edited_folder, ONE, ("scores",), GONE)
    read = read_grounded_predictions(edited_folder, ["picture_000", "picture_001"])
    assert read["picture_001"].scores == [1.0, 1.0] and read["picture_000"].scores == [0.9, 0.9]


def test_run_lengths_may_be_lists(good, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(good / "gcg", folder)
    flat = np.zeros((H, W), bool)
    flat[4:20, 4:16] = True  # the balloon's
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[2], flat.T.reshape(-1), [2]]).astype(int))))
    for file, steps in ((ONE, ("pred_masks", 0)), (MASKS, ("annotations", 2, "segmentation"))):
        edited(folder, file, steps, rle(runs.tolist()))
    edited(folder, "picture_002.json", (), {"picture_002": json.loads((folder / "picture_002.json").read_text())})
    text = tmp_path / "text"
    shutil.copytree(good / "gcg", text)
    for file, steps in ((ONE, ("pred_masks", 0)), (MASKS, ("annotations", 2, "segmentation"))):
        edited(text, file, steps, encode_mask(flat))
    assert figures("gcg", folder) == figures("gcg", text)


def test_predictions_that_belong_to_no_image_are_told(good, tmp_path):
    for task in ("gcg", "refseg", "vqa", "caption"):
        shutil.copytree(good / task, tmp_path / task)
        shutil.copy(good / "gcg" / ONE, tmp_path / task / "picture_777.json")
    edited(tmp_path / "caption", "results_0.json", (2, "image_id"), "picture_777")
    for task in ("gcg", "refseg", "vqa", "caption"):
        notes = [note for note in figures(task, tmp_path / task)["notes"] if "belong to no image" in note]
        assert len(notes) == 1 and notes[0].startswith("1 ") and "picture_777" in notes[0]


CALLS = [
    ({"predictions": None}, ValueError, "predictions is None"),
    ({"predictions": b"pred"}, ValueError, "predictions is b'pred'"),
    ({"predictions": ""}, ValueError, "predictions is ''"),
    ({"ground_truth": 5}, ValueError, "ground_truth is 5"),
    ({"progress": 5}, TypeError, "progress is 5"),
    ({"progress": lambda items: []}, ValueError, "progress did not give on 3 of 3"),
    ({"progress": lambda items: None}, ValueError, "did not give on 3 of 3"),
    ({"progress": lambda items: items[:2]}, ValueError, "progress did not give on 1 of 3"),
]


@pytest.mark.parametrize(("given", "kind", "named"), CALLS, ids=[f"{list(row[0])[0]}, {row[2]}" for row in CALLS])
def test_a_call_that_is_wrong_names_the_argument(given, kind, named, good):
    usual = {"predictions": good / "gcg", "ground_truth": good / "gcg" / "ground_truth", "similarity": "trigram"}
    with pytest.raises(kind, match=named):
        score_folder("gcg", split="test", meteor=False, **usual | given)


def test_progress_changes_no_figure(good):
    folder = good / "gcg"
    given = ("gcg", folder, folder / "ground_truth", "test", "both", "trigram", False)
    assert score_folder(*given, progress=lambda items: reversed(items)) == score_folder(*given)
