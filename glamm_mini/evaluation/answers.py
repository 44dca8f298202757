"""Short answers to questions: right or wrong, however they are written."""

import re

NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)}


def normalize_answer(text: str) -> str:
    """Lower case, no punctuation, single blanks, number words as digits: " Three!" and "3" are equal."""
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(DIGITS.get(word, word) for word in words)


def answer_accuracy(truths: list[str], answers: list[str]) -> float | None:
    """Share of answers that equal the truth after `normalize_answer`; None without questions."""
    if not truths:
        return None
    pairs = zip(truths, answers, strict=True)
    return sum(normalize_answer(truth) == normalize_answer(answer) for truth, answer in pairs) / len(truths)
