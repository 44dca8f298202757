"""Stuff: sky, ground and water as cached textures behind gently curved edges."""

import math
import random
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from glamm_mini.storybook.language.vocabulary import SKIES
from glamm_mini.storybook.world.art.brush import CREAM, Colour, mix

LOOKS = 3  # textures of each kind that take turns

# Colours from the far to the near edge of a region, one row a look; skies have a middle tone and end at the horizon.
TONES = {
    "sky": (
        ((124, 196, 232), (186, 224, 238), (244, 244, 228)),
        ((150, 206, 228), (228, 228, 226), (255, 218, 196)),
        ((132, 202, 226), (198, 232, 232), (254, 240, 204)),
    ),
    "night sky": (
        ((28, 32, 84), (58, 58, 122), (126, 104, 164)),
        ((22, 38, 82), (44, 74, 126), (98, 132, 170)),
        ((38, 32, 82), (84, 62, 124), (172, 112, 150)),
    ),
    "meadow": (
        ((206, 226, 138), (150, 196, 100)),
        ((196, 224, 146), (142, 192, 108)),
        ((216, 224, 132), (166, 198, 98)),
    ),
    "field": (
        ((240, 212, 140), (218, 174, 94)),
        ((234, 206, 130), (210, 168, 100)),
        ((244, 218, 150), (224, 184, 106)),
    ),
    "sea": (
        ((138, 208, 210), (46, 138, 170)),
        ((146, 214, 204), (56, 148, 162)),
        ((128, 198, 212), (44, 126, 166)),
    ),
    "sand": (
        ((253, 238, 202), (236, 208, 160)),
        ((252, 234, 206), (234, 204, 168)),
        ((253, 240, 206), (238, 214, 162)),
    ),
    "snow": (
        ((238, 244, 250), (198, 214, 236)),
        ((240, 242, 250), (204, 210, 236)),
        ((232, 243, 248), (192, 216, 232)),
    ),
    "road": (
        ((146, 140, 154), (118, 112, 132)),
        ((152, 144, 150), (124, 116, 126)),
        ((138, 136, 156), (110, 108, 132)),
    ),
    "dunes": (
        ((247, 214, 170), (222, 168, 122)),
        ((245, 206, 164), (218, 160, 120)),
        ((249, 220, 176), (226, 176, 126)),
    ),
}
_MOONLIGHT = (208, 206, 246)  # what falls on a ground under the night sky, 255 is daylight

# How far a region's upper edge swings, as a fraction of the picture's height.
SWING = {"meadow": 0.030, "field": 0.022, "sea": 0.010, "sand": 0.022, "snow": 0.030, "road": 0.004, "dunes": 0.036}
_HILLY = ("meadow", "snow", "dunes")


def edge(kind: str, far: bool, rng: random.Random) -> tuple[float, ...]:
    """The swing of a region's upper edge at 33 even steps across the picture, fractions of its height."""
    swing = 0.0 if kind == "sea" and far else SWING[kind]
    a, b, c = (rng.random() * 6.28 for _ in range(3))
    return tuple(swing * (0.6 * math.sin(a + 3.1 * k / 32) + 0.4 * math.sin(b + (4.5 + c / 3) * k / 32))
                 for k in range(33))  # fmt: skip


@lru_cache(maxsize=160)
def texture(kind: str, look: int, width: int, height: int, night: bool = False) -> Image.Image:
    """An RGB texture of the kind, far edge at the top; look in 0..LOOKS-1. Read-only: it is cached."""
    tones = TONES[kind][look]
    reach = 0.62 if kind in SKIES else 0.55  # where the last tone is reached
    column = Image.new("RGB", (1, height), tones[-1])
    steps = max(1, round(reach * height / (len(tones) - 1)))
    ramp = Image.linear_gradient("L").resize((1, steps), Image.Resampling.BILINEAR)
    for k, (first, last) in enumerate(zip(tones, tones[1:], strict=False)):
        part = Image.composite(Image.new("RGB", ramp.size, last), Image.new("RGB", ramp.size, first), ramp)
        column.paste(part, (0, k * steps))
    tile = column.resize((width, height))
    if kind in _MARKS:
        _MARKS[kind](ImageDraw.Draw(tile), random.Random(look), width, height, mix(tones[0], tones[-1], 0.6))
    return ImageChops.multiply(tile, Image.new("RGB", tile.size, _MOONLIGHT)) if night else tile


