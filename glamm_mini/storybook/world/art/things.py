"""Draws one thing: looks its form up and lends it a brush."""

from PIL import Image

from glamm_mini.storybook.world.art import built, nature, sky  # noqa: F401  their forms register themselves
from glamm_mini.storybook.world.art.brush import Brush
from glamm_mini.storybook.world.art.forms import FORMS, form_index
from glamm_mini.storybook.world.scene import Thing


def draw_thing(thing, width: int, height: int, unit: float) -> Brush:
    """Draw a thing of a picture of width x height (supersampled) pixels.

    unit: sqrt(width * height). Returns the brush: its `canvas` (RGBA) goes to its `origin` in the picture.
    """
    forms = FORMS[thing.cls]
    form = forms[form_index(thing.cls, thing.variant, len(forms))]
    half = 0.5 * thing.extent * unit
    brush = Brush(thing, form.width, form.height, thing.x * width - form.width * half,
                  thing.y * height - form.height * half, unit)  # fmt: skip
    form.draw(brush)
    return brush


def coarse_silhouette(cls: str, number: int, grid: int = 16, detail: int = 32) -> str:
    """The rows of an entry of `silhouettes.py`, drawn anew: which cells of its box the form fills by half or more."""
    form, extent = FORMS[cls][number], 0.36
    thing = Thing(cls, "red", "plain", "large", 0.5, 0.5, extent, False, (number + 0.5) / len(FORMS[cls]))
    side = grid * detail / extent
    brush = draw_thing(thing, side, side, side)
    canvas = Image.new("L", (round(side), round(side)))
    canvas.paste(255, brush.origin, brush.canvas.getchannel("A"))
    half_x, half_y = form.width * extent * side / 2, form.height * extent * side / 2
    crop = (side / 2 - half_x, side / 2 - half_y, side / 2 + half_x, side / 2 + half_y)
    cells = canvas.resize((grid, grid), Image.Resampling.BOX, box=crop)
    rows = ["".join("1" if cells.getpixel((x, y)) > 127 else "0" for x in range(grid)) for y in range(grid)]
    return "".join(f"{int(row, 2):0{grid // 4}x}" for row in rows)
