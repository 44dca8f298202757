"""Pictures of notebook 14: memory as bars against the sizes of cards, and which GPU holds what."""

from collections.abc import Mapping, Sequence

from IPython.display import Image as Shown
from PIL import Image

from glamm_mini.course.drawing.compose import labeled
from glamm_mini.course.drawing.diagram import GRAY, INK, LINE, PAPER, QUIET, Diagram
from glamm_mini.course.drawing.explorer import PictureExplorer
from glamm_mini.course.drawing.illustration import illustration
from glamm_mini.model.config import SIZES, GlammConfig
from glamm_mini.visuals.palette import PALETTE, RGB, color, ink_on

KINDS: dict[str, RGB] = {
    "weights": PALETTE[0],
    "gradients": PALETTE[1],
    "optimizer": PALETTE[2],
    "gathered": PALETTE[11],
    "activations": PALETTE[3],
    "cache": PALETTE[7],
}
"""What fills a card, and its color."""

PART_INKS: dict[str, RGB] = {
    "global encoder": PALETTE[0],
    "V-L projector": PALETTE[7],
    "region encoder": PALETTE[2],
    "language model": PALETTE[1],
    "grounding encoder": PALETTE[3],
    "pixel decoder": PALETTE[6],
    "L-P projector": PALETTE[5],
}
"""The parts of the model, in the colors of the map where those differ enough."""

CARDS = (16, 24, 40, 80)
"""Gigabytes of common cards."""

WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "copies": ("every GPU holds everything", ()),
    "ZeRO-2": ("gradients and optimizer cut", ("gradients", "optimizer")),
    "full": ("everything cut (ZeRO-3, FSDP)", ("weights", "gradients", "optimizer")),
}
"""A way to share a training among GPUs: what it means, and which kinds are cut."""

_EDGE, _BAR, _ROW, _SIZE = 24, 46, 112, 26


def stacked_bars(
    rows: Mapping[str, Mapping[str, float]],
    inks: Mapping[str, RGB],
    unit: str = "GB",
    lines: Sequence[float] = (),
    width: int = 1600,
    form: str = "{:,.1f}",
    total: bool = True,
) -> Image.Image:
    """A bar a row, made of its parts one behind the other; the row's name and sum above it, a legend at the bottom.

    Args:
        rows: name to parts, in units. inks: part to color; parts of every row, in drawing order.
        lines: values at which an upright line crosses all bars, such as the sizes of cards.
        form: of numbers. total: whether the sum stands at the right end.
    """
    used = [part for part in inks if any(parts.get(part, 0) for parts in rows.values())]
    legend = _legend(used, width)
    top = 44 if lines else 8
    height = top + _ROW * len(rows) + 52 * len(legend) + 20
    diagram, most = Diagram(width, height), max([sum(parts.values()) for parts in rows.values()] + list(lines[-1:]))
    scale = (width - 2 * _EDGE) / (1.04 * most)
    filled = []
    for number, (name, parts) in enumerate(rows.items()):
        y = top + _ROW * number
        diagram.words((_EDGE, y + 22), name, _SIZE, bold=True)
        if total:
            words = f"{form.format(sum(parts.values()))} {unit}"
            diagram.words((width - _EDGE, y + 22), words, _SIZE, bold=True, anchor="rm")
        places = [_EDGE + value * scale for value in lines]
        filled.append(_bar(diagram, y + 44, parts, {part: inks[part] for part in used}, scale, form, places))
    last = float("-inf")
    for value in lines:
        x = _EDGE + value * scale
        _crossing(diagram, x, top, filled)
        words = f"{value:g} {unit}" if value == lines[-1] else f"{value:g}"
        if x - last > diagram.length(words, 24) + 8:
            diagram.words((x, top - 22), words, 24, ink=QUIET, anchor="mm")
            last = x
    for number, names in enumerate(legend):
        x = _EDGE
        for name in names:
            x = diagram.pill((x, top + _ROW * len(rows) + 26 + 52 * number), name, inks[name], 24) + 16
    return diagram.finish()


def _crossing(diagram: Diagram, x: float, top: float, filled: Sequence[list[tuple[float, float]]]) -> None:
    """An upright line at each row, with a rim of paper; where a number stands, what sticks out of the bar alone.

    filled: for each row where numbers stand in its bar, from x to x.
    """
    for number, spans in enumerate(filled):
        y0, y1 = top + _ROW * number + 38, top + _ROW * number + 50 + _BAR
        covered = any(start - 4 < x < end + 4 for start, end in spans)
        for start, stop in ((y0, y0 + 6), (y1 - 6, y1)) if covered else ((y0, y1),):
            diagram.card((x - 3, start, x + 3, stop), PAPER, 1, width=1, radius=0)
            diagram.card((x - 1, start, x + 1, stop), INK, 1, width=1, radius=0)


