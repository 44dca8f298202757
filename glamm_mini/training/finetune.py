"""Fine-tuning by a recipe: LoRA and a few whole parts are trained, everything else stays as it was."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from glamm_mini import registry
from glamm_mini.assistant.assistant import Assistant
from glamm_mini.checkpoints.load import load_model
from glamm_mini.checkpoints.lora import add_lora, merge_lora, save_lora
from glamm_mini.checkpoints.save import save_model
from glamm_mini.data.collate import Collate
from glamm_mini.data.sample import Sample
from glamm_mini.dtypes import AUTOCAST
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.training.data_order import COUNTS
from glamm_mini.training.launch import join_processes, make_accelerator, resolve_precision
from glamm_mini.training.recipe import Recipe, read_recipe
from glamm_mini.training.record import write_record
from glamm_mini.training.settings import TrainSettings, number, split, truth, whole
from glamm_mini.training.trained import store_frozen_as, thaw_only
from glamm_mini.training.trainer import Trainer

PARTS = "parts"
RUN = "recipe.json"
CONVERSATIONS = 4
"""About each scene of the storybook, where every official sample is one to ten turns about a picture."""

RUN_OPTIONS = ("scenes", "conversations", "merge")
RECIPE_OPTIONS = ("frozen", "lora.rank", "lora.alpha", "lora.dropout")


def finetune(
    name: str, size: str, data: str, out: Path, resume: bool, overrides: list[str], start: str | None = None
) -> Path:
    """Train by a recipe; `OUT/model` then holds the whole model, LoRA merged, or `OUT/lora` what was trained alone.

    Overrides beside the trainer's settings: `merge=false` for LoRA alone, `lora.rank=4` and so on, `frozen=float32`
    or `half`, `scenes=64` to validate on more storybook scenes, or on none (0), `conversations=2` about each scene.

    Raises:
        ValueError: unknown data, size or override; a run to resume that had another start. FileNotFoundError: no model
            at the start.
    """
    meant = read_recipe(name, size)
    recipe = chosen(meant, overrides, start)
    own, _ = split(overrides, RUN_OPTIONS)
    world = registry.find("data", "storybook")
    scenes, conversations = whole(own, "scenes", world.VALIDATION_SCENES), whole(own, "conversations", CONVERSATIONS)
    merge = truth(own, "merge", True)
    _check_data(recipe, data)
    join_processes(recipe.settings)
    model, processor = load_start(recipe, size)
    prepare(model, processor, recipe, size)
    side = processor.config.grounding.image_size
    dataset = world.training_set(side, recipe.mixture(), conversations)
    run = {"recipe": name, "size": size, "start": recipe.start, "trained": list(recipe.trained), "lora": recipe.lora}
    run |= {"data": data, "mixture": recipe.mixture(), "conversations": conversations}
    processes = make_accelerator(recipe.settings)
    _claim(out, run, resume, processes.is_main_process)
    if processes.is_main_process:
        _compare_samples(recipe, meant, processes.num_processes)
    validate = partial(_figures, processor=processor, scenes=scenes) if scenes else None
    trainer = Trainer(model, dataset, collate_for(processor, recipe), recipe.settings, out, validate)
    trainer.fit(resume=resume)
    folder = out / ("model" if merge else "lora")
    if processes.is_main_process:
        if merge:
            merge_lora(trainer.model)
            save_model(folder, trainer.model, processor, _stored_type(recipe))
        else:
            save_lora(folder, trainer.model, base=recipe.start)
        write_record(out, folder / "training.json", **run)
    return folder


def chosen(recipe: Recipe, overrides: list[str], start: str | None = None) -> Recipe:
    """The recipe with `KEY=VALUE` overrides, of its own and of the trainer's settings, and another start if given.

    Raises ValueError for an unknown key or a value that is none.
    """
    own, rest = split(split(overrides, RUN_OPTIONS)[1], RECIPE_OPTIONS)
    lora = {
        "rank": whole(own, "lora.rank", recipe.lora["rank"]),
        "alpha": number(own, "lora.alpha", recipe.lora["alpha"]),
        "dropout": number(own, "lora.dropout", recipe.lora["dropout"]),
    }
    frozen = own.get("frozen", recipe.frozen)
    if frozen not in ("half", "float32"):
        raise ValueError(f"frozen is {frozen!r}; expected half or float32")
    settings = recipe.settings.with_overrides(rest)
    return replace(recipe, lora=recipe.lora | lora, frozen=frozen, settings=settings, start=str(start or recipe.start))


def load_start(recipe: Recipe, size: str) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The model that the recipe starts from and its processor, in the type that its frozen weights will be kept in."""
    kind = _frozen_type(recipe)
    if recipe.start != PARTS:
        return load_model(recipe.start, dtype=str(kind).removeprefix("torch."))
    if size == "tiny":
        return registry.find("data", "storybook").start()
    from glamm_mini.checkpoints.parts import from_parts

    model, processor, report = from_parts(size, dtype=str(kind).removeprefix("torch."))
    print(report, file=sys.stderr)
    return model, processor


