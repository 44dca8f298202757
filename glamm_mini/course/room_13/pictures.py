"""Pictures of notebook 13: the map of names, numbers digit by digit, and differences along the flow of data."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from glamm_mini.checkpoints.official import official_to_ours
from glamm_mini.checks.parity.case import ReferenceCase
from glamm_mini.checks.parity.case_outputs import Outputs
from glamm_mini.checks.parity.compare import compare_stage
from glamm_mini.course.drawing.diagram import BLUE, GRAY, INK, LINE, QUIET, Diagram
from glamm_mini.course.drawing.maps import PARTS, WIDTH
from glamm_mini.visuals.palette import PALETTE

WRONG = PALETTE[5]
"""Vermillion: what does not agree. BLUE is what does."""


class Counted(NamedTuple):
    """Official names that begin alike. official: the beginning. ours: the part of GLaMM that they belong to. tensors,
    parameters: how many. saved: whether a released checkpoint holds them."""

    official: str
    ours: str
    tensors: int
    parameters: int
    saved: bool = True


HOMES = dict(
    language_model="language model",
    global_encoder="global encoder",
    vl_projector="V-L projector",
    region_encoder="region encoder",
    grounding_encoder="grounding encoder",
    pixel_decoder="pixel decoder",
    lp_projector="L-P projector",
)
"""Beginnings of our names to parts of GLaMM, in the order of the map."""


def count_names(manifest: Mapping[str, Mapping]) -> list[Counted]:
    """The parameters of a manifest (official name -> shape, saved), counted by beginnings of names, part by part.

    Buffers are left out: computed ones, and SAM's matrix of position frequencies.
    """
    counted: dict[str, Counted] = {}
    for name, entry in manifest.items():
        ours = official_to_ours(name)
        if ours is None or name.endswith("gaussian_matrix"):
            continue
        key = ".".join(name.split(".")[: 3 if "grounding_encoder" in name else 2]).removesuffix(".weight")
        old = counted.get(key, Counted(key, HOMES[ours.split(".")[0]], 0, 0, entry["saved"]))
        counted[key] = old._replace(tensors=old.tensors + 1, parameters=old.parameters + math.prod(entry["shape"]))
    return sorted(counted.values(), key=lambda row: list(HOMES.values()).index(row.ours))


def name_map(rows: Sequence[Counted]) -> Image.Image:
    """Official names on the left, our parts on the right, and a bar for the parameters of each, 1600 pixels wide.

    Rows of one part follow each other. Raises ValueError for a part that GLaMM does not have.
    """
    unknown = sorted({row.ours for row in rows} - set(PARTS))
    if unknown:
        raise ValueError(f"no part {unknown}; the parts are {', '.join(PARTS)}")
    tall, top = 64, 70
    diagram = Diagram(WIDTH, top + tall * len(rows) + 20)
    for x, text in (
        (40, "names in the checkpoint"),
        (668, "our part"),
        (1010, "parameters, million"),
        (1448, "tensors"),
    ):
        diagram.words((x, 34), text, 24, bold=True, ink=QUIET)
    for number, row in enumerate(rows):
        y, color = top + tall * number, PARTS[row.ours][2]
        diagram.card((26, y, 584, y + tall - 12), color if row.saved else GRAY, 0.10, width=3 if row.saved else 2)
        diagram.words((44, y + 26), row.official, 24, ink=INK if row.saved else QUIET)
        diagram.arrow([(590, y + 26), (644, y + 26)], width=4, head=14)
        _amount(diagram, row, y + 26, max(each.parameters for each in rows))
    for first, last in _runs([row.ours for row in rows]):
        y0, y1 = top + tall * first, top + tall * (last + 1) - 12
        diagram.card((650, y0, 960, y1), PARTS[rows[first].ours][2], 0.20)
        diagram.words((805, (y0 + y1) / 2), rows[first].ours, 25, bold=True, anchor="mm")
    return diagram.finish()


def _amount(diagram: Diagram, row: Counted, y: float, most: int) -> None:
    long = max(3.0, 250 * row.parameters / most)
    diagram.card((1010, y - 15, 1010 + long, y + 15), PARTS[row.ours][2], 0.9, width=0, radius=2)
    text = f"{row.parameters / 1e6:,.1f}" if row.parameters >= 5e4 else f"{row.parameters / 1e6:.3f}"
    diagram.words((1010 + long + 14, y), text if row.saved else f"{text}, not saved", 24)
    diagram.words((1548, y), str(row.tensors), 24, ink=QUIET, anchor="rm")


def _runs(values: Sequence[str]) -> list[tuple[int, int]]:
    """First and last place of each stretch of equal values."""
    starts = [k for k, value in enumerate(values) if k == 0 or value != values[k - 1]]
    return list(zip(starts, [k - 1 for k in starts[1:]] + [len(values) - 1], strict=True))


# ---- numbers, digit by digit ----


def first_numbers(
    case: ReferenceCase, model, chosen: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, float, float]]:
    """The first number of chosen arrays, official and ours: (title, official, ours) each.

    chosen: stage of the case (see `parity.outputs.Outputs.stages`) -> array's name -> title.
    """
    outputs, rows = Outputs(case, model), []
    for stage, titles in chosen.items():
        stored = case.arrays(stage.split()[0])
        for name, value in outputs.stage(stage):
            if name in titles:
                official = stored[name] if name in stored else stored[f"{name}__sample"]
                rows.append((titles[name], float(official.flat[0]), value.flatten()[0].item()))
    return rows


def digit_rows(rows: Sequence[tuple[str, float, float]], digits: int = 9) -> Image.Image:
    """Rows of (name, official, ours): both numbers with `digits` figures behind the point; what differs is colored."""
    tall, top, step = 62, 84, 19
    diagram = Diagram(WIDTH, top + tall * len(rows) + 16)
    columns = 590, 1000
    for x, text in zip((40, *columns, 1400), ("quantity", "official", "ours", "difference"), strict=True):
        diagram.words((x, 36), text, 25, bold=True, ink=QUIET)
    for number, (name, theirs, mine) in enumerate(rows):
        y = top + tall * number + 20
        diagram.words((40, y), name, 25)
        texts = [f"{value:+.{digits}f}" for value in (theirs, mine)]
        same = next((k for k, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), len(texts[0]))
        for x, text in zip(columns, texts, strict=True):
            for k, letter in enumerate(text):
                at = (x + step * k + step / 2, y)
                diagram.words(at, letter, 29, bold=k >= same, ink=INK if k < same else WRONG, anchor="mm")
        diagram.words((1400, y), f"{abs(mine - theirs):.0e}" if mine != theirs else "none", 25, ink=QUIET)
    return diagram.finish()


# ---- differences along the flow ----


class Stage(NamedTuple):
    """One quantity on its way through GLaMM. part: of GLaMM, or "losses". name: what is compared. share: how much of
    its own tolerance the worst of its numbers uses; infinite where one is not a number."""

    part: str
    name: str
    share: float

    @property
    def agrees(self) -> bool:
        """Whether every number is within its tolerance."""
        return self.share <= 1


FLOW = (
    ("global encoder", "patches and places", "vision", r"clip_hidden_0"),
    ("global encoder", "after layer {}", "vision", r"clip_hidden_(\d+)"),
    ("global encoder", "what is handed on", "vision", r"features"),
    ("V-L projector", "features as words", "vision", r"projected"),
    ("region encoder", "four levels", "region", r"fuse_in_level\d"),
    ("region encoder", "levels after mixing", "region", r"fuse_out_level\d"),
    ("region encoder", "boxes cut out", "region", r"one_two/roi_level\d"),
    ("region encoder", "places of the boxes", "region", r"one_two/pos_embedd"),
    ("region encoder", "one vector a box", "region", r"one_two/out_image\d"),
    ("language model", "a row with boxes", "splice reg_boxes", r"reg_boxes/embeds"),
    ("language model", "last state, no boxes", "train seg", r"seg/last_hidden"),
    ("language model", "logits of the words", "train seg", r"seg/logits"),
    ("L-P projector", "states as prompts", "train seg", r"seg/text_hidden_fcs_out"),
    ("L-P projector", "prompts of the [SEG]s", "train seg", r"seg/pred_embeddings_image\d"),
    ("grounding encoder", "grid of features", "train seg", r"seg/sam_embedding_image\d"),
    ("pixel decoder", "masks as drawn", "train seg", r"seg/low_res_masks_image\d"),
    ("pixel decoder", "masks in picture size", "train seg", r"seg/pred_masks_image\d"),
    ("losses", "of the words", "train seg", r"seg/ce_loss"),
    ("losses", "of the masks", "train seg", r"seg/mask_loss"),
)
"""Part, quantity, stage of the case, and the arrays there (a pattern of their names), in the order of the flow.

