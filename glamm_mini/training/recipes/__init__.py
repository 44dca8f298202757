"""Recipes as data, read from the TOML files here: what is trained on what, in which shares, with which settings.

A file may build on another (`base = "official"`), and a table `size.tiny` holds what differs at that size. Later
values win: the base's, the recipe's own, the base's for the size, the recipe's own for the size.
"""

import json
import tomllib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

from glamm_mini import registry
from glamm_mini.model.config import SIZES, LossConfig
from glamm_mini.paths import folder_path
from glamm_mini.training.run_folder import claimed, first_process
from glamm_mini.training.settings import Table, Tables, TrainSettings, check_keys, override, read_table, setting

FOLDER = Path(__file__).parent
BASE = "official"  # what the official recipes share; not a recipe itself
VALIDATION_SCENES = 24


@dataclass(frozen=True)
class Options(Table):
    """Settings of a fine-tuning that are not the trainer's."""

    scenes: int = setting(VALIDATION_SCENES, "scenes that validation asks about; 0: none", least=0, most=10**6)
    conversations: int = setting(4, "about each scene; officially one to ten turns", least=1, most=1000)
    merge: bool = setting(True, "true writes OUT/model, the whole model with LoRA in it; false OUT/lora, LoRA alone")
    frozen: str = setting("float32", "type of frozen weights; half is that of autocast", choices=("half", "float32"))


@dataclass(frozen=True)
class Lora(Table):
    """Settings of `add_lora`."""

    rank: int = setting(8, "rows and columns of the two factors", least=1, most=2**16)
    alpha: float = setting(16, "the product of the factors is scaled by alpha / rank", above=0)
    dropout: float = setting(0.05, "share of the factors' inputs that is dropped in training", least=0, below=1)
    targets: tuple[str, ...] = setting(("q_proj", "v_proj"), "names of the language model's layers that get factors")


@dataclass(frozen=True)
class Data(Table):
    """One data set of a mixture.

    name: the official one. rate: how often it is drawn among those of its kind. storybook: the task that stands for it
    in the embedded world. sets: the data sets inside, where there are several.
    """

    name: str
    kind: str = field(metadata={"choices": ("caption", "region", "segmentation")})
    rate: float = field(metadata={"above": 0})
    storybook: str
    sets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.storybook not in (known := registry.find("data", "storybook").TASKS):
            raise ValueError(f"storybook is {self.storybook!r}; expected one of {', '.join(known)}")


@dataclass(frozen=True)
class Recipe(Table):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        Options(frozen=self.frozen)
        kinds = {entry.kind for entry in self.data}
        if set(self.weights) != kinds and (self.weights or len(kinds) > 1):
            raise ValueError(f"[weights] has {sorted(self.weights)}, the data sets are {sorted(kinds)}")
        if any(weight <= 0 for weight in self.weights.values()):
            raise ValueError("a weight is not above 0; leave its data sets out instead")
        if self.data and not (self.start and self.trained and self.lora):
            raise ValueError("a fine-tuning says start, trained and [lora]")

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
        shares, tasks = self.shares(), dict.fromkeys(entry.storybook for entry in self.data)
        return {task: sum(shares[entry.name] for entry in self.data if entry.storybook == task) for task in tasks}

    def to_toml(self, tables: Tables) -> str:
        """All values as a run with these tables of settings would use them, in the format of the files; what
        `--set` changes stands under its meaning."""
        in_tables = ("settings", "stages", "lora", "frozen")
        values = {k: v for k, v in asdict(self).items() if k not in in_tables and v not in ("", (), 0, {})}
        below = [(f"[{key}]", values.pop(key)) for key in ("losses", "weights") if key in values]
        below += [("[[data]]", entry) for entry in values.pop("data", ())]
        blocks = [_toml(values)]
        for prefix, table in tables:
            trainers = isinstance(table, TrainSettings)
            own = prefix.rstrip(".") or ("settings" if trainers else "options")
            head = f"[stages.{own}]" if prefix and trainers else f"[{own}]"
            meanings = {f.name: f.metadata["meaning"] for f in fields(table)}
            blocks.append(f"# --set {prefix}KEY=VALUE\n{head}\n{_toml(vars(table), meanings)}")
        return "\n\n".join([*blocks, *(f"{head}\n{_toml(table)}" for head, table in below)])


def _toml(values: dict[str, Any], meanings: dict[str, str] | None = None) -> str:
    # JSON and TOML write a value alike, but for the sign between the names and the values of a table.
    lines = {key: f"{key} = {json.dumps(value, separators=(', ', ' = '))}" for key, value in values.items()}
    return "\n".join(f"# {meanings[key]}\n{line}" if meanings else line for key, line in lines.items())


class OwnRecipe(NamedTuple):
    """What a registered recipe brings beside its file: `run(size, out, resume, tables)` trains, with the tables that
    `tables(recipe)` gave after `--set` changed them, and returns the folder of the trained weights."""

    run: Callable[[str, Path, bool, list], Path]
    tables: Callable[[Recipe], Tables]


