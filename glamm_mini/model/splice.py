"""Splice: image features go where `<image>` stands, region vectors where `<bbox>` stands.

A row of ids has one `<image>` (index -200) at most, which makes room for all image tokens: what stands behind it moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from glamm_mini.model.outputs import Indices
from glamm_mini.model.tokens import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclass
class Spliced:
    """What the language model is fed: T positions a row, image features included."""

    embeds: Tensor  # (R, T, D)
    attention: Tensor  # (R, T) bool, False at padding
    labels: Tensor | None = None  # (R, T), IGNORE_INDEX where nothing is learned
    ids: Tensor | None = None  # (R, T), IMAGE_TOKEN_INDEX at image features
    segments: Tensor | None = None  # (R, T), see `packed_attention`
    images: list[int] | None = None  # (R,), the image of each row, -1 for none


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