They come from several runs: `splice reg_boxes` asks about boxes, `train seg` asks for masks and has no boxes."""


def flow(case: ReferenceCase, model) -> list[Stage]:
    """Our model's numbers beside the official ones of a case, in the order of the flow; one Stage may stand for
    several arrays, of which it takes the worst."""
    outputs, found = Outputs(case, model), {}
    for stage in dict.fromkeys(where for _, _, where, _ in FLOW):
        for row in compare_stage(outputs, stage):
            place, name = _watched(stage, row.name, model.config.vision.num_hidden_layers)
            if name:
                old = found.get((place, name))
                found[place, name] = Stage(FLOW[place][0], name, max(row.share, old.share if old else 0.0))
            if row.name.endswith("/loss"):
                break  # what follows are gradients, made only for those who go on
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _watched(stage: str, array: str, layers: int) -> tuple[int, str]:
    """Which entry of FLOW an array belongs to, and the quantity's name; "" for none."""
    for place, (_, name, where, pattern) in enumerate(FLOW):
        hit = re.fullmatch(pattern, array) if where == stage else None
        if hit:
            number = int(hit[1]) if hit.groups() else 0
            return place, name.format(number) if number < layers else ""  # nothing reads the state of the last layer
    return -1, ""


def broken_flow(case: ReferenceCase, breaks: Mapping[str, Callable]) -> Callable[[dict], tuple[Image.Image, str]]:
    """What a `PictureExplorer` draws: the flow of a fresh model after `breaks[choice["broken"]](model)`, which changes
    it in place, and which quantity is the first to differ. Every flow is computed once."""
    known: dict[str, list[Stage]] = {}

    def draw(choice: dict) -> tuple[Image.Image, str]:
        what = choice["broken"]
        if what not in known:
            model = case.model()
            breaks[what](model)
            known[what] = flow(case, model)
        return stage_bars(known[what], narrow=True), f"{what}: {first_words(known[what])}"

    return draw


