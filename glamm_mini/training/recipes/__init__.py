"""Recipes: what is trained on what, with which settings, as one TOML file each. `glamm-mini train NAME` runs one."""

from pathlib import Path

from glamm_mini import registry
from glamm_mini.training.finetune import chosen, finetune
from glamm_mini.training.recipe import Recipe, read_recipe, recipe_names
from glamm_mini.training.record import write_record

__all__ = ["Recipe", "describe", "read_recipe", "recipe_names", "run", "write_record"]


def run(
    recipe: str,
    size: str,
    data: str,
    out: Path,
    resume: bool = False,
    overrides: list[str] | None = None,
    start: str | None = None,
) -> Path:
    """Run a recipe; returns the folder of the trained weights.

    start: "parts", or a bundled name, a folder or a hub id to fine-tune from; by default what the recipe says for
        that size. Raises ValueError for an unknown recipe or data, and for a start that a recipe does not take.
    """
    read_recipe(recipe, size)
    if recipe not in registry.names("recipe"):
        return finetune(recipe, size, data, Path(out), resume, list(overrides or []), start)
    if data != "storybook":
        raise ValueError(f"data {data!r} is unknown to recipe {recipe!r}; it trains on storybook")
    if start is not None:
        raise ValueError(f"recipe {recipe!r} takes no --from: its models start from nothing, or from the backbones")
    return registry.find("recipe", recipe)(size, data, Path(out), resume, list(overrides or []))


def describe(recipe: str, size: str, overrides: list[str] | None = None, start: str | None = None) -> str:
    """All values of a recipe as a run would use them, in the format of the files.

    Raises ValueError for an unknown recipe, size or setting.
    """
    found = read_recipe(recipe, size)
    return (chosen(found, list(overrides or []), start) if found.data else found).to_toml()