def run(
    recipe: str, size: str, data: str, out: Path, resume: bool = False, overrides: Sequence[str] = (), start: str = ""
) -> Path:
    """Run a recipe; returns the folder of the trained weights.

    start: "parts", or a bundled name, a folder or a hub id to fine-tune from; by default what the recipe says for
        that size. Raises ValueError for an unknown recipe, data or setting, for a start that a recipe does not take,
        and for a folder that is not free, see `run_folder`.
    """
    out = folder_path(out, "out")
    found, tables = chosen(recipe, size, overrides, start)
    check_data(found, data)
    # Until the model is written; the trainer alone would let go before.
    with claimed(out, resume) if first_process() else nullcontext():
        if not found.data:
            return registry.find("recipe", recipe).run(size, out, resume, [table for _, table in tables])
        from glamm_mini.training.finetune import finetune

        return finetune(found, tables, size, data, out, resume)


def check_data(recipe: Recipe, data: str) -> None:
    """Raises ValueError for data that no reader here can read."""
    if data != "storybook":
        names = ", ".join(f"{d.name} ({', '.join(d.sets)})" if d.sets else d.name for d in recipe.data) or "storybook"
        raise ValueError(
            f"data {data!r}: this version has no reader of public data sets yet; recipe {recipe.name!r} needs {names}. "
            "Train on the embedded world meanwhile: --data storybook"
        )


def describe(recipe: str, size: str, overrides: Sequence[str] = (), start: str = "") -> str:
    """All values of a recipe as a run would use them, in the format of the files, with what each setting means.

    Raises ValueError for an unknown recipe, size or setting, and for a start that a recipe does not take.
    """
    found, tables = chosen(recipe, size, overrides, start)
    return found.to_toml(tables)


def chosen(name: str, size: str, overrides: Sequence[str], start: str = "") -> tuple[Recipe, Tables]:
    """The recipe and its tables of settings after `--set` and `--from`. Raises ValueError as `describe` does."""
    recipe = read_recipe(name, size)
    if not recipe.data:
        if start:
            raise ValueError(f"recipe {name!r} takes no --from: its models start from nothing, or from the backbones")
        return recipe, override(registry.find("recipe", name).tables(recipe), overrides)
    tables = [("", Options(frozen=recipe.frozen)), ("lora.", Lora(**recipe.lora)), ("", recipe.settings)]
    tables = override(tables, overrides)
    options, lora, settings = (table for _, table in tables)
    start = str(start or recipe.start)
    if start == "parts" and not options.merge:
        raise ValueError("merge=false keeps LoRA alone, but a model made of parts is kept nowhere else: leave it out")
    return replace(recipe, lora=asdict(lora), frozen=options.frozen, settings=settings, start=start), tables


def recipe_names() -> list[str]:
    """All recipes that ship with the package: those of the embedded world first, then those of the paper."""
    files = sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != BASE)
    return list(dict.fromkeys([*registry.names("recipe"), *files]))


def read_recipe(name: str, size: str = "tiny", folder: Path = FOLDER) -> Recipe:
    """The recipe of that name at a size.

    Raises ValueError for an unknown recipe or size, for a file that is not TOML, and for a key or a value in it that
    is unknown, wrong or missing; the text names the file and the nearest known word.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")
    if folder == FOLDER and name != BASE:
        check_keys("recipe", [name], recipe_names())
    if name == BASE:
        raise ValueError(f"{BASE} is what recipes share, not a recipe; expected one of {', '.join(recipe_names())}")
    own, where = _load(folder / f"{name}.toml"), f"{name}.toml"
    base = own.pop("base", None)
    tables = [_load(folder / f"{base}.toml") if base else {}, own]
    sizes = [table.pop("size", {}) for table in tables]
    check_keys(f"{where}, [size]", [key for table in sizes for key in table], SIZES)
    table = reduce(_over, [*tables, *(table.get(size, {}) for table in sizes)])
    for key, kind in (("lora", Lora), ("losses", LossConfig)):
        read_table(f"{where}, [{key}]", kind, table.get(key, {}))
    entries = table.pop("data", ())
    data = [read_table(f"{where}, [[data]] {e.get('name', 'without a name')}", Data, e) for e in entries]
    stages = table.pop("stages", {})
    if "settings" in table:
        common = table["settings"]
        table["settings"] = read_table(f"{where}, [settings]", TrainSettings, common)
        stages = {k: read_table(f"{where}, [stages.{k}]", TrainSettings, common | own) for k, own in stages.items()}
    return read_table(where, Recipe, table | {"name": name, "data": data, "stages": stages})


def _over(below: dict, above: dict) -> dict:
    """`below` with the values of `above`; tables are merged, everything else is replaced."""
    both = {k for k in above if isinstance(above[k], dict) and isinstance(below.get(k), dict)}
    return below | {k: _over(below[k], v) if k in both else v for k, v in above.items()}


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        check_keys("recipe", [path.stem], recipe_names())
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} cannot be read as TOML: {error}") from None
