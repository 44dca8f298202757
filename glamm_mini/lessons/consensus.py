"""CIDEr-D: how much a caption shares with its references, rare words counting more."""

from collections import Counter

import numpy as np


def pieces(text, n):
    """How often each run of n words stands in a text whose words are separated by blanks: a Counter of tuples."""
    words = text.split()
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))


def weighted(counts, seen, pictures):
    """Counts times rarity, log(pictures / pictures whose references have the piece): a dict of numbers >= 0."""
    return {piece: count * np.log(pictures / max(seen[piece], 1)) for piece, count in counts.items()}


def clipped_cosine(mine, theirs):
    """Cosine of two dicts of weights, 0..1; saying a piece more often than the reference does not help."""
    shared = sum(min(mine[piece], theirs[piece]) * theirs[piece] for piece in mine.keys() & theirs.keys())
    lengths = np.sqrt(sum(w * w for w in mine.values()) * sum(w * w for w in theirs.values()))
    return shared / lengths if lengths else 0.0


def consensus(references, captions):
    """CIDEr-D of each caption, 0..10: references is a list of lists of texts, captions a list of texts -> (B,).

    Texts are tokenised: lower case, no punctuation. What counts as rare is taken from these references, so figures
    of different sets can't be compared.
    """
    scores = np.zeros(len(captions))
    for n in (1, 2, 3, 4):
        seen = Counter(piece for texts in references for piece in set().union(*(pieces(text, n) for text in texts)))
        for k, caption in enumerate(captions):
            mine = weighted(pieces(caption, n), seen, len(captions))
            for text in references[k]:
                theirs = weighted(pieces(text, n), seen, len(captions))
                gap = len(caption.split()) - len(text.split())
                close = clipped_cosine(mine, theirs) * np.exp(-(gap**2) / 72)  # 72 = 2 * 6 words squared
                scores[k] += 10 * close / len(references[k]) / 4
    return scores