def _scatter(rng: random.Random, across: int, down: int, depth: float = 0.62) -> list[tuple[float, float]]:
    """Points spread evenly but not in line: x in 0..1, y in 0..depth, one in each cell of a grid."""
    return [((i + rng.random()) / across, depth * (j + rng.random()) / down)
            for j in range(down) for i in range(across) if rng.random() < 0.8]  # fmt: skip


def _stars(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    unit = math.sqrt(width * height)
    for x, y in _scatter(rng, 8, 7, 0.58):
        x, y, r = x * width, y * height, (0.0014 + 0.0020 * rng.random() ** 2) * unit
        draw.ellipse((x - r, y - r, x + r, y + r), fill=mix(tone, CREAM, 0.35 + 0.4 * rng.random()))


def _tufts(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    unit = math.sqrt(width * height)
    line = max(1, round(0.005 * unit))
    for x, y in _scatter(rng, 7, 8):
        x, y, r = x * width, y * height, (0.010 + 0.024 * y) * unit
        colour = mix(tone, (70, 130, 70), 0.22 + 0.2 * rng.random())
        for lean in (-0.7, 0.0, 0.7):
            draw.line((x, y, x + lean * r, y - r * (1.0 if lean else 1.3)), fill=colour, width=line)


def _rows(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    vanish, line = (0.3 + 0.4 * rng.random()) * width, max(1, round(0.008 * math.sqrt(width * height)))
    for k in range(-26, 27):
        near = vanish + k * 0.11 * width
        draw.line((vanish + 0.45 * (near - vanish), 0, near + 0.6 * (near - vanish), 0.7 * height),
                  fill=mix(tone, (176, 124, 62), 0.28), width=line)  # fmt: skip


def _waves(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    unit = math.sqrt(width * height)
    line = max(1, round(0.006 * unit))
    for x, y in _scatter(rng, 6, 9):
        x, y, r = x * width, (y + 0.03) * height, (0.012 + 0.032 * y) * unit
        colour = mix(tone, (236, 250, 248), 0.3 + 0.3 * rng.random())
        for step in (0, 1):
            left = x + 1.7 * r * step
            draw.arc((left, y, left + 1.7 * r, y + 0.9 * r), 190, 350, fill=colour, width=line)


def _grains(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    unit = math.sqrt(width * height)
    for x, y in _scatter(rng, 12, 12):
        x, y, r = x * width, y * height, (0.0018 + 0.004 * y) * unit
        draw.ellipse((x - 1.4 * r, y - r, x + 1.4 * r, y + r), fill=mix(tone, (186, 142, 96), 0.4 * rng.random() + 0.1))


def _drifts(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    unit = math.sqrt(width * height)
    line = max(1, round(0.006 * unit))
    for k, (x, y) in enumerate(_scatter(rng, 4, 7)):
        x, y, r = (x - 0.08) * width, (0.03 + y) * height, (0.04 + 0.13 * y) * unit
        colour = mix(tone, (255, 255, 255), 0.7) if k % 2 else mix(tone, (150, 170, 210), 0.35)
        draw.arc((x, y, x + 2 * r, y + 0.5 * r), 200, 320, fill=colour, width=line)


def _ripples(draw: ImageDraw.ImageDraw, rng: random.Random, width: int, height: int, tone: Colour) -> None:
    line = max(1, round(0.006 * math.sqrt(width * height)))
    for x, y in _scatter(rng, 4, 8):
        y, x, span = (y + 0.02) * height, x * width, (0.08 + 0.14 * rng.random()) * width
        lift = (0.006 + 0.008 * rng.random()) * height
        points = [(x + span * (k / 14 - 0.5), y + lift * math.sin(k / 14 * 9.4)) for k in range(15)]
        draw.line(points, fill=mix(tone, (176, 112, 78), 0.3), width=line)


_MARKS = {"night sky": _stars, "meadow": _tufts, "field": _rows, "sea": _waves, "sand": _grains, "snow": _drifts,
          "dunes": _ripples}  # fmt: skip


def paint_stuff(scene, width: int, height: int, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """The scene without its things: the RGB canvas and an `L` canvas of stuff numbers, both width x height pixels."""
    looks = [int(rng.random() * LOOKS) for _ in scene.stuff]
    night = scene.stuff[0].kind == "night sky"
    canvas, labels = texture(scene.stuff[0].kind, looks[0], width, height).copy(), Image.new("L", (width, height))
    for number in range(1, len(scene.stuff)):
        stuff = scene.stuff[number]
        tile = texture(stuff.kind, looks[number], width, height, night)
        rim = [(width * k / 32, height * (stuff.top + s)) for k, s in enumerate(edge(stuff.kind, number == 1, rng))]
        ImageDraw.Draw(labels).polygon([*rim, (width, height), (0, height)], fill=number)
        if number == 1 and stuff.kind in _HILLY:
            rim = _ridges(canvas, tile, rim, stuff, rng)
        _lay(canvas, tile, rim)
        _trim(canvas, tile, rim, stuff, scene.stuff[number - 1].kind)
    return canvas, labels


def _ridges(canvas: Image.Image, tile: Image.Image, rim: list, stuff, rng: random.Random) -> list:
    """Two hazy ridges of the same kind behind the nearer ground, whose rim is returned."""
    width, height = canvas.size
    haze = canvas.getpixel((0, min(height - 1, int(stuff.top * height))))
    near = tile.getpixel((0, height - 1))
    for share, drop in ((0.42, 0.032), (0.20, 0.036)):
        ImageDraw.Draw(canvas).polygon([*rim, (width, height), (0, height)], fill=mix(near, haze, share))
        swing = edge(stuff.kind, False, rng)
        rim = [(x, y + height * max(0.006, drop + 0.9 * s)) for (x, y), s in zip(rim, swing, strict=True)]
    return rim


def _lay(canvas: Image.Image, tile: Image.Image, rim: list) -> None:
    """The texture below the rim, its far edge at the rim's highest point."""
    width, height = canvas.size
    top = max(0, int(min(y for _, y in rim)))
    mask = Image.new("L", (width, height - top))
    ImageDraw.Draw(mask).polygon([(x, y - top) for x, y in [*rim, (width, height), (0, height)]], fill=255)
    canvas.paste(tile.crop((0, 0, width, height - top)), (0, top), mask)


def _trim(canvas: Image.Image, tile: Image.Image, rim: list, stuff, behind: str) -> None:
    """Foam, kerbs and lit edges along the rim, and the middle line of a road."""
    width, height = canvas.size
    draw, tone = ImageDraw.Draw(canvas), tile.getpixel((0, 0))
    line = max(1, round(0.009 * math.sqrt(width * height)))
    if stuff.kind == "road":
        draw.line(rim, fill=mix(tone, CREAM, 0.65), width=2 * line)
        middle, dash = height * (stuff.top + stuff.bottom) / 2, 0.085 * math.sqrt(width * height)
        for k in range(int(width / dash / 1.9) + 1):
            x = (1.9 * k + 0.4) * dash
            draw.polygon(((x, middle), (x + dash, middle), (x + 0.9 * dash, middle + 1.6 * line),
                          (x - 0.1 * dash, middle + 1.6 * line)), fill=mix(tone, CREAM, 0.85))  # fmt: skip
    elif "sea" in (stuff.kind, behind) and behind not in SKIES:
        draw.line(rim, fill=mix(tone, (255, 255, 255), 0.75), width=round(1.6 * line))
        foam = [(x, y - height * 0.022) for x, y in rim] if behind == "sea" else rim
        draw.line(foam, fill=mix(tone, (225, 246, 246), 0.55), width=line)
    elif stuff.kind != "sea":
        draw.line(rim, fill=mix(tone, (255, 255, 255), 0.35), width=max(1, line // 2))