def prepare(model: GlammForConditionalGeneration, processor: GlammProcessor, recipe: Recipe, size: str) -> int:
    """Loss weights, longest row, LoRA, and what is trained and frozen, as the recipe says; returns the numbers trained.

    Raises ValueError for rows longer than the language model has positions, or a trained part that does not exist.
    """
    longest = model.config.text.max_position_embeddings
    if recipe.max_length > longest:
        raise ValueError(f"max_length is {recipe.max_length}, but this language model has {longest} positions")
    for config in (model.config, processor.config):
        config.losses = replace(config.losses, **recipe.losses)
        config.prompt = replace(config.prompt, max_length=recipe.max_length)
    torch.manual_seed(recipe.settings.seed)
    add_lora(model, **recipe.lora)
    pieces = recipe.trained
    if recipe.start == PARTS and size != "tiny":  # the tiny backbones bring a V-L projector along
        pieces += recipe.trained_from_parts
    count = thaw_only(model, pieces)
    store_frozen_as(model, _frozen_type(recipe))
    return count


def collate_for(processor: GlammProcessor, recipe: Recipe) -> Callable[[list[Sample]], dict]:
    """Samples to a batch, in official mode a row for each conversation.

    Left out of the batch: in official mode the counts, so that losses are means of their micro-batch; where no data
    set has masks, the pictures of the grounding encoder, which would see them in vain.
    """
    official = processor.config.mode == "official"
    unused = set(COUNTS.values()) if official else set()
    if not any(entry.kind == "segmentation" for entry in recipe.data):
        unused |= {"grounding_images", "masks", "resized", "original", "num_masks"}
    return partial(_batch, collate=Collate(processor, pack=not official), unused=unused)


def _batch(samples: list[Sample], collate: Collate, unused: set[str]) -> dict:
    return {key: value for key, value in collate(samples).items() if key not in unused}


def _check_data(recipe: Recipe, data: str) -> None:
    if data != "storybook":
        names = ", ".join(f"{d.name} ({', '.join(d.sets)})" if d.sets else d.name for d in recipe.data)
        raise ValueError(
            f"data {data!r}: this version has no reader of public data sets yet; recipe {recipe.name!r} needs {names}. "
            "Train on the embedded world meanwhile: --data storybook"
        )


def _precision(settings: TrainSettings) -> str:
    ready = torch.accelerator.is_available() and not settings.cpu
    device = torch.accelerator.current_accelerator() if ready else torch.device("cpu")
    return resolve_precision(settings.precision, device)


def _frozen_type(recipe: Recipe) -> torch.dtype:
    # A sharded layer is gathered as one piece, in which all weights have one type.
    if recipe.frozen != "half" or recipe.settings.shard != "none":
        return torch.float32
    return AUTOCAST[_precision(recipe.settings)]


def _stored_type(recipe: Recipe) -> torch.dtype:
    return torch.float16 if _frozen_type(recipe) == torch.float16 else torch.bfloat16


def _claim(out: Path, run: dict, resume: bool, first: bool) -> None:
    """Write down what the run is, or compare it with the run to resume; a checkpoint holds no frozen weights."""
    path = out / RUN
    if (out / "last").exists():
        stored = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        odd = [f"{key} was {stored.get(key)!r}, now {run[key]!r}" for key in run if stored.get(key) != run[key]]
        if resume and odd:
            raise ValueError(f"cannot resume {out}: {'; '.join(odd)}. Resume it as it began, or choose another folder")
    elif first:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run, indent=1) + "\n", "utf-8")


def _compare_samples(recipe: Recipe, meant: Recipe, processes: int) -> None:
    """Say on stderr when a step has another number of samples than the recipe means."""
    each = recipe.settings.batch_size * processes
    mine, wanted = each * recipe.settings.accumulation, meant.samples_per_step
    if mine != wanted:
        print(
            f"{mine} samples a step; the recipe means {wanted} (processes: {meant.processes}). "
            f"--set accumulation={max(1, round(wanted / each))} comes closest here",
            file=sys.stderr,
        )


def _figures(model: GlammForConditionalGeneration, processor: GlammProcessor, scenes: int) -> dict[str, float]:
    return registry.find("data", "storybook").figures(Assistant(model, processor), scenes)
