"""The two maps of the course: the series of notebooks, and GLaMM itself with the notebook that builds each part."""

from collections.abc import Collection
from typing import NamedTuple

from PIL import Image

from glamm_mini.course.drawing.diagram import BLUE, GRAY, GREEN, INK, ORANGE, PURPLE, QUIET, Box, Diagram, fitted
from glamm_mini.visuals.palette import RGB

WIDTH = 1600
MARGIN = 40
HERE = "you are here"


class Room(NamedTuple):
    """One notebook. name: its file without ending. builds: what you have when you leave it. built: can be opened."""

    name: str
    title: str
    builds: str
    built: bool = False

    @property
    def number(self) -> str:
        """ "07"."""
        return self.name[:2]


class Floor(NamedTuple):
    """Rooms that belong together, in reading order; `rows` says how many of them stand side by side."""

    title: str
    color: RGB
    rooms: tuple[Room, ...]
    per_row: int


FLOORS = (
    Floor("Look around", BLUE, (
        Room("00_tour", "What GLaMM is", "every task, tried on the tiny model", built=True),
        Room("01_storybook_data", "A world of our own", "pictures, masks and talk without end", built=True),
        Room("02_grounding_tokens", "Words with masks", "[SEG], phrases, prompts, labels", built=True),
    ), 3),
    Floor("Build the parts", GREEN, (
        Room("03_vl_projector", "Sight to words", "global encoder, V-L projector", built=True),
        Room("04_region_encoder", "Box to token", "four levels, RoIAlign", built=True),
        Room("05_grounding_encoder", "Seeing in detail", "windowed attention", built=True),
        Room("06_pixel_decoder", "State to mask", "two-way attention, L-P projector", built=True),
    ), 4),
    Floor("Put it together", ORANGE, (
        Room("07_glamm", "The whole model", "one forward pass, words and masks", built=True),
        Room("08_training", "Teach it", "losses, recipe, your own tiny model", built=True),
        Room("09_grounded_conversation", "Talk and measure", "chat, mask recall, AP50, mIoU", built=True),
    ), 3),
    Floor("Out into the world", PURPLE, (
        Room("10_public_data", "Public data", "a loader for each dataset"),
        Room("11_grand_pipeline", "The GranD pipeline", "annotations from models, four levels"),
        Room("12_public_evaluation", "Public benchmarks", "the paper's tables beside ours"),
        Room("13_official_weights", "Official weights", "the 7B model, loaded and compared", built=True),
        Room("14_scaling_to_7b", "Scaling to 7B", "memory, LoRA, many GPUs", built=True),
        Room("15_beyond", "Beyond", "what came after, what is open"),
    ), 3),
)  # fmt: skip

ROOMS = tuple(room for floor in FLOORS for room in floor.rooms)

_CARD, _GAP, _HEAD, _ARROW = 148, 22, 62, 44


