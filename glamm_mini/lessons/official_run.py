"""A small run in the official way: what is loaded, what is new, what is trained, and how it is watched."""

import signal

import torch

from glamm_mini.datasets.collate import Collate
from glamm_mini.datasets.sample import Sample
from glamm_mini.lessons.lora import add_lora, thaw_only
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.paths import checkpoint_folder
from glamm_mini.processor import GlammProcessor
from glamm_mini.training.batches import COUNTS
from glamm_mini.training.recipes import load_backbones, untrained

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
