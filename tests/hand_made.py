"""Views drawn by hand, and conversations about many views."""

import numpy as np

from glamm_mini.storybook.language import tasks, vocabulary
from glamm_mini.storybook.world.relations import View
from glamm_mini.storybook.world.scene import Picture, Scene, Stuff, Thing, keyed_rng


def made_of(views, task, repeats=3):
    for number, view in enumerate(views):
        for repeat in range(repeats):
            made = tasks.converse(task, view, keyed_rng("test", task, number, repeat))
            if made:
                yield view, *made


def hand_made(*things, stuff=(("sky", 0, 60), ("meadow", 60, 100)), place="countryside"):
    """A view of rectangles: things are (cls, colour, pattern, size, (x0, y0, x1, y1)) on 100 x 100 pixels."""
    label = np.zeros((100, 100), int)
    for number, (_, top, bottom) in enumerate(stuff):
        label[top:bottom] = number
    boxes = []
    for number, (*_, (x0, y0, x1, y1)) in enumerate(things, start=len(stuff)):
        label[y0:y1, x0:x1] = number
        boxes.append((x0, y0, x1, y1))
    masks = label[None] == np.arange(len(stuff) + len(things))[:, None, None]
    records = tuple(
        Thing(cls, colour, pattern, size, (b[0] + b[2]) / 200, (b[1] + b[3]) / 200, vocabulary.SIZES[size])
        for cls, colour, pattern, size, b in things
    )
    bands = tuple(Stuff(kind, top / 100, bottom / 100) for kind, top, bottom in stuff)
    scene = Scene("test", 0, 0, place, (1, 1), bands, records)
    picture = Picture(
        np.zeros((100, 100, 3), np.uint8),
        masks[len(stuff) :],
        masks[: len(stuff)],
        np.array(boxes, np.float32).reshape(-1, 4),
    )
    return View(scene, picture)


TWO_HOUSES = (
    ("house", "red", "plain", "large", (5, 50, 35, 80)),
    ("house", "blue", "striped", "small", (60, 60, 72, 72)),
    ("kite", "red", "plain", "medium", (55, 5, 75, 25)),
)