def _legend(names: Sequence[str], width: int) -> list[list[str]]:
    """Names broken into lines."""
    ruler, rows, x = Diagram(8, 8), [[]], 0.0
    for name in names:
        wide = ruler.length(name, 24) + 0.8 * 24 + 16
        if rows[-1] and x + wide > width - 2 * _EDGE:
            rows.append([])
            x = 0.0
        rows[-1].append(name)
        x += wide
    return rows


def _bar(
    diagram: Diagram,
    y: float,
    parts: Mapping[str, float],
    inks: Mapping[str, RGB],
    scale: float,
    form: str,
    lines: Sequence[float] = (),
) -> list[tuple[float, float]]:
    """Draws the parts of one row, each with its number where there is room; returns from where to where those stand.

    lines: the x of upright lines, which the numbers keep off if they can.
    """
    x, spans = float(_EDGE), []
    for part, ink in inks.items():
        wide = parts.get(part, 0) * scale
        if wide < 0.5:
            continue
        diagram.card((x, y, x + wide, y + _BAR), ink, 1, width=0, radius=0)
        words = form.format(parts[part])
        long = diagram.length(words, 24)
        middle = _clear(x, x + wide, long, lines)
        if long + 12 < wide:
            diagram.words((middle, y + _BAR / 2), words, 24, ink=ink_on(ink), anchor="mm")
            spans.append((middle - long / 2, middle + long / 2))
        x += wide
    return spans


def _clear(start: float, end: float, long: float, lines: Sequence[float]) -> float:
    """The middle of a number `long` pixels wide in a part of a bar: the place nearest to the part's own middle where no
    line comes close; that middle itself if there is none."""
    middle, reach = (start + end) / 2, long / 2 + 10
    edges = [start, *(x for x in lines if start < x < end), end]
    gaps = [(a + reach, b - reach) for a, b in zip(edges, edges[1:], strict=False) if b - a >= 2 * reach]
    return min((min(max(middle, a), b) for a, b in gaps), key=lambda x: abs(x - middle), default=middle)


def memory_bars(rows: Mapping[str, Mapping[str, float]], width: int = 1600) -> Image.Image:
    """Gigabytes of each kind of KINDS, row by row, against the cards of CARDS."""
    return stacked_bars(rows, KINDS, "GB", CARDS, width)


def memory_figure(rows: Mapping[str, Mapping[str, float]]) -> Shown:
    """`memory_bars` as a cell ends with it, its numbers in words for readers who do not see it."""
    told = [f"{name}: {in_words(parts)}" for name, parts in rows.items()]
    return illustration(memory_bars(rows), f"Bars against cards of 16, 24, 40 and 80 GB. {'; '.join(told)}", width=800)


def in_words(kinds: Mapping[str, float]) -> str:
    """The sum of gigabytes, and its kinds: "20.5 GB (weights 17.2, gradients 3.3)"."""
    parts = ", ".join(f"{kind} {size:.1f}" for kind, size in kinds.items())
    return f"{sum(kinds.values()):.1f} GB ({parts})"


def who_holds(gpus: int = 4) -> Image.Image:
    """Three ways to share a training, a row each; a column for each GPU, and in it what it holds of every kind.

    Each kind is a strip of as many cells as there are GPUs; cells that a GPU does not hold are empty.
    """
    kinds = ("weights", "gradients", "optimizer")
    left, gap, strip, tall = 430, 26, 44, 196
    side = (1600 - left - gap * gpus) / gpus
    diagram = Diagram(1600, 60 + tall * len(WAYS) + 60)
    for gpu in range(gpus):
        diagram.words((left + gpu * (side + gap) + side / 2, 32), f"GPU {gpu}", _SIZE, bold=True, anchor="mm")
    for row, (way, (words, cut)) in enumerate(WAYS.items()):
        y = 60 + tall * row
        diagram.words((_EDGE, y + 60), way, 30, bold=True)
        diagram.lines((_EDGE, y + 100), diagram.wrap(words, left - 50, 24), 24, ink=QUIET)
        for gpu in range(gpus):
            x = left + gpu * (side + gap)
            diagram.card((x, y, x + side, y + tall - 20), LINE, 0.05, width=3)
            cell = (side - 28) / gpus
            for number, kind in enumerate(kinds):
                for piece in range(gpus):
                    x0, y0 = x + 14 + piece * cell, y + 14 + number * (strip + 8)
                    held = kind not in cut or piece == gpu
                    ink = KINDS[kind] if held else GRAY
                    diagram.card((x0 + 2, y0, x0 + cell - 2, y0 + strip), ink, 1 if held else 0, width=2, radius=4)
    x = float(left)
    for kind in kinds:
        x = diagram.pill((x, 60 + tall * len(WAYS) + 26), kind, KINDS[kind], 24) + 16
    return diagram.finish()


