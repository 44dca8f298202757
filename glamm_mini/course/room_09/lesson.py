"""Talk and measure: which mask answers which, average precision, and CIDEr, each from scratch."""

from collections import Counter
from itertools import permutations

import numpy as np

# ---- matching ----
# Which predicted mask belongs to which true one: greedily, by trying everything, as the official recall does.


def greedy_pairs(ious):
    """Pairs (row, column) of an IoU matrix (G, P), the largest first, each row and column once, while IoU is above 0.

    The official mIoU pairs masks like this. The largest pair may take a mask that another one needs.
    """
    left, pairs = ious.copy(), []
    while left.size and left.max() > 0:
        row, column = np.unravel_index(left.argmax(), left.shape)
        pairs.append((int(row), int(column)))
        left[row, :] = left[:, column] = 0
    return pairs


def best_pairs(ious):
    """The one-to-one pairs (row, column) of an IoU matrix (G, P) with the largest sum, found by trying all of them.

    G and P of at most 7 or so: the number of tries grows like a factorial.
    """
    if len(ious) > ious.shape[1]:
        return sorted((row, column) for column, row in best_pairs(ious.T))
    rows = range(len(ious))
    tries = permutations(range(ious.shape[1]), len(ious))
    columns = max(tries, key=lambda columns: ious[list(rows), list(columns)].sum())
    return list(zip(rows, columns, strict=True))


def stopping_matches(ious, agree):
    """The pairs (row, column) that the official mask recall counts, the largest IoU first.

    ious: (G, P) in 0..1. agree: (G, P) bool, whether label and phrase mean the same. It stops at the first pair that
    fails, be it for its IoU below 0.5 or for its words.
    """
    left, matches = ious.copy(), []
    while left.size:
        row, column = np.unravel_index(left.argmax(), left.shape)
        if left[row, column] < 0.5 or not agree[row, column]:
            break
        matches.append((int(row), int(column)))
        left[row, :] = left[:, column] = 0
    return matches


# ---- average precision ----
# As COCO's evaluation computes it for masks, from IoU matrices and scores.


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


# ---- CIDEr ----
# CIDEr-D: how much a caption shares with its references, rare words counting more.


def ngrams(text, n):
    """How often each run of n words stands in a text whose words are separated by spaces: a Counter of tuples."""
    words = text.split()
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


def tf_idf(counts, seen, pictures):
    """Counts times rarity, log(pictures / pictures whose references have the n-gram): a dict of numbers >= 0."""
    return {gram: count * np.log(pictures / max(seen[gram], 1)) for gram, count in counts.items()}


def clipped_cosine(mine, theirs):
    """Cosine of two dicts of weights, 0..1; saying an n-gram more often than the reference does not help."""
    shared = sum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in mine.keys() & theirs.keys())
    lengths = np.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
    return shared / lengths if lengths else 0.0


def cider(references, captions):
    """CIDEr-D of each caption, 0..10: references is a list of lists of texts, captions a list of texts -> (B,).

    Texts are tokenized: lower case, no punctuation. What counts as rare is taken from these references, so figures
    of different sets can't be compared.
    """
    scores = np.zeros(len(captions))
    for n in (1, 2, 3, 4):
        seen = Counter(gram for texts in references for gram in set().union(*(ngrams(text, n) for text in texts)))
        for k, caption in enumerate(captions):
            mine = tf_idf(ngrams(caption, n), seen, len(captions))
            for text in references[k]:
                theirs = tf_idf(ngrams(text, n), seen, len(captions))
                gap = len(caption.split()) - len(text.split())
                close = clipped_cosine(mine, theirs) * np.exp(-(gap**2) / 72)  # 72 = 2 * 6 words squared
                scores[k] += 10 * close / len(references[k]) / 4
    return scores
