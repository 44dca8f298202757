"""What a training run measures of itself: real answers on a few validation scenes, scored by the fixed protocol."""

import tempfile
from collections.abc import Callable

from glamm_mini.assistant.assistant import Assistant
from glamm_mini.evaluation.predict import predict_samples
from glamm_mini.evaluation.score import score_folder
from glamm_mini.storybook.dataset import evaluation_samples

FIGURES = {
    "gcg": ("miou", "recall", "ap50", "phrase_accuracy"),
    "refseg": ("ciou", "giou"),
    "regcap": ("class_accuracy", "exact"),
    "vqa": ("accuracy",),
}


def storybook_figures(
    assistant: Assistant, limit: int, seed: int = 11, before: Callable[[list], None] = lambda samples: None
) -> dict[str, float]:
    """Figures such as "gcg_miou" on `limit` scenes of the val split. `before` is called with the samples of a task
    before the assistant is asked about them."""
    figures = {}
    for task, names in FIGURES.items():
        samples = list(evaluation_samples(task, "val", seed, limit))
        before(samples)
        with tempfile.TemporaryDirectory() as folder:
            predict_samples(task, assistant, samples, folder, "val", {"data": "storybook"}, batch_size=32)
            found = score_folder(task, folder, f"{folder}/ground_truth", "val", protocol="fixed", meteor=False)[task]
        found = found.get("fixed", found)
        figures |= {f"{task}_{name}": found[name] for name in names}
    return figures
