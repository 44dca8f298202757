"""Average precision of masks, as COCO's evaluation computes it, from IoU matrices and scores."""

import numpy as np


def hits_by_score(ious, scores, bar=0.5):
    """Which predictions find a truth of their own: ious (G, P), scores (P,) -> (P,) bool.

    The surest prediction chooses first, and takes the free truth that it overlaps most, from IoU `bar` on. Of equal
    truths it takes the later one. At most the 100 surest predictions of a picture count in COCO; here all do.
    """
    hits, free = np.zeros(len(scores), bool), np.ones(len(ious), bool)
    for column in np.argsort(-scores, kind="stable"):
        reach = np.flatnonzero(free & (ious[:, column] >= bar))
        if len(reach):
            best = max(reach, key=lambda row: (ious[row, column], row))
            hits[column], free[best] = True, False
    return hits


def precision_recall(hits, scores, truths):
    """Precision and recall after each prediction, the surest first: hits, scores (P,) of all pictures -> (P,), (P,)."""
    found = np.cumsum(hits[np.argsort(-scores, kind="stable")])
    return found / np.arange(1, len(found) + 1), found / truths


def interpolated(precision, recall):
    """Precision at the recalls 0, 0.01 ... 1: the best that is reached there or later, 0 where nothing is. (101,)."""
    best_yet = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return best_yet[np.searchsorted(recall, np.linspace(0, 1, 101))]


def average_precision(ious, scores, bar=0.5):
    """AP at one bar: ious is a list of matrices (G, P), one a picture, scores a list of (P,); 0..1.

    Among equal scores the order of the pictures decides.
    """
    hits = [hits_by_score(i, s, bar) for i, s in zip(ious, scores, strict=True)]
    truths = sum(len(i) for i in ious)
    curve = precision_recall(np.concatenate(hits), np.concatenate(scores), truths)
    return interpolated(*curve).mean()
