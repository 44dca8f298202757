"""What the model takes besides tensors, and hands back: of images alone, of one pass over whole rows, of answers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

Indices = Sequence[int] | Tensor  # (R,), the image of each row, -1 for a row of text alone
Boxes = Sequence[Tensor | None]  # per row (N, 4), normalized x0 y0 x1 y1, or None
Sizes = Sequence[tuple[int, int]]  # per image (height, width)


@dataclass
class ImageFeatures:
    """Everything the model computes from images alone; made once, used for every turn and every mask."""

    tokens: Tensor  # (I, P, D), projected to the language model
    levels: list[Tensor]  # four (I, C, h, w), shallowest first, for the region encoder
    grounding: Tensor | None  # (I, C, h, w), for the pixel decoder


@dataclass
class GlammOutput(ModelOutput):
    """One pass over R rows of T positions, with M [SEG] in them."""

    loss: Tensor | None = None  # weighted sum of the losses
    losses: dict[str, Tensor] | None = None  # its parts, unweighted: ce, mask_bce, mask_dice
    logits: Tensor | None = None  # (R, T, V), unless only the loss was asked for
    last_hidden: Tensor | None = None  # (R, T, D), last states of the language model
    hidden_states: tuple[Tensor, ...] | None = None  # of every layer (R, T, D), if they were asked for
    attentions: tuple[Tensor, ...] | None = None  # of every layer (R, heads, T, T), if asked for; eager only
    spliced_ids: Tensor | None = None  # (R, T), what stands at each position
    seg_positions: Tensor | None = None  # (M, 2), row and position of the state used for each mask
    prompts: Tensor | None = None  # (M, C), what the pixel decoder is told
    low_res: Tensor | None = None  # (M, m, m), mask logits of the padded square
    mask_logits: list[Tensor] | None = None  # per image (M_i, H, W), at the picture's size
    image_features: ImageFeatures | None = None


@dataclass
class GlammGenerated(ModelOutput):
    """Answers; those to one prompt (num_return_sequences) stand in rows one behind the other. What is of masks is None
    where no grounding image was given, and empty in rows without an image."""

    sequences: Tensor | None = None  # (R, new) ids of the answers, without the prompt
    last_hidden: Tensor | None = None  # (R, T, D), of prompts and new tokens, but for a last one that no mask needs
    seg_steps: list[Tensor] | None = None  # per row (M,), where [SEG] stands in its sequence
    states: list[Tensor] | None = None  # per row (M, D), the state that stands for each [SEG]
    prompts: list[Tensor] | None = None  # per row (M, C), what the pixel decoder is told
    low_res: list[Tensor] | None = None  # per row (M, m, m), mask logits of the padded square
    mask_logits: list[Tensor] | None = None  # per row (M, H, W), if sizes were given
    # As transformers' generate hands them back with return_dict_in_generate, where they were asked for:
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    sequences_scores: Tensor | None = None
    beam_indices: Tensor | None = None
    attentions: tuple | None = None
    hidden_states: tuple | None = None
