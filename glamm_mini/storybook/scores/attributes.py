"""What captions and answers say, against what storybook's record knows: classes, attributes, short answers."""

import re

from glamm_mini.storybook.scores.same_phrase import stated_in

ATTRIBUTES = ("cls", "colour", "pattern", "size")


def region_accuracy(attributes: list[dict], descriptions: list[str]) -> dict:
    """Of region descriptions, the share with the right class, the right colour, and all attributes right.

    attributes: what the record knows of each region. An attribute the record leaves open (stuff has no pattern)
    isn't asked for. Returns class_accuracy, colour and exact (class, colour, pattern and size) in 0..1, None without
    regions.
    """
    if not attributes:
        return {"class_accuracy": None, "colour": None, "exact": None}
    right = {"class_accuracy": 0, "colour": 0, "exact": 0}
    for truth, text in zip(attributes, descriptions, strict=True):
        said = stated_in(text)
        same = {key: said[key] == truth[key] for key in ATTRIBUTES if truth.get(key) is not None}
        right["class_accuracy"] += said["cls"] == truth["cls"]
        right["colour"] += same.get("colour", True)
        right["exact"] += all(same.values())
    return {name: number / len(attributes) for name, number in right.items()}


def mentioned_classes(text: str) -> set[str]:
    """All storybook classes and kinds of stuff that a sentence names, synonyms resolved."""
    words = re.findall(r"[a-z]+", text.lower())
    found, position = set(), 0
    while position < len(words):
        alone = stated_in(words[position])["cls"]
        if position + 1 < len(words):
            following = stated_in(words[position + 1])["cls"]
            together = stated_in(f"{words[position]} {words[position + 1]}")["cls"]
            if together not in (alone, following, None):  # a name of two words, such as "night sky"
                found.add(together)
                position += 2
                continue
        if alone:
            found.add(alone)
        position += 1
    return found


def mention_scores(references: list[list[str]], present: list[set[str]], captions: list[str]) -> dict:
    """Do captions name what is there? Shares over all images of a set; None for 0 / 0.

    class_recall: of the classes that the references name, those the caption names too.
    class_precision: of the classes that the caption names, those that are in the picture.
    """
    wanted = hit = named = right = 0
    for texts, there, caption in zip(references, present, captions, strict=True):
        said = mentioned_classes(caption)
        expected = set().union(*(mentioned_classes(text) for text in texts))
        wanted += len(expected)
        hit += len(expected & said)
        named += len(said)
        right += len(said & (there | expected))
    precision = right / named if named else (0.0 if wanted else None)
    return {"class_recall": hit / wanted if wanted else None, "class_precision": precision}


def unseen_regions(attributes: list[dict], descriptions: list[str], unseen: list[bool]) -> dict | None:
    """class_accuracy, colour and exact over the regions that are marked; None where none is."""
    marked = [k for k, mark in enumerate(unseen) if mark]
    if not marked:
        return None
    figures = region_accuracy([attributes[k] for k in marked], [descriptions[k] for k in marked])
    return {**figures, "regions": len(marked)}
