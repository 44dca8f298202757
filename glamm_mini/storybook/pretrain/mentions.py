"""Things that questions name, found in rows of token ids: where a word stands, and which patches it speaks of."""

from dataclasses import dataclass

import torch

from glamm_mini.model.tokens import IGNORE_INDEX
from glamm_mini.storybook.language import vocabulary
from glamm_mini.storybook.language.words import PATTERN_NAMES, SIZE_NAMES, names_of, plural
from glamm_mini.storybook.pretrain.dense_labels import ATTRIBUTES, KINDS, DenseLabels


@dataclass
class Mention:
    """A noun of a row, at `place` among its ids, with what it and the words before it state: attribute to index."""

    row: int
    place: int
    stated: dict[str, int]


class MentionFinder:
    """Finds "large red boat" in ids. Only what is not supervised is searched: questions, not answers."""

    def __init__(self, tokenizer):
        self.nouns: dict[tuple[int, ...], int] = {}
        for index, kind in enumerate(KINDS):
            many = [plural(name) for name in names_of(kind) if kind in vocabulary.CLASSES]
            for name in (*names_of(kind), *many):
                self.nouns[tuple(tokenizer.convert_tokens_to_ids(name.split()))] = index
        spoken = {"colour": {c: (c,) for c in vocabulary.COLOURS}, "pattern": PATTERN_NAMES, "size": SIZE_NAMES}
        self.adjectives = {
            tokenizer.convert_tokens_to_ids(word): (field, ATTRIBUTES[field].index(value))
            for field, values in spoken.items()
            for value, words in values.items()
            for word in words
        }

    def __call__(self, ids: torch.Tensor, labels: torch.Tensor) -> list[Mention]:
        """ids, labels (R, L). Where a question names one thing alone, its last position counts as a mention too:
        there the answer begins, and must know what it is about."""
        found = []
        for row, (words, learned) in enumerate(zip(ids.tolist(), (labels != IGNORE_INDEX).tolist(), strict=True)):
            question: list[Mention] = []
            for place, answer in enumerate(learned):
                if not answer:
                    mention = self._mention(row, words, place)
                    question += [mention] if mention else []
                    continue
                if len(question) == 1:
                    found.append(Mention(row, place - 1, question[0].stated))
                found += question
                question = []
        return found

    def _mention(self, row: int, words: list[int], place: int) -> Mention | None:
        """What the noun that ends at `place` states, with the adjectives before it."""
        for first in (place - 1, place):
            kind = self.nouns.get(tuple(words[max(0, first) : place + 1]))
            if kind is not None:
                break
        else:
            return None
        stated = {"kind": kind}
        while first > 0 and words[first - 1] in self.adjectives:
            first -= 1
            stated.setdefault(*self.adjectives[words[first]])
        return Mention(row, place, stated)


def mention_labels(find: MentionFinder, batch: dict, picture: DenseLabels) -> dict[str, torch.Tensor]:
    """What PointAid needs of a batch whose row r is about picture r: `mentions` (M, 2) row and place, `mentioned`
    (M, P)."""
    found = find(batch["input_ids"], batch["labels"])
    at = torch.tensor([(mention.row, mention.place) for mention in found], dtype=torch.long).reshape(-1, 2)
    return {"mentions": at, "mentioned": mentioned_patches(found, picture)}


def mentioned_patches(mentions: list[Mention], picture: DenseLabels) -> torch.Tensor:
    """(M, P) float: 1 at the patches of which all is true that a mention states. Row r of ids is about picture r."""
    grid = picture.has_box.shape[1:]
    found = [torch.ones(grid, dtype=torch.bool) for _ in mentions]
    for mention, here in zip(mentions, found, strict=True):
        for field, index in mention.stated.items():
            here &= picture.attributes[field][mention.row] == index
    return torch.stack(found).flatten(1).float() if found else torch.zeros(0, grid.numel())
