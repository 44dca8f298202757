"""Recipes as data: what is trained on what, in which shares, with which settings, read from the TOML files here.
`glamm-mini train NAME` runs one.

A file may build on another (`base = "official"`), and a table `size.tiny` holds what differs at that size. Later
values win: the base's, the recipe's own, the base's for the size, the recipe's own for the size.
"""

import dataclasses
import tomllib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from glamm_mini import registry
from glamm_mini.model.config import SIZES, LossConfig
from glamm_mini.training.run_folder import claimed, first_process
from glamm_mini.training.settings import Tables, TrainSettings, did_you_mean, override, toml, toml_table

FOLDER = Path(__file__).parent
BASE = "official"
"""What the official recipes share; not a recipe itself."""

KINDS = ("caption", "region", "segmentation")
LORA = ("rank", "alpha", "dropout", "targets")


@dataclass(frozen=True)
class Data:
    """One data set of a mixture.

    name: the official one. kind: caption, region or segmentation. rate: how often it is drawn among those of its kind.
    sets: the data sets inside, where there are several. storybook: the task that stands for it in the embedded world.
    """

    name: str
    kind: str
    rate: float
    storybook: str
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One training, for one size.

    title, paper, published: what it makes, where the paper reports it, under which name its result was published.
    start: what it starts from: "parts", or a bundled name, a folder or a hub id. trained: pieces of the names of
    trained parameters. trained_from_parts: those that are trained too when the start is "parts". frozen: "half" keeps
    frozen weights in the type of autocast, "float32" does not. lora: settings of `add_lora`. losses: weights, by the
    names of LossConfig. max_length: tokens of a row, the picture's included. processes: that the settings are meant
    for. weights: how often a sample is of a kind. stages: settings that differ, for trainings of several stages.
    """

    name: str
    title: str
    settings: TrainSettings
    paper: str = ""
    published: str = ""
    start: str = ""
    trained: tuple[str, ...] = ()
    trained_from_parts: tuple[str, ...] = ()
    frozen: str = "float32"
    lora: dict[str, Any] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    max_length: int = 0
    processes: int = 1
    weights: dict[str, float] = field(default_factory=dict)
    data: tuple[Data, ...] = ()
    stages: dict[str, TrainSettings] = field(default_factory=dict)

    @property
    def samples_per_step(self) -> int:
        """Samples that make up one optimizer step, over all processes."""
        return self.settings.batch_size * self.settings.accumulation * self.processes

    def shares(self) -> dict[str, float]:
        """How often a sample is drawn from each data set; sums to 1."""
        weights = self.weights or {kind: 1.0 for kind in {entry.kind for entry in self.data}}
        rates = {kind: sum(entry.rate for entry in self.data if entry.kind == kind) for kind in weights}
        total = sum(weights.values())
        return {d.name: weights[d.kind] / total * d.rate / rates[d.kind] for d in self.data}

    def mixture(self) -> dict[str, float]:
        """The same in the storybook world: task to share."""
        shares, mixed = self.shares(), {}
        for entry in self.data:
            mixed[entry.storybook] = mixed.get(entry.storybook, 0.0) + shares[entry.name]
        return mixed

    def to_toml(self, tables: Tables) -> str:
        """All values as a run with these tables of settings would use them, in the format of the files; what
        `--set` changes stands under its meaning."""
        values = dataclasses.asdict(self)
        for name in ("settings", "stages", "lora", "frozen"):  # are in the tables
            del values[name]
        parts = {f"[{key}]": values.pop(key) for key in ("losses", "weights")}.items()
        entries = values.pop("data")
        blocks = ["\n".join(f"{key} = {toml(value)}" for key, value in values.items() if value not in ("", (), 0))]
        for prefix, table in tables:
            own = prefix.rstrip(".") or ("settings" if isinstance(table, TrainSettings) else "options")
            head = f"[stages.{own}]" if prefix and isinstance(table, TrainSettings) else f"[{own}]"
            blocks.append(f"# --set {prefix}KEY=VALUE\n{head}\n{toml_table(table)}")
        for head, table in [*parts, *(("[[data]]", entry) for entry in entries)]:
            if table:
                blocks.append("\n".join([head, *(f"{key} = {toml(value)}" for key, value in table.items())]))
        return "\n\n".join(blocks)


class OwnRecipe(NamedTuple):
    """What a registered recipe brings beside its file: `run(size, out, resume, tables)` trains, with the tables that
    `tables(recipe)` gave after `--set` changed them, and returns the folder of the trained weights."""

    run: Callable[[str, Path, bool, list], Path]
    tables: Callable[[Recipe], Tables]


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
        that size. Raises ValueError for an unknown recipe, data or setting, for a start that a recipe does not take,
        and for a folder that is not free, see `run_folder`.
    """
    out = Path(out)
    found, tables = _chosen(recipe, size, overrides, start)
    if not found.data and data != "storybook":
        raise ValueError(f"data {data!r} is unknown to recipe {recipe!r}; it trains on storybook")
    # Until the model is written; the trainer alone would let go before.
    with claimed(out, resume) if first_process() else nullcontext():
        if not found.data:
            return registry.find("recipe", recipe).run(size, out, resume, [table for _, table in tables])
        from glamm_mini.training.finetune import finetune

        return finetune(found, tables, size, data, out, resume, read_recipe(recipe, size).samples_per_step)


