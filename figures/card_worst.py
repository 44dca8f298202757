"""Draws the worst grounded answers: picture with predicted masks, the sentence, the truth, and the cause by rule."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from glamm_mini.data.sample import Sample
from glamm_mini.evaluation.gcg import GroundedImage, compare_images
from glamm_mini.evaluation.masks import decode_masks
from glamm_mini.evaluation.records import read_grounded_predictions, read_grounded_truth, read_json
from glamm_mini.evaluation.similarity import get_similarity
from glamm_mini.processing.tags import parse_grounded
from glamm_mini.storybook.scores.diagnosis import cause, diagnose, image_score
from glamm_mini.visuals.answer_png import compose
from glamm_mini.visuals.overlay import overlay_at_size
from glamm_mini.visuals.palette import PALETTE
from glamm_mini.visuals.sentence import Run, loose_phrases, sentence_runs
from glamm_mini.visuals.typeset import Style, draw_lines, set_lines

WIDTH, MARGIN, GAP, TALLEST = 484, 14, 10, 262
"""Pixels of a card, and of the tallest picture on one; two cards and three gaps make a sheet of about 1000."""
TEXT, SMALL = Style(16), Style(14)
PAPER, INK, QUIET, FAULT = (255, 255, 255), (26, 29, 33), (88, 95, 104), PALETTE[9]
LARGEST = 290_000


@dataclass
class Worst:
    """One bad answer. score: 0..1; cause: in words, by rule."""

    image: GroundedImage
    score: float
    cause: str


def read_images(folder: Path, split: str) -> list[GroundedImage]:
    """All predictions of task gcg in a folder, each with its truth."""
    truths, _ = read_grounded_truth(folder / "ground_truth", "gcg", split)
    predictions = read_grounded_predictions(folder, [truth.image_id for truth in truths])
    return compare_images(truths, predictions, get_similarity("storybook"))


def worst_of(images: list[GroundedImage], count: int = 10) -> list[Worst]:
    """The answers with the lowest score, worst first; equal ones in the order of their names."""
    ranked = sorted(images, key=lambda image: (image_score(image), image.truth.image_id))
    return [Worst(image, image_score(image), cause(diagnose(image))) for image in ranked[:count]]


def draw_worst(worst: list[Worst], samples: list[Sample], folder: Path, path: Path) -> None:
    """Write the sheet as PNG under 300 kB, with fewer colors where it needs them."""
    pictures = {sample.image_id: sample.image for sample in samples}
    cards = []
    for number, one in enumerate(worst, start=1):
        image_id = one.image.truth.image_id
        answer = answer_of(read_json(folder / f"{image_id}.json"), pictures[image_id])
        cards.append(_card(f"{number}", answer, one))
    sheet = compose(cards, columns=2, gap=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    for colors in (256, 160, 96, 64, 32):
        sheet.quantize(colors, kmeans=3, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size < LARGEST:
            break


def answer_of(record: dict, image: np.ndarray) -> SimpleNamespace:
    """A prediction's record as an answer that can be drawn: image (H, W, 3) uint8, caption, phrases with masks."""
    grounded = parse_grounded(record["text"])
    masks = decode_masks(record["pred_masks"], image.shape[:2])
    # A mask may lack words, so that there are fewer phrases in the text than masks.
    spans = [phrase.span for phrase in grounded.phrases] + [None] * len(masks)
    texts = [phrase.text for phrase in grounded.phrases] + [""] * len(masks)
    parts = zip(texts, spans, masks, strict=False)
    phrases = [SimpleNamespace(text=text, span=span, mask=mask) for text, span, mask in parts]
    return SimpleNamespace(image=image, caption=grounded.caption, phrases=phrases)


def _card(number: str, answer: SimpleNamespace, one: Worst) -> Image.Image:
    inner = WIDTH - 2 * MARGIN
    h, w = answer.image.shape[:2]
    scale = min(inner / w, TALLEST / h)
    picture = overlay_at_size(answer.image, [p.mask for p in answer.phrases], (round(w * scale), round(h * scale)))
    runs = sentence_runs(answer) or [Run("(no words)", None)]
    loose = [part for run in loose_phrases(answer) for part in (Run(" ", None), run)]
    head = (set_lines([Run(f"{number}. {one.cause}", None)], TEXT, inner), TEXT, FAULT)
    below = [
        (set_lines(runs + loose, TEXT, inner), TEXT, INK),
        (set_lines([Run(f"True: {one.image.truth.captions[0]}", None)], SMALL, inner), SMALL, QUIET),
    ]
    height = 2 * MARGIN + picture.height + sum(GAP + style.line * len(lines) for lines, style, _ in [head, *below])
    card = Image.new("RGB", (WIDTH, height), PAPER)
    y = _set(card, head, MARGIN, answer) + GAP
    card.paste(picture, ((WIDTH - picture.width) // 2, round(y)))
    y += picture.height
    for block in below:
        y = _set(card, block, y + GAP, answer)
    return card


def _set(card: Image.Image, block: tuple[list, Style, tuple], y: float, answer: SimpleNamespace) -> float:
    """Draw lines at y; returns the y of their lower end."""
    lines, style, ink = block
    return draw_lines(card, lines, style, (MARGIN, y), ink, answer.phrases)
