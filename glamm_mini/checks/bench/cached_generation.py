"""Generation with a key-value cache against the official way: everything again for every new token."""

import torch
from transformers import LogitsProcessor

from glamm_mini import paths
from glamm_mini.checks.bench.measure import Measured, Report, Setting, paired
from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.model.sam import upscale_logits

CASE, TAG = "case_small", "boxes_forced"
NEW_TOKENS = 64
MASKS = 5


class SegAt(LogitsProcessor):
    """[SEG] at these new tokens and at no others, whatever the weights would say: every answer has as many masks."""

    def __init__(self, seg: int, steps):
        self.seg, self.steps = seg, set(steps)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids (R, S): the S new tokens so far. scores (R, V); a changed copy is returned."""
        scores = scores.clone()
        scores[:, self.seg] = torch.finfo(scores.dtype).max if input_ids.shape[1] in self.steps else -torch.inf
        return scores


def spread(count: int, new_tokens: int) -> list[int]:
    """`count` places among `new_tokens`, equally far from one another and from both ends."""
    return [new_tokens * (k + 1) // (count + 1) for k in range(count)]


def run(setting: Setting) -> Report:
    """One question with boxes at the reference's small size: seconds for NEW_TOKENS and their masks, both ways."""
    new_tokens = NEW_TOKENS
    case = ReferenceCase(paths.parity_folder() / CASE)
    image = case.meta["generate"][TAG]["image"]
    ids = torch.from_numpy(case.arrays("generate")[f"{TAG}/input_ids"])
    boxes = [b.to(setting.device) for b in case.boxes_for(ids, [image])]
    own = {"device": setting.device, "dtype": setting.dtype}
    model = case.model().to(**own)
    one = slice(image, image + 1)
    batch = dict(
        input_ids=ids.to(setting.device),
        global_images=case.global_images[one].to(**own),
        grounding_images=case.grounding_images[one].to(**own),
        boxes=boxes,
        resized=case.resized[one],
        original=case.original[one],
    )
    force = SegAt(model.config.tokens.seg, spread(MASKS, new_tokens))

    def ours():
        out = model.generate(**batch, max_new_tokens=new_tokens, eos_token_id=None, logits_processor=[force])
        return out.sequences[0], out.mask_logits[0]

    def plain():
        return recompute(model, new_tokens=new_tokens, force=force, **batch)

    ours()
    recompute(model, new_tokens=1, force=force, **batch)
    slow, fast, expected, got = paired("generation", plain, ours, setting)
    report = Report("generation", setting.as_dict() | {"case": CASE, "new_tokens": new_tokens, "masks": MASKS})
    difference, report.notes = compare(*expected, *got)
    report.rows[f"{new_tokens} tokens and {MASKS} masks"] = Measured("s", fast, slow, difference)
    return report


def compare(ids, masks, our_ids, our_masks) -> tuple[float, list[str]]:
    """The largest difference of mask logits (M, H, W), infinite for other shapes; and in words, ids and pixels."""
    words = [f"the {len(ids)} ids are {'the same' if torch.equal(ids, our_ids) else 'NOT the same'} both ways"]
    if masks.shape != our_masks.shape:
        return float("inf"), words + [f"the masks have shapes {tuple(masks.shape)} and {tuple(our_masks.shape)}"]
    pixels = int(((masks > 0) != (our_masks > 0)).sum())
    words.append(f"pixels in one mask and not in the other: {pixels} of {masks.numel()}")
    return float((masks - our_masks).abs().max()), words


@torch.no_grad()
def recompute(
    model, input_ids, global_images, grounding_images, boxes, resized, original, new_tokens, force
) -> tuple[torch.Tensor, torch.Tensor]:
    """A greedy answer to one row without any cache; only the grounding encoder runs once, as officially.

    Every step computes both the global and the region encoder and the whole row again. The masks come from the states
    of the last step. Returns the new ids (S,) and the mask logits (M, H, W).
    """
    length, row = input_ids.shape[1], input_ids
    for _ in range(new_tokens):
        out = model(row, global_images=global_images, boxes=boxes)
        token = force(row[:, length:], out.logits[:, -1]).argmax(-1, keepdim=True)
        row = torch.cat([row, token], dim=1)
    ids = row[0, length:]
    steps = (ids == model.config.tokens.seg).nonzero().flatten()
    before = out.last_hidden.shape[1] - new_tokens  # the state that predicted the first new token
    grounding = model.grounding_encoder(grounding_images)
    states = out.last_hidden[0, steps + before]
    _, low_res = model.decode_masks(states, grounding, torch.zeros_like(steps))
    return ids, upscale_logits(low_res, model.config.grounding.image_size, resized[0], original[0])
