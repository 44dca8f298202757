"""Pictures of notebook 07: the data flow with the shapes of one run, and what a [SEG] asks for."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import nn

from glamm_mini.course.drawing.diagram import BLUE, GRAY, GREEN, INK, ORANGE, QUIET, Box, Diagram, fitted
from glamm_mini.course.room_06.pictures import heat
from glamm_mini.model.sam import upscale_logits
from glamm_mini.visuals.overlay import overlay_masks
from glamm_mini.visuals.palette import RGB, color

HOOKED = {
    "global encoder": "global_encoder",
    "V-L projector": "vl_projector",
    "language model": "language_model.model",
    "L-P projector": "lp_projector",
    "grounding encoder": "grounding_encoder",
    "pixel decoder": "pixel_decoder",
}
"""Part to the module whose calls are watched. The forward pass calls the language model without its head."""


class LiveShapes:
    """While the block runs, `shapes` takes the shape that each part is fed and the one that it returns, last call."""

    def __init__(self, glamm: nn.Module):
        self.glamm = glamm
        self.shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def __enter__(self) -> "LiveShapes":
        self._hooks = [self._watch(name, self.glamm.get_submodule(path)) for name, path in HOOKED.items()]
        return self

    def __exit__(self, *problem) -> None:
        for hook in self._hooks:
            hook.remove()

    def _watch(self, name: str, part: nn.Module):
        def note(module, given, named, returned):
            fed = named["inputs_embeds"] if "inputs_embeds" in named else given[1 if name == "pixel decoder" else 0]
            self.shapes[name] = tuple(fed.shape), tuple(_first(returned).shape)

        return part.register_forward_hook(note, with_kwargs=True)


def _first(returned) -> torch.Tensor:
    """The tensor that flows on: tokens of the global encoder, last states of the language model, masks."""
    for field in ("tokens", "last_hidden_state"):
        if hasattr(returned, field):
            return getattr(returned, field)
    return returned[0] if isinstance(returned, tuple) else returned


CARDS: dict[str, tuple[Box, RGB]] = {
    "global encoder": ((300, 60, 600, 210), BLUE),
    "V-L projector": ((670, 60, 970, 210), BLUE),
    "language model": ((1040, 60, 1340, 400), ORANGE),
    "L-P projector": ((1040, 470, 1340, 620), ORANGE),
    "grounding encoder": ((300, 700, 600, 850), GREEN),
    "pixel decoder": ((1040, 700, 1340, 850), GREEN),
}


def flow_picture(shapes: dict, picture: Image.Image, masked: Image.Image, question: str, answer: str) -> Image.Image:
    """GLaMM as it ran: each part with what it was fed and what it returned, 1600 pixels wide.

    Args:
        shapes: of a LiveShapes; a part that was not called is gray.
        picture, masked: what went in and came out, in their own shape. question, answer: words, cut to three lines.
    """
    diagram = Diagram(1600, 900)
    before, after = fitted(picture, (30, 290, 270, 530)), fitted(masked, (1370, 670, 1580, 880))
    for points in (
        [(150, before[1]), (150, 135), (294, 135)],
        [(150, before[3]), (150, 775), (294, 775)],
        [(600, 135), (664, 135)],
        [(970, 135), (1034, 135)],
        [(970, 330), (1034, 330)],
        [(1190, 400), (1190, 464)],
        [(1190, 620), (1190, 694)],
        [(600, 775), (1034, 775)],
        [(1340, 775), (after[0] - 6, 775)],
    ):
        diagram.arrow(points)
    for name, (box, ink) in CARDS.items():
        _card(diagram, name, box, ink if name in shapes else GRAY, shapes.get(name))
    diagram.words((1215, 434), "the state before each [SEG]", 24, ink=QUIET)
    diagram.words((820, 748), "features of the picture", 24, ink=QUIET, anchor="mm")
    diagram.paste(picture, before)
    diagram.paste(masked, after)
    for left, top, title, text, width in (
        (300, 270, "question", question, 670),
        (300, 470, "answer (given here, or generated)", answer, 670),
    ):
        diagram.card((left, top, left + width, top + 150), GRAY, 0.06, width=2)
        diagram.words((left + 20, top + 30), title, 24, bold=True, ink=QUIET)
        lines = diagram.wrap(text, width - 70, 24)
        lines = lines[:3] if len(lines) <= 3 else [*lines[:2], lines[2] + " …"]
        diagram.lines((left + 20, top + 64), lines, 24)
    diagram.arrow([(970, 545), (1005, 545), (1005, 365), (1034, 365)])
    return diagram.finish()


def _card(diagram: Diagram, name: str, box: Box, ink: RGB, shape) -> None:
    x0, y0, x1, y1 = box
    diagram.card(box, ink, 0.18)
    middle = (y0 + y1) / 2
    diagram.words(((x0 + x1) / 2, middle - 42), name, 26, bold=True, anchor="mm")
    for number, (way, size) in enumerate(zip(("in", "out"), shape or ((), ()), strict=True)):
        text = "×".join(map(str, size)) or "not called"
        diagram.words((x0 + 22, middle + 4 + 38 * number), way, 24, ink=QUIET)
        diagram.words((x0 + 80, middle + 4 + 38 * number), text, 24)


@torch.no_grad()
def prompt_attention(pixel_decoder: nn.Module, grounding: torch.Tensor, prompts: torch.Tensor):
    """Where each prompt looks in the decoder's last block, and the masks that come of it.

    grounding (1, C, h, w), prompts (M, C). Returns weights (M, h, w), the mean of all heads, which sum to 1 for each
    prompt, and low-resolution mask logits (M, m, m).
    """
    found = {}

    def note(attention, _, named, returned):
        q, k = (
            layer(named[key]).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (M, heads, tokens, width)
            for layer, key in ((attention.q_proj, "q"), (attention.k_proj, "k"))
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # (M, heads, tokens, h * w)
        found["looks"] = weights.mean(1)[:, -1].unflatten(-1, grounding.shape[-2:])  # the prompt is the last token

    block = pixel_decoder.mask_decoder.transformer.layers[-1]
    hook = block.cross_attn_token_to_image.register_forward_hook(note, with_kwargs=True)
    try:
        low_res, _ = pixel_decoder(grounding, prompts[:, None], torch.zeros(len(prompts), dtype=torch.long))
    finally:
        hook.remove()
    return found["looks"], low_res


def titled(card: Image.Image, words: str) -> Image.Image:
    """A card of `answer_png` with a line of words above its picture."""
    diagram = Diagram(card.width, card.height + 40)
    diagram.words((max(24, card.width // 30), 40), words, 26, bold=True)
    sheet = diagram.finish()
    sheet.paste(card.crop((0, 20, *card.size)), (0, 60))
    return sheet


class SegQueries:
    """For a `PictureExplorer`: a phrase, the prompt that its [SEG] became, and what that prompt finds.

    Args:
        image: (H, W, 3) uint8. phrases: M texts. prompts (M, C), grounding (1, C, h, w): of the forward pass.
        pixel_decoder: the model's. side: of the grounding encoder's square. resized: (height, width) of the picture
        inside it.

    Raises:
        ValueError: not one phrase for each prompt.
    """

    def __init__(self, image: np.ndarray, phrases: Sequence[str], prompts, grounding, pixel_decoder, side, resized):
        if len(phrases) != len(prompts):
            raise ValueError(f"{len(phrases)} phrases, {len(prompts)} prompts; expected one phrase for each prompt")
        self.image, self.phrases, self.prompts = image, list(phrases), prompts.detach()
        looks, low_res = prompt_attention(pixel_decoder, grounding, self.prompts)
        size = image.shape[:2]
        self.masks = (upscale_logits(low_res, side, resized, size) > 0).numpy()  # (M, H, W)
        self.looks = upscale_logits(looks, side, resized, size).numpy()  # (M, H, W)

    @property
    def names(self) -> list[str]:
        """What the axis offers: the phrases, numbered, for two may be equal."""
        return [f"{k}: {text}" for k, text in enumerate(self.phrases, 1)]

    def __call__(self, choice: dict) -> tuple[Image.Image, str]:
        """The prompt as bars above, where it looks and its mask below; and what the mask covers."""
        k = self.names.index(choice["phrase"])
        mask, field = self.masks[k], self.looks[k]
        height = round(380 * self.image.shape[0] / self.image.shape[1])
        diagram = Diagram(800, 266 + height)
        ink = color(k)
        diagram.words((10, 24), f"its prompt: {self.prompts.shape[1]} numbers", 32)
        self._bars(diagram, self.prompts[k], (10, 50, 790, 200), ink)
        diagram.words((10, 230), "where it looks", 32)
        diagram.words((410, 230), "its mask", 32)
        diagram.paste(heat(self.image, field), (10, 256, 390, 256 + height))
        painted = Image.fromarray(overlay_masks(self.image, [mask], [ink], alpha=0.35))
        diagram.paste(painted, (410, 256, 790, 256 + height))
        if not mask.any():
            return diagram.finish(), f"{choice['phrase']}: an empty mask."
        inside = field[mask].sum() / field.sum()
        words = f"{choice['phrase']}: mask {mask.mean():.1%} of the picture, which gets {inside:.0%} of its looks."
        return diagram.finish(), words

    def _bars(self, diagram: Diagram, prompt: torch.Tensor, box: Box, ink: RGB) -> None:
        """One bar for each number, all prompts on one scale, so that two can be compared."""
        x0, y0, x1, y1 = box
        middle, most = (y0 + y1) / 2, float(self.prompts.abs().max()) or 1.0
        step = (x1 - x0) / len(prompt)
        for number, value in enumerate(prompt.tolist()):
            left, end = x0 + number * step, middle - (y1 - y0) / 2 * value / most
            top, bottom = min(end, middle - 1), max(end, middle + 1)
            diagram.card((left, top, left + 0.8 * step, bottom), ink, 1.0, width=1, radius=0)
        diagram.arrow([(x0, middle), (x1, middle)], INK, width=1, head=1)
