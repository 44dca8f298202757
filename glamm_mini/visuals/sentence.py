"""The answer's sentence cut into runs: plain words and phrases, each phrase with the number of its mask."""

from typing import NamedTuple


class Run(NamedTuple):
    """A stretch of the sentence. phrase: index into `answer.phrases`, or None for plain words."""

    text: str
    phrase: int | None = None


def sentence_runs(answer) -> list[Run]:
    """Cut `answer.caption` at the spans of its phrases; joined, the runs are the caption again.

    A phrase whose span is None, is out of range or overlaps an earlier one gets no run (see `loose_phrases`).
    """
    runs, at = [], 0
    for index in _in_order(answer):
        start, end = answer.phrases[index].span
        runs += [Run(answer.caption[at:start]), Run(answer.caption[start:end], index)]
        at = end
    return [run for run in (*runs, Run(answer.caption[at:])) if run.text]


def loose_phrases(answer) -> list[Run]:
    """The masks that no words of the caption belong to, each with a name to show behind the sentence."""
    placed, alone = _in_order(answer), len(answer.phrases) == 1
    loose = [(i, phrase) for i, phrase in enumerate(answer.phrases) if i not in placed]
    return [Run(phrase.text or ("mask" if alone else f"mask {i + 1}"), i) for i, phrase in loose]


def question_words(answer) -> str:
    """The question with each `<bbox>` spelled out as "[box 1]", "[box 2]" ..."""
    first, *others = (answer.question or "").split("<bbox>")
    text = first + "".join(f"[box {k}]{piece}" for k, piece in enumerate(others, start=1))
    return " ".join(text.split())


def _in_order(answer) -> list[int]:
    """Indices of the phrases that have a place in the caption, from left to right."""
    spans = [(tuple(p.span), i) for i, p in enumerate(answer.phrases) if p.span is not None]
    kept, at = [], 0
    for (start, end), index in sorted(spans):
        if at <= start < end <= len(answer.caption):
            kept.append(index)
            at = end
    return kept
