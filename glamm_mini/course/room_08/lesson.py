"""Teach it: LoRA from scratch, and a small run in the official way, watched on scenes that it never sees."""

import signal

import torch
from torch import nn

from glamm_mini.data.collate import Collate
from glamm_mini.data.sample import Sample
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.paths import checkpoint_folder
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.pretrain.run import load_backbones, untrained
from glamm_mini.training.data_order import COUNTS

# ---- LoRA ----
# A frozen linear layer with a trained low-rank detour (Hu et al., LoRA, 2021), equal to peft's; and which parameters a
# run trains.


class LoRALinear(nn.Module):
    """y = base(x) + alpha / rank * B(A(x)), for x (..., in). B starts at zero: at first nothing changes.

    Args:
        base: the layer to adapt; it is frozen.
        rank: width of the detour. alpha: its strength, in units of the rank. dropout: on what enters the detour.
    """

    def __init__(self, base: nn.Linear, rank: int = 8, alpha: float = 16.0, dropout: float = 0.05):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.scaling = alpha / rank
        nn.init.kaiming_uniform_(self.lora_A.weight, a=5**0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) to (..., out)."""
        detour = self.lora_B(self.lora_A(self.dropout(x)))  # (..., in) -> (..., rank) -> (..., out)
        return self.base(x) + self.scaling * detour


def add_lora(model: nn.Module, names: tuple = ("q_proj", "v_proj"), **settings) -> int:
    """Put a LoRALinear around every linear layer whose own name is one of `names`; returns how many there are.

    `settings` go to LoRALinear. Raises ValueError if no layer has such a name.
    """
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if name in names and isinstance(child, nn.Linear)
    ]
    if not found:
        raise ValueError(f"no linear layer is called {' or '.join(names)}")
    for parent, name in found:
        setattr(parent, name, LoRALinear(getattr(parent, name), **settings))
    return len(found)


def thaw_only(model: nn.Module, parts: tuple) -> int:
    """Freeze everything but parameters whose name contains one of `parts`; returns how many numbers are trained.

    Raises ValueError for a part that no name contains: a slip of the pen would freeze what you meant to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for part in parts:
        if not any(part in name for name in names):
            raise ValueError(f"no parameter's name contains {part!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(part in name for part in parts)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# ---- a run in the official way ----
# What is loaded, what is new, what is trained, and how it is watched.

OFFICIAL_PARTS = ("lora_", "embed_tokens", "lm_head", "region_encoder", "lp_projector", "pixel_decoder.mask_decoder")
"""What the official fine-tuning trains, by a piece of each parameter's name; all else is frozen."""


def official_start(seed: int) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """Tiny GLaMM as an official run begins: backbones that see, read and segment, LoRA that does nothing yet, and an
    L-P projector that knows nothing. The seed is that of everything new."""
    glamm, processor = untrained("tiny")
    load_backbones(checkpoint_folder("backbones"), glamm)
    torch.manual_seed(seed)
    add_lora(glamm.language_model)
    glamm.lp_projector.apply(glamm._init_weights)
    thaw_only(glamm, OFFICIAL_PARTS)
    return glamm, processor


class HeldOut:
    """Losses and masks on scenes that are never trained on, with the true sentences as input.

    Each call takes the model and returns figures; `drawn` and `ious` keep, a call each, the masks of every scene
    (M, H, W) and their IoU (M,). Valid while both encoders and the V-L projector stay frozen, for pictures are encoded
    once.
    """

    def __init__(self, glamm: GlammForConditionalGeneration, processor: GlammProcessor, samples: list[Sample]):
        batch = Collate(processor)(samples)
        pictures = batch.pop("global_images"), batch.pop("grounding_images")
        with torch.no_grad():
            self.features = glamm.encode_images(*pictures)
        self.batch = {key: value for key, value in batch.items() if key not in COUNTS.values()}
        self.drawn, self.ious = [], []

    def __call__(self, glamm: GlammForConditionalGeneration) -> dict[str, float]:
        with torch.no_grad():
            out = glamm(**self.batch, image_features=self.features)
        drawn = [logits > 0 for logits in out.mask_logits]  # per scene (M, H, W)
        pairs = list(zip(drawn, self.batch["masks"], strict=True))
        ious = [(mine & true).sum((1, 2)) / (mine | true).sum((1, 2)) for mine, true in pairs]
        self.drawn.append(drawn)
        self.ious.append(ious)
        figures = {"iou": torch.cat(ious).mean()} | out.losses
        print(f"check {len(self.ious) - 1}:", *(f"{name} {float(value):.2f} " for name, value in figures.items()))
        return {name: float(value) for name, value in figures.items()}


class PullThePlug:
    """A collate that asks for a stop, as Ctrl-C does, when it is called for the `at`-th time (from 1)."""

    def __init__(self, collate: Collate, at: int):
        self.collate, self.at, self.calls = collate, at, 0

    def __call__(self, samples: list[Sample]) -> dict:
        self.calls += 1
        if self.calls == self.at:
            signal.raise_signal(signal.SIGINT)
        return self.collate(samples)


def relative_change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> float:
    """How far the parameters whose names contain `part` have moved, as a share of their own size at first.

    The norm of all differences over the norm of all first values. Raises ValueError if no name contains `part`.
    """
    names = [name for name in before if part in name]
    if not names:
        raise ValueError(f"no parameter's name contains {part!r}")
    moved = sum((after[name] - before[name]).square().sum() for name in names)
    size = sum(before[name].square().sum() for name in names)
    return float((moved / size).sqrt())
