"""Splice: image features go where `<image>` stands, region vectors where `<bbox>` stands.

A row of ids has one `<image>` (index -200) at most, which makes room for all image tokens: what stands behind it moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from glamm_mini.model.outputs import Boxes, Indices
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX

SLACK = 0.01  # that boxes may leave the picture by: they come from divisions, and may be rounded to half precision


@dataclass
class Spliced:
    """What the language model is fed: T positions a row, image features included."""

    embeds: Tensor  # (R, T, D)
    attention: Tensor  # (R, T) bool, False at padding
    labels: Tensor | None = None  # (R, T), IGNORE_INDEX where nothing is learned
    ids: Tensor | None = None  # (R, T), IMAGE_TOKEN_INDEX at image features
    segments: Tensor | None = None  # (R, T), see `packed_attention`
    images: list[int] | None = None  # (R,), the image of each row, -1 for none


def check_ids(
    ids: Tensor, words: int, attention: Tensor | None, labels: Tensor | None, segments: Tensor | None
) -> None:
    """Raises ValueError that names what has another type or shape than ids (R, L), or a value that it cannot have."""
    given = dict(input_ids=ids, attention_mask=attention, labels=labels, segment_ids=segments)
    for name, x in given.items():
        whole = isinstance(x, Tensor) and (x.dtype in (torch.int64, torch.int32) or name == "attention_mask")
        if (x is not None or x is ids) and not (whole and x.ndim == 2 and x.shape == ids.shape and not x.is_meta):
            shown = f"{x.dtype} {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
            raise ValueError(f"{name} are {shown}; expected whole numbers (R, L), as many as input_ids")
    token = f"ids of {words} words, from 0 on, or"
    odd = {("input_ids", f"{token} {IMAGE_TOKEN_INDEX}"): (ids >= words) | ((ids < 0) & (ids != IMAGE_TOKEN_INDEX))}
    if labels is not None:
        odd["labels", f"{token} {IGNORE_INDEX}"] = (labels >= words) | ((labels < 0) & (labels != IGNORE_INDEX))
    if attention is not None:
        unseen = ~attention.any(1, keepdim=True)
        odd["attention_mask", "1 for a row's tokens, 0 for padding"] = (attention != 0) & (attention != 1) | unseen
    if segments is not None:
        falls = segments.diff(prepend=torch.zeros_like(segments[:, :1])) < 0
        odd["segment_ids", "0 and more, rising"] = falls if attention is None else falls & (attention != 0)
    if torch.stack(list(odd.values())).any():  # asked once: a GPU has to be waited for
        (name, expected), wrong = next(pair for pair in odd.items() if pair[1].any())
        raise ValueError(f"{name} hold {given[name][wrong][0].item()}; expected {expected}")


def rows_about(rows: int, images: int, image_index: Indices | None, boxes: Boxes | None) -> tuple[list[int], Boxes]:
    """The image (-1 for none) and the boxes (N, 4), or None, of every row, or a ValueError; see `forward`."""
    of_rows = list(range(rows)) if images else [-1] * rows
    if image_index is not None:
        try:
            of_rows = [index(i) for i in (image_index.tolist() if isinstance(image_index, Tensor) else image_index)]
        except TypeError as error:
            raise ValueError(f"image_index is {repr(image_index)[:60]}; expected a whole number a row") from error
    boxes = boxes if isinstance(boxes, Sequence | Tensor) else [boxes] * rows
    for name, given in (("image_index", of_rows), ("boxes", boxes)):
        if len(given) != rows:
            raise ValueError(f"{name} has {len(given)} entries for {rows} rows; give one for each conversation")
    if odd := [i for i in of_rows if not -1 <= i < images]:
        raise ValueError(f"image_index names image {odd[0]}, but the batch has {images} images (numbered from 0)")
    given = {r: box for r, box in enumerate(boxes) if box is not None}
    for r, box in given.items():
        if not (isinstance(box, Tensor) and box.is_floating_point() and box.ndim == 2 and box.shape[1] == 4):
            raise ValueError(f"boxes of row {r} are {repr(box)[:60]}; expected a tensor (N, 4) of floats, or None")
    if given:  # checked together: a GPU has to be waited for. RoIAlign crashes on what is not finite.
        every = torch.cat(list(given.values()))
        # Half precision may take the width of a thin box.
        is_one = (torch.lt if every.element_size() > 2 else torch.le)(every[:, :2], every[:, 2:]).all(1)
        if not bool((inside := is_one & ((every > -SLACK) & (every < 1 + SLACK)).all(1)).all()):
            r = [r for r, box in given.items() for _ in range(len(box))][k := inside.tolist().index(False)]
            raise ValueError(f"row {r} has the box {every[k].tolist()}; expected 0 <= x0 < x1 <= 1, and so y0, y1")
    return of_rows, boxes


def put_regions(embeds: Tensor, ids: Tensor, bbox_id: int, regions: Tensor | None, counts: Sequence) -> Tensor:
    """Replace the k-th `<bbox>` of each row by the row's k-th region vector.

    embeds (R, L, D) token embeddings of ids (R, L); regions (sum of counts, D), counts: boxes per row. A row that was
    given none (None) keeps the plain embedding of `<bbox>`; any other mismatch is a ValueError (the official code drops
    surplus regions silently and spreads a single one over all tokens).
    """
    if all(have is None for have in counts):
        return embeds
    is_box = ids == bbox_id
    for row, (have, want) in enumerate(zip(counts, is_box.sum(1).tolist(), strict=True)):
        if have is not None and have != want:
            found = f"{want} <bbox> in its text but {have} boxes"
            raise ValueError(f"row {row} has {found}; give one box for each <bbox>, in order")
    if not any(counts):
        return embeds
    with_boxes = torch.tensor([bool(n) for n in counts], device=ids.device)
    return embeds.masked_scatter((is_box & with_boxes[:, None])[..., None], regions.to(embeds.dtype))


def put_images(
    embeds: Tensor,
    ids: Tensor,
    attention: Tensor,
    labels: Tensor | None,
    segments: Tensor | None,
    features: Sequence[Tensor],
    image_index: Indices,
) -> Spliced:
    """Make room for image features at `<image>`.

    embeds (R, L, D); ids, attention, labels, segments (R, L); features (I, P, D); image_index: per row the image's
    number, or -1 for a row without image. Rows are padded on the right to the longest; T <= L + P - 1.
    """
    rows, images, places = [], [int(i) for i in image_index], (ids == IMAGE_TOKEN_INDEX).cpu()
    for r, image in enumerate(images):
        at = places[r].nonzero().flatten().tolist()
        if len(at) > 1 or (len(at) == 1) != (image >= 0):
            found = f"{len(at)} <image> and is given {'an' if image >= 0 else 'no'} image"
            raise ValueError(f"row {r} has {found}; expected one <image> for a row with an image and none otherwise")
        row = [None if c is None else c[r] for c in (embeds, attention, labels, ids, segments)]
        for k in at:
            # The P positions of the image are seen as `<image>` was and keep its segment and index; none is learned.
            vectors, p = features[image].to(embeds.dtype), len(features[image])
            unlearned, marks = (ids.new_full((p,), index) for index in (IGNORE_INDEX, IMAGE_TOKEN_INDEX))
            seen, segment = (None if c is None else c[r, k].expand(p) for c in (attention, segments))
            middle = vectors, seen, unlearned, marks, segment
            row = [None if c is None else torch.cat([c[:k], m, c[k + 1 :]]) for c, m in zip(row, middle, strict=True)]
        rows.append(row)
    columns = zip(zip(*rows, strict=True), (0, False, IGNORE_INDEX, 0, 0), strict=True)
    return Spliced(*(None if c[0] is None else pad_sequence(c, True, padding_value=x) for c, x in columns), images)


def language_states(language_model: LlamaForCausalLM, spliced: Spliced) -> Tensor:
    """Last hidden states (R, T, D) of a spliced batch, after the final norm."""
    return language_output(language_model, spliced).last_hidden_state


def language_output(language_model: LlamaForCausalLM, spliced: Spliced, **more: bool) -> BaseModelOutputWithPast:
    """What transformers' language model returns for a spliced batch, without logits; `more` goes to it.

    Raises ValueError for packed rows with flash attention, which takes no mask of who sees whom.
    """
    mask, positions = spliced.attention, None
    if spliced.segments is not None:
        kind = language_model.config._attn_implementation
        if "flash" in kind:
            raise ValueError(f"packed rows cannot go through {kind}; use attn_implementation 'sdpa', or do not pack")
        mask, positions = packed_attention(spliced.segments, spliced.attention)
        if kind == "eager":  # which adds its mask to the scores
            mask = torch.zeros_like(mask, dtype=spliced.embeds.dtype).masked_fill(~mask, float("-inf"))
    fed = dict(inputs_embeds=spliced.embeds, attention_mask=mask, position_ids=positions, use_cache=False)
    return language_model.model(**fed, **more)


def packed_attention(segments: Tensor, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Several conversations about one image in one row: who sees whom, and who stands where.

    segments (R, T): 0 is the shared beginning, image included, k > 0 the k-th conversation, in rising order. Each sees
    the beginning and itself, and counts its positions as if it stood right behind it: the same numbers as one row each,
    with the image computed once. Returns a mask (R, 1, T, T), True where a query may look, and position ids (R, T).
    """
    place = torch.arange(segments.shape[1], device=segments.device)
    seen = (segments[:, :, None] == segments[:, None, :]) | (segments == 0)[:, None, :]  # itself and the beginning
    mask = seen & (place[:, None] >= place[None, :]) & attention[:, None, :]
    mask = mask | (place[:, None] == place[None, :])  # padding sees itself: no empty softmax
    changed = segments.diff(prepend=segments[:, :1] - 1) != 0
    start = torch.where(changed, place, 0).cummax(1).values
    beginning = ((segments == 0) & attention).sum(1, keepdim=True)
    positions = torch.where(segments == 0, place, place - start + beginning)
    return mask[:, None], positions


def pad_left(prompt: Spliced, grounding: Tensor | None) -> Spliced:
    """A batch for `generate`, the padding of rows without image, which the splice leaves on the right, moved left.

    Raises ValueError for values that are not finite, as a broken weight gives them: their answers look like any other.
    """
    for name, values in (("pictures or words", prompt.embeds[prompt.attention]), ("grounding images", grounding)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise ValueError(f"the features of the {name} are not finite; look at the pictures and at the weights")
    order = torch.argsort(prompt.attention.long(), dim=1, stable=True)  # padding first, the rest in order
    of_embeds = order[..., None].expand_as(prompt.embeds)
    moved = (x.gather(1, at) for x, at in ((prompt.embeds, of_embeds), (prompt.attention, order)))
    return Spliced(*moved, ids=prompt.ids.gather(1, order), images=prompt.images)
