"""Which pictures a model can know: how far a picture lies from those that it was trained on.

A small model that has seen one kind of picture answers about any other with as much confidence. So `familiar.json`
beside its weights holds the mean and the spread of what its grounding encoder makes of them, and a picture far outside
gets a note. Models without that file say nothing, and those whose image encoders have learned on since: they may know
other pictures.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from glamm_mini.paths import write_whole

FILE = "familiar.json"
MARGIN = 1.2
"""How much farther than the farthest of the training's kind a picture may lie; there are more of that kind."""
MOVED = 2**-8
"""How much longer or shorter, of its length, a weight may be than it was: half precision changes it by less."""


@dataclass(frozen=True)
class Familiar:
    """about: words for the pictures of the training. mean: (C,) of their features. whiten: (C, C) lower triangle that
    makes each direction of them equally wide. limit: the largest distance that is not noted. weights: (T,) lengths of
    the weights that made the features, see `lengths`."""

    about: str
    mean: np.ndarray
    whiten: np.ndarray
    limit: float
    weights: np.ndarray

    @classmethod
    def measure(cls, about: str, fitted: np.ndarray, held_out: np.ndarray, weights: np.ndarray) -> "Familiar":
        """From `summary` of pictures (N, C), and of others of the same kind (M, C), which set the limit."""
        fitted = np.asarray(fitted, np.float64)
        spread = np.cov(fitted.T)
        # Directions that hardly vary must not count for much: the true spread of unseen pictures is not so small.
        spread += 1e-3 * spread.trace() / len(spread) * np.eye(len(spread))
        own = cls(about, fitted.mean(0), np.linalg.inv(np.linalg.cholesky(spread)), np.inf, weights)
        return replace(own, limit=float(MARGIN * own.distances(held_out).max()))

    @classmethod
    def read(cls, folder: str | Path) -> "Familiar | None":
        """From a model's folder; None if it has no such file. Raises ValueError if the file is damaged."""
        path = Path(folder) / FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text("utf-8"))
            mean, rows = np.array(found["mean"], float), found["whiten"]
            whiten = np.array([row + [0.0] * (len(mean) - len(row)) for row in rows], float)
            whiten, weights = whiten.reshape(len(mean), len(mean)), np.array(found["weights"], float)
            return cls(str(found["about"]), mean, whiten, float(found["limit"]), weights)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            hint = "copy it again, or delete it: only a note needs it"
            raise ValueError(f"{path} is damaged ({error}); {hint}") from error

    def write(self, folder: str | Path) -> Path:
        """Write the file into a model's folder; returns its path."""
        short = lambda values: [float(f"{value:.6g}") for value in values]  # noqa: E731
        rows = [short(row[: k + 1]) for k, row in enumerate(self.whiten)]
        found = {"about": self.about, "limit": round(self.limit, 4), "mean": short(self.mean), "whiten": rows}
        found["weights"] = short(self.weights)
        return write_whole(Path(folder) / FILE, json.dumps(found) + "\n")

    def fits(self, model: torch.nn.Module) -> bool:
        """Whether the model's image encoders are those that were measured, in whatever number type and place."""
        now = lengths(model)
        return now.shape == self.weights.shape and not (abs(now - self.weights) > MOVED * self.weights).any()

    def distances(self, summaries: np.ndarray) -> np.ndarray:
        """(N,) of pictures (N, C): about 1 for the training's kind. Infinity where numbers are not finite."""
        centered = np.asarray(summaries, np.float64) - self.mean
        return np.nan_to_num(np.sqrt(((centered @ self.whiten.T) ** 2).mean(1)), nan=np.inf)

    def notes(self, grounding: torch.Tensor) -> list[list[str]]:
        """Per picture of `ImageFeatures.grounding` (I, C, h, w), no note or one."""
        far = self.distances(summary(grounding)) > self.limit
        note = f"the picture is unlike those that the model was trained on, which were {self.about} alone"
        return [[f"{note}; the answer is likely wrong"] if one else [] for one in far]


def lengths(model: torch.nn.Module) -> np.ndarray:
    """(T,) Euclidean lengths of the weights that features of pictures are made with; NaN of those kept elsewhere."""
    parts = (model.global_encoder, model.vl_projector, model.grounding_encoder)
    tensors = [t.detach() for part in parts for t in part.parameters()]
    return np.array([np.nan if t.is_meta else float(torch.linalg.vector_norm(t, dtype=torch.float32)) for t in tensors])


def summary(grounding: torch.Tensor) -> np.ndarray:
    """What stands for a picture: the mean of each channel of the grounding encoder, (I, C, h, w) to (I, C)."""
    return grounding.float().flatten(2).mean(2).cpu().numpy()
