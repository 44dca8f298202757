"""The figures of unseen things alone: those whose pair of class and color training never showed.

On the split "compositional" most of a picture is still known, so that a figure over everything hides how the model
does on what is new. Ground truth may mark each unseen thing (storybook's does); matching is that of the fixed protocol,
made over everything in the picture, and only then restricted: a mask that goes to a seen thing is not a miss of an
unseen one.
"""

import numpy as np

from glamm_mini.evaluation.gcg import GroundedImage, optimal_pairs
from glamm_mini.evaluation.segmentation import fixed_refseg


def unseen_grounding(images: list[GroundedImage]) -> dict | None:
    """miou and recall in 0..1 over the unseen phrases of the truth, and their number; None where there is none.

    Both are the fixed protocol's: miou is the mean over images of paired IoU / true masks, recall counts pairs with
    IoU >= 0.5 and a right phrase. Images without an unseen phrase are left out.
    """
    mious, right, phrases = [], 0, 0
    for image in images:
        wanted = {k for k, unseen in enumerate(image.truth.unseen) if unseen}
        if not wanted:
            continue
        pairs = [pair for pair in optimal_pairs(image) if pair.truth in wanted]
        mious.append(sum(pair.iou for pair in pairs) / len(wanted))
        right += sum(pair.right and pair.iou >= 0.5 for pair in pairs)
        phrases += len(wanted)
    return {"miou": float(np.mean(mious)), "recall": right / phrases, "phrases": phrases} if phrases else None


def unseen_refseg(pairs: list[tuple[np.ndarray, np.ndarray]], unseen: list[bool]) -> dict | None:
    """ciou, giou and p50 over the expressions that are marked; None where none is.

    pairs: (true, predicted) of (H, W) bool for every expression; unseen: one mark a pair.
    """
    kept = [pair for pair, marked in zip(pairs, unseen, strict=True) if marked]
    return {**fixed_refseg(kept), "expressions": len(kept)} if kept else None
