"""Which predicted mask belongs to which true one: greedily, by trying everything, as the official recall does."""

from itertools import permutations

import numpy as np


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