def slices_picture(rows: Mapping[str, Sequence[int]], words: Sequence[str]) -> Image.Image:
    """Matrices cut among processes: a strip for each, its pieces as long as the rows that each process holds.

    rows: name to the number of rows of every process. words: what the processes are called.
    """
    left, tall = 640, 76
    diagram = Diagram(1600, 24 + tall * len(rows) + 60)
    for number, (name, counts) in enumerate(rows.items()):
        y, x = 20 + tall * number, float(left)
        diagram.words((_EDGE, y + 26), name, 24)
        for process, count in enumerate(counts):
            if not count:
                continue  # a process may hold nothing of a short matrix
            wide = (1600 - left - _EDGE) * count / sum(counts)
            ink = color(process + 6)
            diagram.card((x, y, x + wide - 4, y + 52), ink, 1, width=0, radius=4)
            diagram.words((x + wide / 2, y + 26), f"{count}", 24, ink=ink_on(ink), anchor="mm")
            x += wide
    x = float(left)
    for process, word in enumerate(words):
        x = diagram.pill((x, 24 + tall * len(rows) + 24), word, color(process + 6), 24) + 16
    return diagram.finish()


def in_gigabytes(kinds: Mapping[str, float]) -> dict[str, float]:
    """Bytes of each kind as gigabytes, of 10^9 bytes."""
    return {kind: size / 1e9 for kind, size in kinds.items()}


def verdict(gigabytes: float) -> str:
    """In words: the smallest card of CARDS that a sum fits on, with a tenth of the card left free."""
    for card in CARDS:
        if gigabytes <= 0.9 * card:
            return f"fits on a card of {card} GB"
    return f"fits on no card of {CARDS[-1]} GB"


# ---- the calculator ----

TRAINED = {"nothing": "none", "official": "official", "everything": "all"}
TYPES = {"float32": "float32", "bfloat16": "bfloat16", "4 bits": "4bit"}
SHARED = {"copies": "ddp", "ZeRO-2": "zero2", "full": "full"}
"""What the reader chooses to what `memory_report` calls it."""


def calculation(choice: Mapping) -> tuple[Image.Image, str]:
    """What one GPU needs, as a bar against the sizes of cards, and in words. Rows are as long as is allowed."""
    config, trained = GlammConfig.of_size(choice["size"]), TRAINED[choice["trained"]]
    gpus, rows, longest = choice["GPUs"], choice["rows"], config.prompt.max_length
    answer = ANSWER if trained == "none" else 0
    try:
        report = config.memory_report(
            TYPES[choice["numbers"]],
            trained=trained,
            sharding=SHARED[choice["sharing"]] if gpus > 1 else "none",
            devices=gpus,
            checkpointing=choice["checkpointing"] == "on",
            batch=rows,
            text_tokens=longest - config.image_tokens - answer,
            new_tokens=ANSWER,
        )
    except ValueError:
        return memory_bars({"not possible": {}}, CALCULATOR), "What is trained cannot be kept in 4 bits."
    kinds = {kind: report["total"][kind] / 1000 for kind in KINDS}
    way = f"{choice['sharing']} x {gpus}" if gpus > 1 else "1 GPU"
    name = f"{choice['size']}, {choice['trained']} trained, {choice['numbers']}, {way}"
    listed = ", ".join(f"{kind} {_size(size)}" for kind, size in kinds.items() if size)
    words = f"{_size(report.gigabytes)} a GPU: {verdict(report.gigabytes)}; "
    words += f"{gpus * rows} row{'s' * (gpus * rows > 1)} of {longest} tokens in a pass"
    words += f", {rows} on each GPU" if gpus > 1 else ""
    return memory_bars({name: kinds}, CALCULATOR), f"{words}\n{listed}"


def _size(gigabytes: float) -> str:
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"


CALCULATOR = 880
"""Pixels of the calculator's picture."""

ANSWER = 100
"""Tokens of an answer, of the row that it ends."""


class _Calculator(PictureExplorer):
    """Its stored picture has two panels a row, in letters of the size of the page's."""

    def static_picture(self) -> Image.Image:
        drawn = [self._draw(self._first | panel) for panel in self._panels]
        return labeled(*zip(*drawn, strict=True), columns=2, width=1600)


def memory_calculator() -> PictureExplorer:
    """Choose size, trained parts, numbers, rows, GPUs and sharing; see what fills a GPU, and which card it fits."""
    official = {"size": "7b", "trained": "official", "numbers": "bfloat16", "rows": 2, "checkpointing": "on"}
    return _Calculator(
        calculation,
        {
            "size": (list(SIZES), "7b"),
            "trained": (list(TRAINED), "official"),
            "numbers": (list(TYPES), "bfloat16"),
            "checkpointing": (["off", "on"], "on"),
            "sharing": (list(SHARED), "ZeRO-2"),
            "GPUs": ([1, 2, 4, 8, 16, 32], 8),
            "rows": ([1, 2, 4, 8, 16], 2),
        },
        title="What fills a GPU?",
        width=640,
        panels=[
            official,
            official | {"size": "colab", "GPUs": 1, "rows": 1},
            official | {"trained": "everything", "GPUs": 8, "sharing": "full"},
            {"size": "7b", "trained": "nothing", "numbers": "4 bits", "GPUs": 1, "rows": 1},
        ],
    )
