"""Two processes, as torchrun starts them, write the predictions of one, and score them alike."""

import json
from pathlib import Path

import pytest
import training_toy

from glamm_mini.cli import main

LIMIT = 2


def _evaluate(out: Path, processes: int) -> dict:
    """The figures that the command writes: alone, in this process; several, in processes of their own."""
    words = f"evaluate refseg --model tiny --data storybook --split test --limit {LIMIT} --device cpu".split()
    words += ["--out", str(out), "--json", str(out.with_suffix(".json"))]
    if processes == 1:
        with pytest.raises(SystemExit) as end:
            main.main(words)
        assert not end.value.code
    else:
        training_toy.together(processes, *words, program=main.__file__)
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.slow
def test_two_processes_predict_and_score_what_one_does(tmp_path):
    figures = [_evaluate(tmp_path / name, processes) for name, processes in (("one", 1), ("two", 2))]
    assert figures[0] == figures[1] and figures[0]["refseg"]["ciou"] > 0
    files = [
        {p.relative_to(tmp_path / n): p.read_text() for p in (tmp_path / n).rglob("*.json")} for n in ("one", "two")
    ]
    assert files[0] == files[1] and len(files[0]) == LIMIT + 2  # the samples, the settings and the ground truth
