"""Pictures of notebook 01: a scene that is built up, a mask's runs, a caption with its phrases by letter."""

from dataclasses import replace

import numpy as np
from PIL import Image

from glamm_mini.course.drawing.compose import labeled
from glamm_mini.course.drawing.diagram import BLUE, INK, QUIET, Diagram, tint
from glamm_mini.storybook.world.render import render
from glamm_mini.storybook.world.sampling import sample_scene
from glamm_mini.storybook.world.scene import Scene
from glamm_mini.visuals.overlay import overlay_masks
from glamm_mini.visuals.palette import color


def built_up(scene: Scene, most: int = 6, long_side: int = 256) -> Image.Image:
    """The scene from its stuff alone to all of its things, one more in each panel; at most `most` panels."""
    steps = np.unique(np.linspace(0, len(scene.things), min(most, len(scene.things) + 1)).round().astype(int))
    panels = [Image.fromarray(render(replace(scene, things=scene.things[:k]), long_side).image) for k in steps]
    names = [f"{thing.colour} {thing.cls}" for thing in scene.things]
    new = [names[before:k] for before, k in zip([0, *steps], steps, strict=False)]
    words = ["stuff alone", *("+ " + ", ".join(added) for added in new[1:])]
    return labeled(panels, words)


def runs_picture(mask: np.ndarray, counts: list[int], width: int = 1200) -> Image.Image:
    """A small mask (H, W) whose pixels are numbered in the order of the runs, and the runs as a bar below it."""
    rows, columns = mask.shape
    cell = min(80.0, (width - 40) / columns)
    diagram = Diagram(width, round(rows * cell + 190))
    left = (width - columns * cell) / 2
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * cell, 10 + row * cell
            diagram.card((x + 2, y + 2, x + cell - 2, y + cell - 2), BLUE, 0.75 if mask[row, column] else 0.06, 2, 6)
            number = str(column * rows + row)
            ink = (255, 255, 255) if mask[row, column] else QUIET
            diagram.words((x + cell / 2, y + cell / 2), number, 24, ink=ink, anchor="mm")
    top, x, unit = rows * cell + 60, 20.0, (width - 40) / mask.size
    diagram.words((20, top - 22), "runs, read down the columns:", 24, ink=QUIET)
    for k, count in enumerate(counts):
        if count:
            diagram.card((x, top, x + count * unit, top + 56), BLUE, 0.75 if k % 2 else 0.06, 2, 4)
        ink = (255, 255, 255) if k % 2 else INK
        if count * unit > diagram.length(str(count), 24):
            diagram.words((x + count * unit / 2, top + 28), str(count), 24, ink=ink, anchor="mm")
        x += count * unit
    diagram.words((20, top + 92), f"counts {counts}", 24)
    return diagram.finish()


def spelled(caption: str, spans: list[tuple[int, int]], width: int = 1200, per_line: int = 38) -> Image.Image:
    """A caption letter by letter, each in a cell with its number below; the letters of phrase k in color k."""
    cell, line = (width - 20) / per_line, 92
    diagram = Diagram(width, 16 + line * -(-len(caption) // per_line))
    owner = {at: k for k, (start, end) in enumerate(spans) for at in range(start, end)}
    for at, letter in enumerate(caption):
        x, y = 10 + at % per_line * cell, 8 + at // per_line * line
        ground = color(owner[at]) if at in owner else QUIET
        diagram.card((x + 1, y, x + cell - 1, y + 48), ground, 0.3 if at in owner else 0.05, 2, 5)
        diagram.words((x + cell / 2, y + 24), letter, 28, anchor="mm")
        if at % 5 == 0:
            diagram.words((x + cell / 2, y + 66), str(at), 20, ink=QUIET, anchor="mm")
    return diagram.finish()


def outlined(image: np.ndarray, mask: np.ndarray, whole: np.ndarray) -> Image.Image:
    """An image in gray, in it the visible mask in blue and what of the whole thing is hidden in a pale orange."""
    gray = np.repeat(image.mean(2, keepdims=True), 3, axis=2) * 0.5 + 120
    gray[mask] = tint(BLUE, 0.85)
    gray[whole & ~mask] = tint(color(1), 0.7)
    return Image.fromarray(gray.clip(0, 255).astype(np.uint8))


def first_of_place(choice: dict) -> tuple[Image.Image, str]:
    """The first training scene of choice["seed"] at choice["place"], its things outlined, and what it holds."""
    scenes = (sample_scene("train", choice["seed"], index) for index in range(1000))
    scene = next(scene for scene in scenes if scene.place == choice["place"])
    picture = render(scene, long_side=320)
    about = f"{choice['place']}, seed {choice['seed']}, scene {scene.index}"
    things = ", ".join(f"{thing.colour} {thing.cls}" for thing in scene.things)
    return Image.fromarray(overlay_masks(picture.image, picture.thing_masks, alpha=0.0)), f"{about}: {things}"
