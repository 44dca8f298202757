"""Writes a sheet of storybook scenes: python figures/contact_sheet.py [--out FILE] [--split test] [--seed 0]"""

import argparse
from pathlib import Path

from PIL import Image

from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import Scene

PAPER = (250, 246, 238)


def choose(split: str, seed: int, count: int, wide: int) -> tuple[list[Scene], list[Scene]]:
    """The first scenes of the split: `count` that are at most 4:3, and `wide` of 3:1."""
    usual, panoramas, index = [], [], 0
    while len(usual) < count or len(panoramas) < wide:
        scene = sample_scene(split, seed, index)
        (panoramas if scene.aspect == (3, 1) else usual).append(scene)
        index += 1
    return usual[:count], panoramas[:wide]


def rows_of(scenes: list[Scene], rows: int) -> list[list[Scene]]:
    """Deal the scenes into rows of about equal length, so that every row can be scaled to one width."""
    dealt = [[] for _ in range(rows)]
    for scene in sorted(scenes, key=lambda s: -s.aspect[0] / s.aspect[1]):
        min(dealt, key=lambda row: (sum(s.aspect[0] / s.aspect[1] for s in row), len(row))).append(scene)
    return dealt


def paste_row(sheet: Image.Image, row: list[Scene], top: int, gap: int, width: int) -> int:
    """Draw one row of scenes, all equally high and together `width` wide; returns its height in pixels."""
    ratios = [scene.aspect[0] / scene.aspect[1] for scene in row]
    height = round((width - gap * (len(row) - 1)) / sum(ratios))
    left = gap
    for scene, ratio in zip(row, ratios, strict=True):
        size = (round(height * ratio), height)
        picture = Image.fromarray(render(scene, long_side=max(512, *size), supersample=2).image)
        sheet.paste(picture.resize(size, Image.Resampling.LANCZOS), (left, top))
        left += size[0] + gap
    return height


def contact_sheet(split: str, seed: int, rows: int, columns: int, width: int = 1200, gap: int = 18) -> Image.Image:
    """`rows` rows of about `columns` scenes, and one of panoramas."""
    usual, wide = choose(split, seed, rows * columns, 2)
    sheet, top = Image.new("RGB", (width + 2 * gap, 2 * rows * width), PAPER), gap
    for row in [*rows_of(usual, rows), wide]:
        top += paste_row(sheet, row, top, gap, width) + gap
    return sheet.crop((0, 0, sheet.width, top))


def main() -> None:
    """Write the sheet as PNG, in full color: with fewer, the skies become steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "contact_sheet.png")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--columns", type=int, default=4)
    options = parser.parse_args()
    sheet = contact_sheet(options.split, options.seed, options.rows, options.columns)
    sheet.save(options.out, optimize=True)
    print(f"{options.out}: {sheet.width} x {sheet.height} pixels, {options.out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
