"""Samples to one batch for the model: one row an image, all its conversations packed behind it."""

import numpy as np
import torch

from glamm_mini.data.sample import Sample, Turn
from glamm_mini.model.tokens import BBOX, IGNORE_INDEX, SEG
from glamm_mini.processing.processor import GlammProcessor, pad_rows


class Collate:
    """Callable: list of Samples to the keyword arguments of the model, with counts for the `fixed` losses.

    pack: conversations of an image share one row and the image's features (see model.splice.packed_attention).
    Official training gives each conversation a row of its own, as pack=False does. A row is cut to the longest that
    the model takes; masks and boxes of a [SEG] or <bbox> behind the cut are left out with it.
    """

    def __init__(self, processor: GlammProcessor, pack: bool = True):
        self.processor = processor
        self.pack = pack

    def __call__(self, samples: list[Sample]) -> dict:
        for sample in samples:
            for turn in (turn for turns in sample.conversations for turn in turns):
                _check(sample, turn)
        with_image = [s for s in samples if s.image is not None]
        rows, image_index, boxes, masks = [], [], [], []
        for sample in samples:
            own = self._rows_of(sample)
            rows += [row for row, _ in own]
            image_index += [len(masks) if sample.image is not None else -1] * len(own)
            boxes += [self._boxes(sample, turns, ids) for (ids, _, _), turns in own]
            if sample.image is not None:
                masks.append(torch.cat([self._masks(sample, turns, ids) for (ids, _, _), turns in own]))
        ids, labels, segments = zip(*rows, strict=True)
        pad = self.processor.tokenizer.pad_token_id
        batch = pad_rows(ids, labels, segments if self.pack else None, pad)
        batch |= {"image_index": torch.tensor(image_index), "boxes": boxes}
        if with_image:
            batch |= self.processor.images([s.image for s in with_image])
            batch["masks"] = masks
        batch["num_tokens"] = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
        batch["num_masks"] = sum(len(m) for m in masks)
        batch["num_images"] = len(with_image)
        return batch

    def _rows_of(self, sample: Sample) -> list[tuple[tuple, list[Turn]]]:
        """The sample's rows, each its ids, labels and segments, and the turns that it holds."""
        if not sample.conversations:
            raise ValueError(f"sample {sample.image_id!r} has no conversation; leave it out of the data")
        texts = [[(t.question, t.answer) for t in turns] for turns in sample.conversations]
        if self.pack and sample.image is not None:
            # A first conversation that is too long alone is cut; later ones are left out whole.
            row = tuple(column[: self.processor.room] for column in self.processor.encode_packed(texts))
            return [(row, [t for turns in sample.conversations[: max(1, max(row[2]))] for t in turns])]
        encoded = [self.processor.encode(turns, sample.image is not None, truncate=True) for turns in texts]
        # Text alone has no shared beginning, so that the whole row is one segment.
        rows = [(ids, labels, [0] * len(ids)) for ids, labels in encoded]
        return list(zip(rows, sample.conversations, strict=True))

    def _boxes(self, sample: Sample, turns: list[Turn], ids: list[int]):
        """One box for each <bbox> that the row holds; None for a row without."""
        boxes = [t.boxes for t in turns if len(t.boxes)]
        count = ids.count(self.processor.config.tokens.bbox)
        if not boxes or not count:
            return None
        return self.processor.normalize_boxes(np.concatenate(boxes)[:count], sample.image.shape[:2])

    def _masks(self, sample: Sample, turns: list[Turn], ids: list[int]) -> torch.Tensor:
        """One mask (M, H, W) for each [SEG] that the row holds."""
        found = [t.masks for t in turns if len(t.masks)] or [np.zeros((0, *sample.image.shape[:2]), bool)]
        return torch.from_numpy(np.concatenate(found)[: ids.count(self.processor.config.tokens.seg)])


def _check(sample: Sample, turn: Turn) -> None:
    """Counts must agree by construction; a mismatch names the sample instead of training on shifted masks."""
    for what, have, want in (
        (f"masks for {SEG} of the answer", len(turn.masks), turn.answer.count(SEG)),
        (f"boxes for {BBOX} of the question", len(turn.boxes), turn.question.count(BBOX)),
    ):
        if have != want:
            raise ValueError(f"sample {sample.image_id!r}: {have} {what}, which holds {want}: {turn.question!r}")
    if sample.image is None and (len(turn.masks) or len(turn.boxes)):
        raise ValueError(f"sample {sample.image_id!r} has masks or boxes but no image that they lie in")
    if len(turn.masks) and turn.masks.shape[1:] != sample.image.shape[:2]:
        raise ValueError(
            f"sample {sample.image_id!r}: masks of {turn.masks.shape[1:]} for an image of {sample.image.shape[:2]} "
            "(height, width); masks have the size of the image"
        )
