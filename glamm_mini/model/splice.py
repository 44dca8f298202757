"""Splice: image features go where `<image>` stands, region vectors where `<bbox>` stands.

A row of ids has one `<image>` (index -200) at most; it makes room for all image tokens, so that every position after
it moves. Labels and attention move with it.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclass
class Spliced:
    """What the language model is fed: T positions a row, image features included.

    embeds: (R, T, D). attention: (R, T) bool. labels: (R, T) or None. ids: (R, T), IMAGE_TOKEN_INDEX at image
    features. segments: (R, T) or None, see `packed_attention`.
    """

    embeds: torch.Tensor
    attention: torch.Tensor
    labels: torch.Tensor | None
    ids: torch.Tensor
    segments: torch.Tensor | None


def check_rows(rows: int, images: int, image_index, boxes) -> None:
    """One entry of `image_index` (-1, or below `images`) and one of `boxes` for every row, or a ValueError."""
    for name, given in (("image_index", image_index), ("boxes", boxes)):
        if len(given) != rows:
            raise ValueError(f"{name} has {len(given)} entries for {rows} rows; give one for each conversation")
    worst = max((int(i) for i in image_index), default=-1)
    if worst >= images:
        raise ValueError(f"image_index names image {worst}, but the batch has {images} images (numbered from 0)")


def put_regions(embeds, ids, bbox_id, regions, counts):
    """Replace the k-th `<bbox>` of each row by the row's k-th region vector.

    embeds (R, L, D) token embeddings of ids (R, L); regions (sum of counts, D), counts: boxes per row, or None.
    A row that was given no boxes (None) keeps the plain embedding of `<bbox>`. Raises ValueError on any other
    mismatch (the official code drops surplus regions silently and spreads a single one over all tokens).
    """
    is_box = ids == bbox_id
    tokens = is_box.sum(1).tolist()
    for row, (have, want) in enumerate(zip(counts, tokens, strict=True)):
        if have is not None and have != want:
            raise ValueError(
                f"row {row} has {want} <bbox> in its text but {have} boxes; give one box for each <bbox>, in order"
            )
    if not any(counts):
        return embeds
    with_boxes = torch.tensor([bool(n) for n in counts], device=ids.device)
    return embeds.masked_scatter((is_box & with_boxes[:, None])[..., None], regions.to(embeds.dtype))


def put_images(embeds, ids, attention, labels, segments, features, image_index) -> Spliced:
    """Make room for image features at `<image>`.

    embeds (R, L, D); ids, attention, labels, segments (R, L); features (I, P, D); image_index: per row the image's
    number, or -1 for a row without image. Rows are padded on the right to the longest; T <= L + P - 1.
    """
    rows = []
    for r in range(ids.shape[0]):
        at = (ids[r] == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
        image = int(image_index[r])
        if len(at) > 1 or (len(at) == 1) != (image >= 0):
            raise ValueError(
                f"row {r} has {len(at)} <image> and is given {'an' if image >= 0 else 'no'} image; "
                "expected one <image> for a row with an image and none otherwise"
            )
        rows.append(_one_row(r, at, image, embeds, ids, attention, labels, segments, features))
    length = max(row[0].shape[0] for row in rows)
    fill = (0, False, IGNORE_INDEX, 0, 0)
    columns = [_pad(column, length, value) for column, value in zip(zip(*rows, strict=True), fill, strict=True)]
    return Spliced(*columns)


def _one_row(r, at, image, embeds, ids, attention, labels, segments, features):
    columns = (embeds[r], attention[r], _row(labels, r), ids[r], _row(segments, r))
    if not at:
        return columns
    k, patches = at[0], features.shape[1]
    segment = None if segments is None else segments[r, k].expand(patches)
    middle = (
        features[image].to(embeds.dtype),
        attention[r, k].expand(patches),
        ids.new_full((patches,), IGNORE_INDEX),
        ids.new_full((patches,), IMAGE_TOKEN_INDEX),
        segment,
    )
    return tuple(None if c is None else torch.cat([c[:k], m, c[k + 1 :]]) for c, m in zip(columns, middle, strict=True))


def _row(x, r):
    return None if x is None else x[r]


def _pad(column, length, value):
    if column[0] is None:
        return None
    out = column[0].new_full((len(column), length, *column[0].shape[1:]), value)
    for r, x in enumerate(column):
        out[r, : x.shape[0]] = x
    return out


def language_states(language_model, spliced: Spliced) -> torch.Tensor:
    """Last hidden states (R, T, D) of a spliced batch, after the final norm."""
    return language_output(language_model, spliced).last_hidden_state


def language_output(language_model, spliced: Spliced, **more):
    """What transformers' language model returns for a spliced batch, without logits; `more` goes to it."""
    mask, positions = spliced.attention, None
    if spliced.segments is not None:
        mask, positions = packed_attention(spliced.segments, spliced.attention)
    return language_model.model(
        inputs_embeds=spliced.embeds, attention_mask=mask, position_ids=positions, use_cache=False, **more
    )


def packed_attention(segments: torch.Tensor, attention: torch.Tensor):
    """Several conversations about one image in one row: who sees whom, and who stands where.

    segments (R, T): 0 is the shared beginning (up to and with the image), k > 0 the k-th conversation, in rising
    order. A conversation sees the beginning and itself, and counts its positions as if it stood right behind it:
    the same numbers as one row each, with the image's keys and values computed once.
    Returns a mask (R, 1, T, T), True where a query may look, and position ids (R, T).
    """
    t = segments.shape[1]
    index = torch.arange(t, device=segments.device)
    same = segments[:, :, None] == segments[:, None, :]
    shared = (segments == 0)[:, None, :]
    causal = index[:, None] >= index[None, :]
    mask = (same | shared) & causal & attention[:, None, :]
    mask = mask | torch.eye(t, dtype=torch.bool, device=segments.device)  # padding sees itself: no empty softmax
    changed = torch.ones_like(segments, dtype=torch.bool)
    changed[:, 1:] = segments[:, 1:] != segments[:, :-1]
    start = torch.where(changed, index, 0).cummax(1).values
    beginning = ((segments == 0) & attention).sum(1, keepdim=True)
    positions = torch.where(segments == 0, index, index - start + beginning)
    return mask[:, None], positions


@contextmanager
def last_states(model):
    """A list that every call of a transformers model adds its last hidden states (R, T, D) to, while the block runs.

    `output_hidden_states` would keep those of all layers: 160 MB for each image at the 7B size in bfloat16.
    """
    states = []
    hook = model.register_forward_hook(lambda module, given, out: states.append(out.last_hidden_state))
    try:
        yield states
    finally:
        hook.remove()


def pad_left(spliced):
    """Move the padding of rows without image, which the splice leaves on the right, to the left."""
    length = spliced.attention.shape[1]
    order = torch.argsort(spliced.attention.long(), dim=1, stable=True)  # padding first, the rest in order
    if torch.equal(order, torch.arange(length, device=order.device).expand_as(order)):
        return spliced
    spliced.attention = spliced.attention.gather(1, order)
    spliced.embeds = spliced.embeds.gather(1, order[..., None].expand_as(spliced.embeds))
    spliced.ids = spliced.ids.gather(1, order)
    return spliced
