"""Measures what storybook scenes look like to a model, for its note on pictures that it cannot know, and writes
familiar.json beside its weights: python figures/familiar.py [--model data/checkpoints/tiny]

Scenes of the val split, in several sizes; two thirds are described, the rest sets the limit.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from glamm_mini.assistant.assistant import load
from glamm_mini.assistant.familiar import Familiar, lengths, summary
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene

ROOT = Path(__file__).resolve().parent.parent
SIZES = (96, 128, 256, 512)
ABOUT = "picture-book scenes"


def summaries(glamm, split: str, seed: int, scenes: range, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    """(N, C): what the grounding encoder makes of scenes, the k-th drawn at the k-th size in turn."""
    found = []
    with torch.inference_mode():
        for k in scenes:
            picture = render(sample_scene(split, seed, k), sizes[k % len(sizes)]).image
            image = glamm.processor.images([picture])["grounding_images"].to(glamm.model.device, glamm.model.dtype)
            found.append(summary(glamm.model.grounding_encoder(image)))
    return np.concatenate(found)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "data" / "checkpoints" / "tiny")
    parser.add_argument("--scenes", type=int, default=900)
    parser.add_argument("--seed", type=int, default=3)
    options = parser.parse_args()
    glamm = load(options.model, device="cpu")
    found = summaries(glamm, "val", options.seed, range(options.scenes))
    cut = 2 * options.scenes // 3
    familiar = Familiar.measure(ABOUT, found[:cut], found[cut:], lengths(glamm.model))
    print(familiar.write(options.model), f"limit {familiar.limit:.3f}")


if __name__ == "__main__":
    main()
