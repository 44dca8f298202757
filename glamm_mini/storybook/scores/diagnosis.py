"""Why a grounded caption lost points: each true phrase that was not found gets one cause, named by rule.

The rules read the fixed protocol's pairs. A mask and a true mask are about the same thing from an IoU of SAME on;
a figure says how many phrases were lost, a cause says what to look at in the picture.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

from glamm_mini.evaluation.gcg import GroundedImage, Pair, optimal_pairs
from glamm_mini.evaluation.similarity import THRESHOLD
from glamm_mini.storybook.scores.same_phrase import meaning, stated_in

FOUND = 0.5
"""From this IoU on a pair counts as found, as in the protocol's recall."""
SAME = 0.25
"""From this IoU on a mask is taken to mean the thing, so that its wrong words are wrong words for that thing."""

KINDS = {
    "neighbour": "mask of a neighbor",
    "class": "wrong class",
    "missed": "missed",
    "colour": "wrong color",
    "count": "wrong count",
    "pattern": "wrong pattern",
    "size": "wrong size",
    "words": "wrong words",
    "rough": "mask rough",
    "surplus": "surplus",
}
"""Every kind of fault, the one that misleads a reader most first, with its name in a sentence."""

ATTRIBUTES = {"cls": "class", "colour": "colour", "count": "count", "pattern": "pattern", "size": "size"}


@dataclass(frozen=True)
class Fault:
    """kind: one of KINDS. detail: what it is about, such as "mushroom for balloon"."""

    kind: str
    detail: str


def diagnose(image: GroundedImage) -> list[Fault]:
    """The faults of one answer, in the order of KINDS: one for each true phrase that was not found, and surplus masks.

    A mask with the right words for one thing that lies on another is a mask of a neighbor; the other thing is missed.
    """
    pairs = {pair.truth: pair for pair in optimal_pairs(image)}
    right = {pair.prediction for pair in pairs.values() if _is_found(pair)}
    lost = [k for k in range(len(image.truth.masks)) if k not in pairs or not _is_found(pairs[k])]
    strayed: dict[int, tuple[int, int]] = {}  # lost truth: (its prediction, the truth that this lies on)
    for k in lost:
        found = _on_neighbour(image, k, right | {prediction for prediction, _ in strayed.values()})
        if found:
            strayed[k] = found
    used = right | {prediction for prediction, _ in strayed.values()}
    faults = []
    for k in lost:
        if k in strayed:
            faults.append(Fault("neighbour", f"{_name(image, k)} drawn on {_name(image, strayed[k][1])}"))
            continue
        pair = pairs.get(k)
        if pair is None or pair.prediction in used or not (pair.right or pair.iou >= SAME):
            faults.append(Fault("missed", _name(image, k)))
            continue
        used.add(pair.prediction)
        faults.append(Fault("rough", f"{_name(image, k)} {_iou(pair)}") if pair.right else _wrong_words(image, pair))
    surplus = [j for j in range(len(image.prediction.masks)) if j not in used]
    faults += [Fault("surplus", _bare(_phrase(image, j)) or "a mask without words") for j in surplus]
    order = list(KINDS)
    return sorted(faults, key=lambda fault: order.index(fault.kind))


def cause(faults: list[Fault], at_most: int = 3) -> str:
    """The first `at_most` faults in words, like ones joined: "wrong class: mushroom for balloon; missed: fence, sky".

    The rest is counted, without surplus masks: "and 2 more".
    """
    shown: dict[str, list[str]] = {}
    for fault in faults[:at_most]:
        shown.setdefault(fault.kind, []).append(fault.detail)
    rest = sum(fault.kind != "surplus" for fault in faults[at_most:])
    parts = [f"{KINDS[kind]}: {', '.join(details)}" for kind, details in shown.items()]
    return "; ".join([*parts, f"and {rest} more"] if rest else parts) or "nothing wrong"


def tally(images: list[GroundedImage]) -> dict[str, int]:
    """How many true phrases were found ("right") or lost by each kind of KINDS, and how many masks were surplus.

    All numbers but "surplus" add up to the number of true phrases.
    """
    counts = Counter(fault.kind for image in images for fault in diagnose(image))
    phrases = sum(len(image.truth.masks) for image in images)
    lost = sum(number for kind, number in counts.items() if kind != "surplus")
    return {"right": phrases - lost, **{kind: counts[kind] for kind in KINDS}}


def image_score(image: GroundedImage) -> float:
    """Mean of the image's own fixed mIoU and recall, 0..1; 1.0 without true masks."""
    if not image.truth.masks:
        return 1.0
    pairs = optimal_pairs(image)
    return sum(pair.iou + _is_found(pair) for pair in pairs) / (2 * len(image.truth.masks))


def _is_found(pair: Pair) -> bool:
    return pair.right and pair.iou >= FOUND


def _on_neighbour(image: GroundedImage, k: int, used: set[int]) -> tuple[int, int] | None:
    """A free prediction with the right words for truth k, whose mask fits another truth: both their numbers."""
    ious = np.nan_to_num(image.ious, nan=1.0)
    for j in range(min(ious.shape[1], image.similarities.shape[1])):
        other = int(np.argmax(ious[:, j]))
        strays = other != k and ious[other, j] >= FOUND and ious[k, j] < SAME
        # Words that fit the other thing too, such as those of its twin, are not stray words.
        if j not in used and strays and image.similarities[k, j] >= THRESHOLD > image.similarities[other, j]:
            return j, other
    return None


def _wrong_words(image: GroundedImage, pair: Pair) -> Fault:
    phrase, rough = _phrase(image, pair.prediction), "" if pair.iou >= FOUND else f" {_iou(pair)}"
    said = stated_in(phrase)
    meant = meaning(image.truth.labels[pair.truth], image.truth.attributes[pair.truth])
    for key, kind in ATTRIBUTES.items():
        if said[key] is not None and meant[key] is not None and said[key] != meant[key]:
            thing = "" if key == "cls" else f" ({meant['cls'] or _name(image, pair.truth)})"
            return Fault(kind, f"{said[key]} for {meant[key]}{thing}{rough}")
    words = f'"{_bare(phrase)}"' if phrase.strip() else "none"
    return Fault("words", f"{words} for {_name(image, pair.truth)}{rough}")


def _iou(pair: Pair) -> str:
    return f"(IoU {pair.iou:.2f})"


def _phrase(image: GroundedImage, j: int) -> str:
    return image.prediction.phrases[j] if j < len(image.prediction.phrases) else ""


def _name(image: GroundedImage, k: int) -> str:
    return _bare(image.truth.labels[k])


def _bare(phrase: str) -> str:
    """A phrase without its article and capital: "A red kite" is "red kite"."""
    return re.sub(r"^(a|an|the)\s+", "", phrase.strip().lower())
