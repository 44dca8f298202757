"""What others bring to the library, by name: it is imported when it is first asked for.

The rooms of the library import nothing of the annexes (storybook, checks, course). Where a name of theirs can be
chosen, such as `--data storybook`, the library looks it up here; `register` adds names of your own.
"""

from pkgutil import resolve_name
from typing import Any

_PLACES: dict[str, dict[str, Any]] = {
    # A data set: see the functions of glamm_mini.storybook.data_source.
    "data": {"storybook": "glamm_mini.storybook.data_source"},
    # A training of its own: see glamm_mini.training.recipes.OwnRecipe.
    "recipe": {
        "backbones": "glamm_mini.storybook.pretrain.run:BACKBONES",
        "storybook": "glamm_mini.storybook.pretrain.run:STORYBOOK",
        "storybook_continue": "glamm_mini.storybook.pretrain.run:STORYBOOK_CONTINUED",
    },
    # (truth, phrase, attributes) -> 0..1, see glamm_mini.evaluation.similarity.
    "similarity": {"storybook": "glamm_mini.storybook.scores.same_phrase:storybook_similarity"},
    # What the model and the processor call to read and write folders; rooms import downwards alone.
    "checkpoint": {
        "model": "glamm_mini.checkpoints.load:model_from",
        "processor": "glamm_mini.checkpoints.load:processor_from",
        "rights": "glamm_mini.checkpoints.save:open_to_all",
    },
    # Figures beyond the protocol's, from what a data set's ground truth knows.
    "scores": {"storybook": "glamm_mini.storybook.scores"},
}


def names(kind: str) -> tuple[str, ...]:
    """All registered names of a kind: "data", "recipe", "checkpoint", "similarity" or "scores"."""
    return tuple(_PLACES[kind])


def register(kind: str, name: str, value: Any) -> None:
    """Add `name`: an object, or "module" or "module:attribute" to import when it is first asked for.

    Raises ValueError for a name that is taken.
    """
    if name in _PLACES[kind]:
        raise ValueError(f"the {kind} {name!r} is registered already; choose another name")
    _PLACES[kind][name] = value


def find(kind: str, name: str) -> Any:
    """The registered object. Raises ValueError that lists the names for an unknown one."""
    if name not in _PLACES[kind]:
        raise ValueError(f"{kind} {name!r} is unknown; expected one of {', '.join(_PLACES[kind])}")
    value = _PLACES[kind][name]
    return resolve_name(value if ":" in value else f"{value}:") if isinstance(value, str) else value