def describe(recipe: str, size: str, overrides: list[str] | None = None, start: str | None = None) -> str:
    """All values of a recipe as a run would use them, in the format of the files, with what each setting means.

    Raises ValueError for an unknown recipe, size or setting, and for a start that a recipe does not take.
    """
    found, tables = _chosen(recipe, size, overrides, start)
    return found.to_toml(tables)


def _chosen(name: str, size: str, overrides: list[str] | None, start: str | None) -> tuple[Recipe, Tables]:
    """The recipe and its tables of settings after `--set` and `--from`."""
    recipe = read_recipe(name, size)
    if recipe.data:
        from glamm_mini.training.finetune import chosen

        return chosen(recipe, overrides, start)
    if start is not None:
        raise ValueError(f"recipe {name!r} takes no --from: its models start from nothing, or from the backbones")
    tables = registry.find("recipe", name).tables(recipe)
    stages = tuple(f"{stage}." for stage in recipe.stages)
    own = {f.name for _, table in tables if not isinstance(table, TrainSettings) for f in dataclasses.fields(table)}
    each: list[str] = []
    for text in overrides or ():
        if not stages or text.startswith(stages) or text.partition("=")[0].strip() in own:
            each.append(text)
        else:  # one without a stage is meant for all of them
            TrainSettings().with_overrides([text])  # an error names the key as it was given
            each += [stage + text for stage in stages]
    return recipe, list(zip((prefix for prefix, _ in tables), override(tables, each), strict=True))


def recipe_names() -> list[str]:
    """All recipes that ship with the package: those of the embedded world first, then those of the paper."""
    own = list(registry.names("recipe"))
    files = sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != BASE)
    return own + [name for name in files if name not in own]


