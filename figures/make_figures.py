"""Makes the pictures of README and notebooks: python figures/make_figures.py [NAME ...] [--hero-index 8]

The maps need nothing but the package; the hero picture is an answer of the model, so make it again after training.
`--candidates 30` makes nothing: it prints how well the model describes the first scenes, to choose the hero by.
"""

import argparse
from pathlib import Path

import numpy as np
from contact_sheet import contact_sheet
from PIL import Image

from glamm_mini.course.drawing.maps import architecture, series_map
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import Picture, Scene
from glamm_mini.visuals.overlay import overlay_at_size

LIMIT = 300_000
"""A picture has fewer bytes than this."""

BOAT = 41
"""The test scene in the picture of the parts: it has one red boat, of which the picture speaks."""


def draw_series(options: argparse.Namespace) -> Image.Image:
    """The map of the series."""
    return series_map()


def draw_architecture(options: argparse.Namespace) -> Image.Image:
    """GLaMM's parts, with a scene that goes in and the boat's mask that comes out."""
    scene = sample_scene("test", 0, BOAT)
    page = render(scene, long_side=512)
    boat = next(k for k, thing in enumerate(scene.things) if (thing.cls, thing.colour) == ("boat", "red"))
    dimmed = np.where(page.thing_masks[boat][..., None], page.image, page.image * 0.4).astype(np.uint8)
    masked = overlay_at_size(dimmed, [page.thing_masks[boat]], (page.image.shape[1], page.image.shape[0]))
    return architecture(Image.fromarray(page.image), masked, phrase="a red boat")


def draw_hero(options: argparse.Namespace) -> Image.Image:
    """The model's description of the chosen scene, or of a picture from disk."""
    import glamm_mini

    picture = options.hero_picture
    if picture is None:
        picture = render(sample_scene(options.split, options.seed, options.hero_index), long_side=768).image
    return glamm_mini.load(options.model).describe(picture).picture()


def draw_contact_sheet(options: argparse.Namespace) -> Image.Image:
    """Scenes of the storybook world."""
    return contact_sheet("test", 0, 2, 4)


PICTURES = {
    "series": draw_series,
    "architecture": draw_architecture,
    "hero": draw_hero,
    "contact_sheet": draw_contact_sheet,
}


def save_small(picture: Image.Image, path: Path) -> None:
    """Write a PNG of less than LIMIT bytes, with fewer pixels if need be: with fewer colors, skies become steps."""
    picture.save(path, optimize=True)
    while path.stat().st_size >= LIMIT:
        picture = picture.resize([round(side * 0.9) for side in picture.size], Image.Resampling.LANCZOS)
        picture.save(path, optimize=True)


def quality(answer, scene: Scene, page: Picture) -> tuple[float, float]:
    """How much of a scene is found and named rightly, and the share of phrases that are right, both 0..1."""
    from glamm_mini.storybook.language.words import parse_phrase

    truth = [(thing.cls, thing.colour, mask) for thing, mask in zip(scene.things, page.thing_masks, strict=True)]
    truth += [(stuff.kind, None, mask) for stuff, mask in zip(scene.stuff, page.stuff_masks, strict=True)]
    found, right = set(), 0
    for phrase in answer.phrases:
        said = parse_phrase(phrase.text)
        hits = {
            k
            for k, (cls, color, mask) in enumerate(truth)
            if said.cls == cls
            and said.colour in (None, color)
            and (mask & phrase.mask).sum() > 0.6 * (mask | phrase.mask).sum()
        }
        found |= hits
        right += bool(hits)
    return len(found) / len(truth), right / max(1, len(answer.phrases))


def print_candidates(options: argparse.Namespace) -> None:
    """The first scenes, best described last."""
    import glamm_mini

    glamm, lines = glamm_mini.load(options.model), []
    for index in range(options.candidates):
        scene = sample_scene(options.split, options.seed, index)
        page = render(scene, long_side=512)
        answer = glamm.describe(page.image)
        found, right = quality(answer, scene, page)
        lines.append((found * right, index, found, right, len(scene.things), answer.caption))
    for _, index, found, right, things, caption in sorted(lines):
        print(f"--hero-index {index:<3} found {found:4.0%}  right {right:4.0%}  {things} things  {caption}")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PICTURES)}; all if left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hero-index", type=int, default=8, help="the scene of the hero picture")
    parser.add_argument("--hero-picture", type=Path, help="an image file in its place")
    parser.add_argument("--candidates", type=int, metavar="N", help="print how well the first N scenes are described")
    options = parser.parse_args()
    unknown = set(options.names) - set(PICTURES)
    if unknown:
        parser.error(f"no picture {', '.join(sorted(unknown))}; the pictures are {', '.join(PICTURES)}")
    return options


def main() -> None:
    """Draw and store the chosen pictures."""
    options = read_options()
    if options.candidates:
        print_candidates(options)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        path = options.out / f"{name}.png"
        picture = PICTURES[name](options)
        save_small(picture, path)
        print(f"{path}  {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
