"""Which thing does a model name next? The true caption up to each `<p>` is given, and the model writes the phrase.

A caption goes through the things from left to right. What is named too early comes again later, and what is passed over
is never said: both are seen here, one phrase at a time, while a caption of the model's own hides what began it.
"""

from collections import Counter
from collections.abc import Iterable

import torch

from glamm_mini.assistant.assistant import Assistant
from glamm_mini.data.sample import Sample
from glamm_mini.model.tokens import PHRASE_END, PHRASE_START
from glamm_mini.storybook.scores.same_phrase import stated_in, storybook_similarity

VERDICTS = ("next", "later", "earlier", "attribute", "absent")
"""The next thing's phrase; one of a thing that comes later, or came before; a class that is in the picture, with wrong
attributes; a class that is not."""
LONGEST = 16
"""Tokens of a phrase, its end with it."""


def next_phrases(glamm: Assistant, samples: Iterable[Sample]) -> list[tuple[bool, str, str, str]]:
    """For each phrase about a thing: whether it is its caption's first, the verdict, the true phrase, what was written.

    samples: of the task gcg, as `evaluation_samples` draws them; one conversation each.
    """
    found = []
    for sample in samples:
        [[turn]], facts = sample.conversations, sample.extras["truth"][0]["phrases"]
        pieces = turn.answer.split(PHRASE_START)
        names = [piece.partition(PHRASE_END)[0].strip() for piece in pieces[1:]]
        asked = [k for k, known in enumerate(facts) if known and known["members"]]
        if not asked:
            continue
        begun = [PHRASE_START.join(pieces[: k + 1]) + PHRASE_START for k in asked]
        written = continued(glamm, sample, turn.question, begun)
        there = {thing["cls"] for thing in sample.extras["things"]} | set(sample.extras["stuff"])
        for k, phrase in zip(asked, written, strict=True):
            found.append((k == asked[0], verdict(k, phrase, names, facts, there), names[k], phrase))
    return found


def verdict(k: int, phrase: str, names: list[str], facts: list[dict | None], there: set[str]) -> str:
    """One of VERDICTS for a phrase that was written in place of the caption's number `k`.

    names and facts: words and attributes of all phrases of the caption. there: classes in the picture.
    """
    same = [storybook_similarity(name, phrase, known) == 1 for name, known in zip(names, facts, strict=True)]
    if same[k]:
        return "next"
    if any(same[k + 1 :]):
        return "later"
    if any(same[:k]):
        return "earlier"
    return "attribute" if stated_in(phrase)["cls"] in there else "absent"


def continued(glamm: Assistant, sample: Sample, question: str, begun: list[str]) -> list[str]:
    """What the model writes behind each of the beginnings of an answer, up to the end of the phrase."""
    model, processor = glamm.model, glamm.processor
    rows = [processor.encode([(question, text)])[0] for text in begun]
    end = processor.tokenizer.eos_token_id
    batch = processor.prompts([row[:-1] if row[-1] == end else row for row in rows])
    stops = [processor.config.tokens.phrase_end, end]
    with torch.inference_mode():
        out = model.generate(
            **batch.to(model.device),
            image_features=glamm.encode(sample.image),
            image_index=torch.zeros(len(rows), dtype=torch.long),
            max_new_tokens=LONGEST,
            do_sample=False,
            eos_token_id=stops,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
    return [processor.decode(ids).partition(PHRASE_END)[0].strip() for ids in out.sequences]


def table(found: list[tuple[bool, str, str, str]]) -> str:
    """Shares of each verdict, of all phrases and of first ones, in lines."""
    lines = [f"{'what is named':12}{'all':>8}{'first':>8}"]
    groups = [found, [one for one in found if one[0]]]
    counts = [Counter(one[1] for one in group) for group in groups]
    for name in VERDICTS:
        shares = (count[name] / max(1, len(group)) for count, group in zip(counts, groups, strict=True))
        lines.append(f"{name:12} " + "".join(f"{share:8.1%}" for share in shares))
    lines.append(f"{'phrases':12} " + "".join(f"{len(group):8}" for group in groups))
    return "\n".join(lines)