def read_recipe(name: str, size: str = "tiny", folder: Path = FOLDER) -> Recipe:
    """The recipe of that name at a size.

    Raises ValueError for an unknown recipe or size, for a file that is not TOML, and for a key or a value in it that
    is unknown, wrong or missing; the text names the file and the nearest known word.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")
    if name == BASE:
        raise ValueError(f"{BASE} is what recipes share, not a recipe; expected one of {', '.join(recipe_names())}")
    table = _merged(name, size, folder)
    where = f"{name}.toml"
    _check_keys(where, table, {f.name for f in dataclasses.fields(Recipe)} - {"name"})
    missing = {"title", "settings"} - table.keys()
    if missing:
        raise ValueError(f"{where} does not say {', '.join(sorted(missing))}")
    _check_keys(f"{where}, [lora]", table.get("lora", {}), LORA)
    _check_keys(f"{where}, [losses]", table.get("losses", {}), {f.name for f in dataclasses.fields(LossConfig)})
    table["data"] = tuple(_data(where, entry) for entry in table.get("data", ()))
    table["settings"], common = _settings(f"{where}, [settings]", table["settings"]), table["settings"]
    stages = table.get("stages", {})
    table["stages"] = {key: _settings(f"{where}, [stages.{key}]", common | own) for key, own in stages.items()}
    recipe = Recipe(name, **{key: tuple(v) if isinstance(v, list) else v for key, v in table.items()})
    _check_values(where, recipe)
    return recipe


def _merged(name: str, size: str, folder: Path) -> dict[str, Any]:
    own = _load(folder / f"{name}.toml")
    base = own.pop("base", None)
    common = _load(folder / f"{base}.toml") if base else {}
    sizes = [table.pop("size", {}) for table in (common, own)]
    for table in sizes:
        _check_keys(f"{name}.toml, [size]", table, SIZES)
    merged: dict[str, Any] = {}
    for table in (common, own, *(table.get(size, {}) for table in sizes)):
        merged = _over(merged, table)
    return merged


def _over(below: dict, above: dict) -> dict:
    """`below` with the values of `above`; tables are merged, everything else is replaced."""
    both = {k for k in above if isinstance(above[k], dict) and isinstance(below.get(k), dict)}
    return below | {k: _over(below[k], v) if k in both else v for k, v in above.items()}


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        hint = did_you_mean(path.stem, recipe_names())
        raise ValueError(f"recipe {path.stem!r} is unknown; expected one of {', '.join(recipe_names())}.{hint}")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from None


def _check_keys(where: str, table: Any, known) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"{where} is {table!r}; expected a table")
    for key in table:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"{where}: unknown key {key!r}.{hint} Known: {', '.join(sorted(known))}")


def _data(where: str, entry: dict) -> Data:
    where = f"{where}, [[data]] {entry.get('name', 'without a name')}"
    fields = dataclasses.fields(Data)
    _check_keys(where, entry, {f.name for f in fields})
    missing = {f.name for f in fields if f.default is dataclasses.MISSING} - entry.keys()
    if missing:
        raise ValueError(f"{where} does not say {', '.join(sorted(missing))}")
    for key, known in (("kind", KINDS), ("storybook", registry.find("data", "storybook").TASKS)):
        if entry[key] not in known:
            raise ValueError(f"{where}: {key} is {entry[key]!r}; expected one of {', '.join(known)}")
    return Data(**entry | {"sets": tuple(entry.get("sets", ()))})


def _settings(where: str, table: dict) -> TrainSettings:
    _check_keys(where, table, {f.name for f in dataclasses.fields(TrainSettings)})
    try:
        return TrainSettings(**table)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _check_values(where: str, recipe: Recipe) -> None:
    if recipe.frozen not in ("half", "float32"):
        raise ValueError(f"{where}: frozen is {recipe.frozen!r}; expected half or float32")
    kinds = {entry.kind for entry in recipe.data}
    if recipe.weights and set(recipe.weights) != kinds:
        raise ValueError(f"{where}: [weights] has {sorted(recipe.weights)}, the data sets are {sorted(kinds)}")
    if len(kinds) > 1 and not recipe.weights:
        raise ValueError(f"{where}: the data sets are of several kinds {sorted(kinds)}; say their shares in [weights]")
    if any(entry.rate <= 0 for entry in recipe.data) or any(weight <= 0 for weight in recipe.weights.values()):
        raise ValueError(f"{where}: a rate or a weight is not above 0; leave the data set out instead")
    if recipe.data and not (recipe.start and recipe.trained and recipe.lora):
        raise ValueError(f"{where}: a fine-tuning says start, trained and [lora]")
