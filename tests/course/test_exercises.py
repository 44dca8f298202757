"""The exercises: graders pass the published solutions, fail the stubs, and see what is nearly right."""

import ast
import os
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from glamm_mini.course.grading import Grade, array_fault, grade
from glamm_mini.course.room_00 import grader as tour

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = sorted(path.name for path in (NOTEBOOKS / "solutions").glob("*.ipynb"))


def grades_of(path: Path, tag: str | None) -> list[Grade]:
    """Run code cells in one namespace that holds what the notebook imports; the grades that their last lines give."""
    space, grades = {}, []
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for cell in cells:
        imports = [node for node in ast.parse(cell.source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(ast.unparse(imports), space)
    for cell in cells:
        if tag and tag not in cell.metadata.get("tags", []):
            continue
        body, _, last = cell.source.rstrip().rpartition("\n")
        exec(body, space)
        if "grade_" in last:
            grades.append(eval(last, space))
        else:
            exec(last, space)
    return grades


@pytest.mark.parametrize("name", NAMES)
def test_graders_pass_solutions_and_fail_stubs(name, monkeypatch):
    monkeypatch.chdir(NOTEBOOKS / "solutions")
    monkeypatch.setattr("sys.path", [*os.sys.path])
    solved, stubs = grades_of(NOTEBOOKS / "solutions" / name, None), grades_of(NOTEBOOKS / name, "exercise")
    assert len(solved) == len(stubs) >= 3
    assert all(solved), solved
    assert not any(stubs) and all("not written yet" in stub.message for stub in stubs)


def test_graders_see_what_is_nearly_right():
    def iou(a, b):
        with np.errstate(invalid="ignore"):
            return (a & b).sum() / (a | b).sum()

    def missed(bar, strict):
        def function(truth, masks):
            best = [max([iou(t, m) for m in masks], default=0) for t in truth]
            return [k for k, value in enumerate(best) if (value <= bar if strict else value < bar)]

        return function

    assert not tour.grade_phrases(lambda text: [text])
    assert not tour.grade_phrases(lambda text: ["a red kite"])
    assert tour.grade_phrases(lambda text: re.findall(r"<p> *(.*?) *</p>", text))
    assert not tour.grade_phrases(lambda text: re.findall(r"<p> *(.*?) *</p> *\[SEG\]", text)), "some have no mask"
    assert not tour.grade_overlap(iou) and not tour.grade_overlap(lambda a, b: (a & b).mean())
    assert tour.grade_missed(missed(0.5, False))
    assert not tour.grade_missed(missed(0.4, False)) and not tour.grade_missed(missed(0.5, True)), "0.5 is found"
    assert "stops with ValueError" in tour.grade_missed(lambda t, m: max(m[:0].tolist())).message


def test_grades_tell_what_was_expected():
    wrong = grade(lambda a: a + 1, [((1,), 2), ((2,), 4)])
    assert not wrong and repr(wrong) == "✗ not yet: case 2, for 2: expected 4, got 3"
    assert repr(grade(len, [(([],), 0)])) == "✓ passed: all 1 cases are right"
    long = grade(lambda a: a, [((np.ones((3, 4), bool),), False)], same=lambda a, b: False)
    assert "a bool array of shape (3, 4) with 12 set" in long.message
    kept = [1, 2]
    cleared = grade(lambda a: a.clear(), [((kept,), None)])
    assert kept == [1, 2], "a reader's function cannot change the cases"
    assert not cleared and "argument 1 was changed" in cleared.message


def test_grades_keep_the_case_that_is_wrong():
    given = torch.arange(3.0)
    wrong = grade(lambda a: a + 1, [((given,), given)], fault=array_fault)
    assert wrong.case[0] is given and wrong.expected is given and torch.equal(wrong.yours, given + 1)
    late = grade(lambda a: a or None, [((1,), 1), ((0,), 0)])
    assert late.message == "case 2, for 0: expected 0, got None", "this function does return something"
    raised = grade(lambda a: a.no_such_thing, [(([given, 2],), 1)])
    assert raised.case == ([given, 2],) and raised.expected == 1
    assert "for [a float32 tensor of shape (3,), 2]: stops with AttributeError" in raised.message
    assert "line" in raised.message
    assert not grade(len, [(([],), 0)]).case


@pytest.mark.parametrize(
    ("function", "expected", "says"),
    [
        (lambda a: None, 3, "expected 3, got None; is a `return` missing?"),
        (lambda a: 3 + int(a["x"].add_(1).isnan().any()), 4, "argument 1 was changed"),
        (lambda a: a.update(y=1) or 4, 4, "argument 1 was changed"),
        (lambda a: a["z"].append(1) or 4, 4, "argument 1 was changed"),
        (lambda a: [[1], [2]], 4, "expected 4, got [[1], [2]]; the two cannot be compared (TypeError"),
    ],
)
def test_grades_blame_what_is_to_blame(function, expected, says):
    given = {"x": torch.tensor([1.0, float("nan")]), "z": [1, (2, np.ones(2))]}
    verdict = grade(function, [((given,), expected)], same=lambda value, right: int(value) == right)
    assert not verdict and says in verdict.message
    assert grade(lambda a: 4, [((given,), 4)])


def test_faults_of_arrays_name_what_differs():
    right = torch.arange(6.0).reshape(2, 3)
    assert array_fault(right.clone(), right) == "" and array_fault(right.bfloat16(), right) == ""
    assert "expected a torch.Tensor, got a list" in array_fault([1.0], right)
    assert "expected a torch.Tensor, got a numpy.ndarray" in array_fault(right.numpy(), right)
    assert array_fault(right.T, right) == "expected shape (2, 3), got (3, 2)"
    assert "dtype torch.float32, got torch.int64" in array_fault(right.long(), right)
    wrong = right.clone()
    wrong[1, 0] = 7
    assert array_fault(wrong, right) == "element [1, 0] is 7, expected 3 (17% of the elements differ)"
    grade_of = grade(lambda a: a + 1, [((right,), right)], fault=array_fault)
    assert "case 1, for a float32 tensor of shape (2, 3): element [0, 0] is 1, expected 0" in grade_of.message
    assert grade(lambda a: a, [((right,), right)], fault=array_fault)
    assert array_fault(np.array([True, False]), np.array([True, True])).startswith("element [1] is 0, expected 1")