LOWEST, HIGHEST = -4, 5
"""The powers of ten that the scale of `stage_bars` shows; what is smaller or larger stands at its ends."""

SCALE = {-4: "1 / 10000", -2: "1 / 100", 0: "tolerance", 2: "x 100", 4: "x 10000"}
"""Power of ten -> what the scale says there."""


class _Sheet(NamedTuple):
    """Measures of the wide and of the narrow form."""

    width: int
    name: int
    left: int
    right: int
    row: int
    step: int


WIDE, NARROW = _Sheet(1600, 330, 720, 1470, 40, 2), _Sheet(800, 26, 340, 760, 34, 4)


def stage_bars(stages: Sequence[Stage], title: str = "", narrow: bool = False) -> Image.Image:
    """How much of its own tolerance every stage uses, as bars on a scale of powers of ten, in the order of the flow.

    The dark line is the tolerance. Blue bars end before it; vermillion ones do not, and their names are bold.
    narrow: half as wide, the names of the parts above their quantities instead of beside them, for small places.
    """
    sheet, top = (NARROW, 52) if narrow else (WIDE, 60)
    top += 44 if title else 0
    runs, head = _runs([stage.part for stage in stages]), NARROW.row if narrow else 0
    bottom = top + sheet.row * len(stages) + head * len(runs)
    diagram = Diagram(sheet.width, bottom + 20)
    if title:
        diagram.words((26 if narrow else 40, 34), title, 27, bold=True)
    for power in range(LOWEST, HIGHEST + 1, sheet.step):
        x = _place(10.0**power, sheet)
        color, alpha, half = (GRAY, 0.5, 1) if power else (INK, 1.0, 2)
        diagram.words((x, top - 28), SCALE[power], 24, ink=INK if power == 0 else QUIET, anchor="mm")
        diagram.card((x - half, top - 10, x + half, bottom), color, alpha, width=0, radius=0)
    for number, (first, last) in enumerate(runs):
        color = PARTS[stages[first].part][2] if stages[first].part in PARTS else LINE
        y0 = top + sheet.row * first + head * number
        y1 = y0 + sheet.row * (last + 1 - first) + head
        x = 8 if narrow else 34
        diagram.card((x, y0 + 3, x + 10, y1 - 3), color, 1.0, width=0, radius=3)
        ink = QUIET if narrow else INK  # there, bold black words are names of what differs
        diagram.words((26 if narrow else 60, y0 + sheet.row / 2), stages[first].part, 24, bold=True, ink=ink)
        for place, stage in enumerate(stages[first : last + 1]):
            _bar(diagram, stage, y0 + head + sheet.row * (place + 0.5), sheet)
    return diagram.finish()


def _bar(diagram: Diagram, stage: Stage, y: float, sheet: _Sheet) -> None:
    color = BLUE if stage.agrees else WRONG
    diagram.words((sheet.name, y), stage.name, 24, bold=not stage.agrees)
    end = max(_place(stage.share, sheet), sheet.left + 4)
    diagram.card((sheet.left, y - 10, end, y + 10), color, 0.85, width=0, radius=3)
    if not stage.agrees and sheet is WIDE:
        diagram.words((end + 10, y), "differs", 24, bold=True, ink=WRONG)


def _place(value: float, sheet: _Sheet) -> float:
    power = min(max(math.log10(value), LOWEST), HIGHEST) if value > 0 else LOWEST
    return sheet.left + (sheet.right - sheet.left) * (power - LOWEST) / (HIGHEST - LOWEST)


def first_words(stages: Sequence[Stage]) -> str:
    """One line: how many stages agree, and the first that does not, or the one nearest to its tolerance."""
    good = sum(stage.agrees for stage in stages)
    if good == len(stages):
        worst = max(stages, key=lambda stage: stage.share)
        return f"all {good} quantities agree; nearest to its tolerance: {worst.name}, {worst.share:.0%} of it"
    stage = next(stage for stage in stages if not stage.agrees)
    return (
        f"{good} of {len(stages)} quantities agree; the first that does not: {stage.name} ({stage.part}), "
        f"{stage.share:,.0f} times its tolerance"
    )
