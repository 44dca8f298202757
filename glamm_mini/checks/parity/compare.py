"""Our model beside a reference case, quantity by quantity, in the order in which data flow through GLaMM."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch

from glamm_mini.checks.parity import weights
from glamm_mini.checks.parity.case import PARTS, ReferenceCase
from glamm_mini.checks.parity.case_outputs import Outputs

FEATURES = 1e-4
LOGITS = 1e-3
GRADIENTS = 5e-4
LOGIT_LIKE = ("logits", "masks", "iou_pred", "loss", "margin")


@dataclass
class Comparison:
    """One compared quantity.

    part: file that holds it; name: its name there. difference: the largest, or how many whole numbers differ.
    tolerance: what each number may differ by, times 1 + |expected|. share: of the tolerance that was used up.
    """

    part: str
    name: str
    difference: float
    tolerance: float
    share: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the two agree."""
        return bool(self.share <= 1)

    def to_dict(self) -> dict:
        """Plain values; what has no bound (of a missing quantity, or another whole number) is None."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in asdict(self).items() if isinstance(v, float)}
        return asdict(self) | finite | {"ok": self.ok}


def tolerance_of(name: str) -> float:
    """1e-4 for features and embeddings, 1e-3 for logits, masks and losses."""
    return LOGITS if any(word in name.split("/")[-1] for word in LOGIT_LIKE) else FEATURES


def compare_case(case: ReferenceCase, model=None) -> Iterator[Comparison]:
    """A row for every number that the case stores, as soon as it is compared; model: default `case.model()`.

    A part without numbers, and a number that we do not compute, is a row that is not ok.
    """
    for part in PARTS:
        if not case.names(part) or not case.meta.get(part):
            yield _missing(part, "everything", f"{case.folder} has no {part}.npz and meta for it, or empty ones")
    outputs = Outputs(case, case.model() if model is None else model)
    for stage in outputs.stages():
        yield from compare_stage(outputs, stage)


def compare_stage(outputs: Outputs, stage: str) -> Iterator[Comparison]:
    """The rows of one stage of `Outputs.stages`."""
    case = outputs.case
    part, _, tag = stage.partition(" ")
    left = [name for name in case.names(part) if not tag or name.startswith(f"{tag}/")]
    for name, value in outputs.stage(stage):
        if name in left:
            left.remove(name)
            yield _row(case, part, name, value)
        elif "/grad_norm/" in name:
            yield _norm(case, tag, name, float(value))
        elif name.endswith("/seg_positions"):
            expected = np.array(case.meta[part][tag].get("seg_positions", []), dtype=np.int64)
            yield measured_row(part, name, {name: expected}, value.numpy(), 0.0)
    for name in left:
        yield _missing(part, name, "stored in the case, but not computed by us")


def first_difference(rows: Iterator[Comparison]) -> tuple[Comparison | None, Comparison | None]:
    """The first row that is not ok, and the last before it that is; nothing behind it is computed. (None, last) if
    all agree."""
    before = None
    for row in rows:
        if not row.ok:
            return row, before
        before = row
    return None, before


def _row(case: ReferenceCase, part: str, name: str, value: torch.Tensor) -> Comparison:
    ours = value.detach().numpy()
    if name.endswith("/mask_area"):
        return _area(part, name, case.arrays(part)[name], *ours)
    if "/grad/" in name:
        return _gradient(case.arrays(part), name, ours)
    whole = ours.dtype.kind in "iub"
    return measured_row(part, name, case.arrays(part), ours, 0.0 if whole else tolerance_of(name))


def measured_row(part: str, name: str, stored: dict, ours: np.ndarray, tolerance: float) -> Comparison:
    """A row from `weights.measure`; another shape is a row that is not ok."""
    try:
        difference, share = weights.measure(stored, name, ours, tolerance)
    except ValueError as error:
        return _missing(part, name, str(error))
    return Comparison(part, name, difference, tolerance, share)


def _missing(part: str, name: str, note: str) -> Comparison:
    return Comparison(part, name, math.inf, 0.0, math.inf, note)


def _area(part: str, name: str, expected: np.ndarray, areas: np.ndarray, near: np.ndarray) -> Comparison:
    """Pixels near the threshold may fall on either side; more than those may not differ."""
    if expected.shape != areas.shape:
        return _missing(part, name, f"{len(areas)} masks, expected {len(expected)}")
    off = np.abs(expected - areas)
    share = max(
        (o / n if n else (math.inf if o else 0.0) for o, n in zip(off.tolist(), near.tolist(), strict=True)),
        default=0.0,
    )
    return Comparison(part, name, float(off.max(initial=0)), float(near.max(initial=0)), share)


def _gradient(stored: dict, name: str, ours: np.ndarray) -> Comparison:
    """On the scale of its largest entry: small entries of a gradient are sums that nearly cancel."""
    scale = max(float(np.abs(ours).max(initial=0)), 1e-8)
    whole = (f"{name}__shape", f"{name}__step")
    scaled = {
        key: value if key in whole else value / scale
        for key, value in stored.items()
        if key == name or key.startswith(f"{name}__")
    }
    row = measured_row("train", name, scaled, ours / np.float32(scale), GRADIENTS)
    row.note = row.note or "of the largest entry"
    return row


def _norm(case: ReferenceCase, tag: str, name: str, ours: float) -> Comparison:
    expected = case.gradient_norms(tag)[name.split("/grad_norm/")[1]]
    off = abs(ours - expected)
    allowed = GRADIENTS * abs(expected) + 1e-6
    share = off / allowed if math.isfinite(off) else math.inf
    return Comparison("train", name, off, GRADIENTS, share, "relative")
