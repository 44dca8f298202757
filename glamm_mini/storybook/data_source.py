"""What the library asks of a data set, for the storybook: samples to train on and to score, and its own figures."""

from glamm_mini import paths
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.dataset import StorybookDataset, evaluation_samples
from glamm_mini.storybook.language.tasks import TASKS
from glamm_mini.storybook.language.vocabulary import SPLITS, WORLD_VERSION
from glamm_mini.storybook.pretrain.run import ENDLESS, load_backbones, untrained
from glamm_mini.storybook.pretrain.validation import storybook_figures as figures

__all__ = ["SPLITS", "TASKS", "VERSION", "evaluation_samples", "figures", "start", "training_set"]

VERSION = f"{WORLD_VERSION}.1"
"""Of the world, and of what evaluation asks about it; predictions of another one are not gone on with."""


def training_set(long_side: int, mixture: dict[str, float], conversations: int, seed: int = 0) -> StorybookDataset:
    """Scenes without end, none drawn twice. `ds[i]` is a Sample; long_side: pixels of the pictures' longer side; seed:
    another one gives other scenes."""
    return StorybookDataset("train", seed, ENDLESS, long_side, mixture, conversations)


def start() -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The tiny model from its bundled backbones, and its processor: what a fine-tuning from parts begins with."""
    model, processor = untrained("tiny")
    load_backbones(paths.checkpoint_folder("backbones"), model)
    return model, processor
