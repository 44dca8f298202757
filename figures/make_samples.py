"""Renders the bundled pictures: python figures/make_samples.py [--out data/samples]"""

import argparse
from pathlib import Path

from PIL import Image

from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene

SPLIT, SEED, LONG_SIDE, COUNT = "test", 99, 512, 4
THINGS = (3, 6)
"""The fewest and the most things in a scene: enough to talk about, few enough to see at a glance."""


def choose() -> list:
    """The first scenes of test seed 99, one a place, that hold neither too little nor too much."""
    chosen, places, index = [], set(), 0
    while len(chosen) < COUNT:
        scene = sample_scene(SPLIT, SEED, index)
        if scene.place not in places and THINGS[0] <= len(scene.things) <= THINGS[1]:
            places.add(scene.place)
            chosen.append(scene)
        index += 1
    return chosen


def main() -> None:
    """Write one PNG a scene."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "data" / "samples")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for scene in choose():
        path = out / f"{scene.place}.png"
        Image.fromarray(render(scene, long_side=LONG_SIDE, supersample=2).image).save(path, optimize=True)
        print(f"{path}  {scene.split} seed {scene.seed} index {scene.index}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