def series_map(lit: str | None = None) -> Image.Image:
    """The map of the series, 1600 pixels wide. Rooms that are not built yet are gray; `lit` is the one you are in.

    Raises ValueError for a room that is not on the map.
    """
    if lit is not None and lit not in {room.name for room in ROOMS}:
        raise ValueError(f"no room {lit!r}; the rooms are {', '.join(room.name for room in ROOMS)}")
    rows = [-(-len(floor.rooms) // floor.per_row) for floor in FLOORS]
    height = 2 * MARGIN - _GAP + sum(_HEAD + count * (_CARD + _GAP) for count in rows)
    diagram, top = Diagram(WIDTH, height), MARGIN
    for floor, count in zip(FLOORS, rows, strict=True):
        diagram.words((MARGIN, top + 20), floor.title, 28, bold=True, ink=QUIET)
        top += _HEAD
        for row in range(count):
            rooms = floor.rooms[row * floor.per_row : (row + 1) * floor.per_row]
            _row(diagram, floor, rooms, top + row * (_CARD + _GAP), lit)
        top += count * (_CARD + _GAP)
    return diagram.finish()


def _row(diagram: Diagram, floor: Floor, rooms: tuple[Room, ...], top: float, lit: str | None) -> None:
    """Rooms side by side, with arrows between them."""
    width = (WIDTH - 2 * MARGIN - (floor.per_row - 1) * _ARROW) / floor.per_row
    for number, room in enumerate(rooms):
        left = MARGIN + number * (width + _ARROW)
        _room(diagram, (left, top, left + width, top + _CARD), room, floor.color, room.name == lit)
        if number + 1 < len(rooms):
            y = top + _CARD / 2
            diagram.arrow([(left + width + 7, y), (left + width + _ARROW - 7, y)], GRAY)


def _room(diagram: Diagram, box: Box, room: Room, color: RGB, lit: bool) -> None:
    """A card: number and title, below them what the room builds. The lit one is framed heavily and says so."""
    left, top, right, _ = box
    if not room.built:
        diagram.card(box, GRAY, 0.10, width=2)
    else:
        diagram.card(box, color, 0.30 if lit else 0.14, width=8 if lit else 4)
    ink = INK if room.built else QUIET
    end = diagram.pill((left + 22, top + 42), room.number, color if room.built else QUIET, 27, bold=True)
    diagram.words((end + 14, top + 42), room.title, 27, bold=True, ink=ink)
    lines = diagram.wrap(room.builds, right - left - 44, 24)
    diagram.lines((left + 22, top + 84), lines, 24, ink=ink)
    if lit:
        diagram.pill((right - 30 - diagram.length(HERE, 22, bold=True), top), HERE, color, 22, bold=True)


def room_table() -> str:
    """The list of rooms as a Markdown table, the open ones linked."""
    lines = ["| room | | what you build |", "|---|---|---|"]
    for room in ROOMS:
        name = f"[{room.name}]({room.name}.ipynb)" if room.built else f"{room.name} (not built yet)"
        lines.append(f"| {name} | {room.title} | {room.builds} |")
    return "\n".join(lines)


# ---- GLaMM itself ----

PARTS: dict[str, tuple[Box, str, RGB, str]] = {
    "global encoder": ((320, 60, 620, 180), "sees the whole", BLUE, "03"),
    "V-L projector": ((690, 60, 950, 180), "sight to words", BLUE, "03"),
    "region encoder": ((690, 240, 950, 360), "box to token", PURPLE, "04"),
    "language model": ((1020, 60, 1280, 500), "reads and writes", ORANGE, "07"),
    "L-P projector": ((1345, 380, 1570, 500), "state to prompt", ORANGE, "06"),
    "grounding encoder": ((320, 590, 620, 710), "sees fine detail", GREEN, "05"),
    "pixel decoder": ((1020, 590, 1280, 710), "draws the mask", GREEN, "06"),
}
"""Name of a part to: its box, what it does, its color, the room that builds it."""


def architecture(
    picture: Image.Image, masked: Image.Image, lit: Collection[str] | None = None, phrase: str = "one thing"
) -> Image.Image:
    """GLaMM on one page, 1600 pixels wide: its parts, and how a picture and a question flow through them.

    Args:
        picture: what goes in. masked: the same with the masks that come out. Both keep their shape.
        lit: the parts in color, of PARTS; all if left out.
        phrase: what the answer names first; a few letters. The words left out are true of any picture.

    Raises:
        ValueError: for a part that GLaMM does not have.
    """
    parts = set(PARTS) if lit is None else set(lit)
    if not parts <= set(PARTS):
        raise ValueError(f"no part {sorted(parts - set(PARTS))}; the parts are {', '.join(PARTS)}")
    diagram = Diagram(WIDTH, 780)
    _flow(diagram)
    for name in PARTS:
        _part(diagram, name, name in parts)
    _ends(diagram, picture, masked, phrase)
    return diagram.finish()


def _part(diagram: Diagram, name: str, lit: bool) -> None:
    (x0, y0, x1, y1), does, color, room = PARTS[name]
    diagram.card((x0, y0, x1, y1), color if lit else GRAY, 0.20 if lit else 0.08)
    middle, center, ink = (y0 + y1) / 2, (x0 + x1) / 2, INK if lit else QUIET
    diagram.words((center, middle - 18), name, 25, bold=True, ink=ink, anchor="mm")
    diagram.words((center, middle + 20), does, 24, ink=ink, anchor="mm")
    diagram.pill((x1 - 62, y1), room, color if lit else QUIET, 24, bold=True)


def _flow(diagram: Diagram) -> None:
    """The arrows, and the words on them."""
    diagram.arrow([(620, 120), (684, 120)])
    diagram.arrow([(950, 120), (1014, 120)])
    diagram.arrow([(470, 180), (470, 300), (684, 300)])
    diagram.words((488, 274), "4 levels", 24, ink=QUIET)
    diagram.arrow([(950, 300), (1014, 300)])
    diagram.arrow([(950, 450), (1014, 450)])
    diagram.arrow([(1280, 180), (1339, 180)])
    diagram.arrow([(1457, 318), (1457, 374)])
    diagram.words((1440, 344), "its state", 24, ink=QUIET, anchor="rm")
    diagram.arrow([(1457, 500), (1457, 545), (1150, 545), (1150, 584)])
    diagram.arrow([(620, 650), (1014, 650)])
    diagram.words((817, 624), "a grid of features", 24, ink=QUIET, anchor="mm")


def _ends(diagram: Diagram, picture: Image.Image, masked: Image.Image, phrase: str) -> None:
    """What goes in and what comes out, with the arrows from and to the pictures."""
    place = fitted(picture, (30, 290, 260, 520))
    diagram.arrow([(145, place[1]), (145, 120), (314, 120)])
    diagram.arrow([(145, place[3]), (145, 650), (314, 650)])
    diagram.paste(picture, place)
    diagram.words((30, place[1] - 28), "picture", 24, bold=True, ink=QUIET)
    diagram.card((320, 400, 950, 500), GRAY, 0.06, width=2)
    diagram.words((342, 430), "question", 24, bold=True, ink=QUIET)
    diagram.words((342, 468), "“What is in <bbox>? Answer with masks.”", 24)
    diagram.card((1345, 60, 1570, 318), GRAY, 0.06, width=2)
    diagram.words((1367, 92), "answer", 24, bold=True, ink=QUIET)
    diagram.words((1367, 148), "It is <p>", 24)
    diagram.pill((1367, 204), phrase, BLUE, 24)
    diagram.words((1367, 260), "</p>", 24)
    diagram.words((diagram.pill((1436, 260), "[SEG]", BLUE, 24, bold=True) + 8, 260), "…", 24)
    place = fitted(masked, (1352, 555, 1562, 765))
    diagram.paste(masked, place)
    diagram.arrow([(1280, 650), (place[0] - 13, 650)])
