"""Fine-tuning by a recipe: LoRA and a few whole parts are trained, everything else stays as it was."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

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
from glamm_mini.training.logs import LOG_NAME, read_log
from glamm_mini.training.parallel import join_processes, resolve_precision
from glamm_mini.training.recipes import Options, Recipe, read_recipe
from glamm_mini.training.run_folder import SETTINGS
from glamm_mini.training.settings import Tables
from glamm_mini.training.trainer import Trainer

PARTS = "parts"
SMALL = "prompt_encoder."  # stays float32 when frozen: a few thousand numbers, too few for rounding to save anything


def finetune(recipe: Recipe, tables: Tables, size: str, data: str, out: Path, resume: bool) -> Path:
    """Train by a recipe and its tables, as `recipes.chosen` gave them; `OUT/model` then holds the whole model, LoRA
    merged, or `OUT/lora` what was trained alone. Raises ValueError for a run to resume that had another start,
    FileNotFoundError for no model at the start."""
    options: Options = tables[0][1]
    settings, processes = recipe.settings, join_processes(recipe.settings)
    model, processor = load_start(recipe, size)
    prepare(model, processor, recipe, size)
    world, mixture, side = registry.find("data", "storybook"), recipe.mixture(), processor.config.grounding.image_size
    dataset = world.training_set(side, mixture, options.conversations, settings.seed)
    about = {"recipe": recipe.name, "size": size, "start": recipe.start, "trained": recipe.trained}
    about |= {"lora": recipe.lora, "frozen": recipe.frozen}
    about |= {"data": data, "mixture": mixture, "conversations": options.conversations}
    each = settings.batch_size * processes.num_processes
    mine, meant = each * settings.accumulation, read_recipe(recipe.name, size).samples_per_step
    if processes.is_main_process and mine != meant:
        closest = f"--set accumulation={max(1, round(meant / each))} comes closest here"
        words = f"{mine} samples a step; the recipe means {meant} (processes: {recipe.processes}). {closest}"
        print(words, file=sys.stderr)

    def validate(model: GlammForConditionalGeneration) -> dict[str, float]:
        return world.figures(Assistant(model, processor), options.scenes)

    validate = validate if options.scenes else None
    trainer = Trainer(model, dataset, collate_for(processor, recipe), settings, out, validate, about)
    trainer.fit(resume=resume)
    folder = out / ("model" if options.merge else "lora")
    if processes.is_main_process:
        if options.merge:
            merge_lora(trainer.model)
            half = torch.float16 if _frozen_type(recipe) == torch.float16 else torch.bfloat16
            save_model(folder, trainer.model, processor, half)
        else:
            save_lora(folder, trainer.model, base=recipe.start)
        write_record(out, folder / "training.json", **about)
    return folder


def load_start(recipe: Recipe, size: str) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The model that the recipe starts from and its processor, in the type that its frozen weights will be kept in."""
    kind = str(_frozen_type(recipe)).removeprefix("torch.")
    if recipe.start != PARTS:
        return load_model(recipe.start, dtype=kind)
    if size == "tiny":
        return registry.find("data", "storybook").start()
    from glamm_mini.checkpoints.parts import from_parts

    model, processor, report = from_parts(size, dtype=kind)
    print(report, file=sys.stderr)
    return model, processor


def prepare(model: GlammForConditionalGeneration, processor: GlammProcessor, recipe: Recipe, size: str) -> None:
    """Loss weights, longest row, LoRA, and what is trained and frozen, as the recipe says.

    Raises ValueError for rows longer than the language model has positions, or a trained part that does not exist.
    """
    longest = model.config.text.max_position_embeddings
    if not model.config.image_tokens < recipe.max_length <= longest:
        most = f"a picture takes {model.config.image_tokens} positions, and this language model has {longest}"
        raise ValueError(f"max_length is {recipe.max_length}, but {most}")
    for config in (model.config, processor.config):
        config.losses = replace(config.losses, **recipe.losses)
        config.prompt = replace(config.prompt, max_length=recipe.max_length)
    torch.manual_seed(recipe.settings.seed)
    add_lora(model, **recipe.lora)
    # The tiny backbones bring a V-L projector along.
    more = recipe.trained_from_parts if recipe.start == PARTS and size != "tiny" else ()
    unfreeze_only(model, recipe.trained + more)
    store_frozen_as(model, _frozen_type(recipe))


def unfreeze_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Train the parameters whose name contains one of `patterns`, freeze all others.

    Raises ValueError for a pattern that no name contains, before anything is changed: a slip of the pen would freeze
    what was meant to be trained, and the run would look healthy.
    """
    names = [name for name, _ in model.named_parameters()]
    lost = [pattern for pattern in patterns if not any(pattern in name for name in names)]
    if lost or not patterns:
        kinds = ", ".join(sorted({name.split(".")[0] for name in names}))
        raise ValueError(f"trained parts {lost or 'are not named'}: no parameter's name contains them; parts: {kinds}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(pattern in name for pattern in patterns)


def store_frozen_as(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep frozen parameters in `dtype` and trained ones in float32, as a step of lr 3e-4 is lost in bfloat16's 8 bits
    of fraction; autocast computes in half precision. Tables of positions and other buffers are not touched."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad or SMALL in name else dtype)


def collate_for(processor: GlammProcessor, recipe: Recipe) -> Callable[[list[Sample]], dict]:
    """Samples to a batch, in official mode a row for each conversation. Left out: in official mode the counts, so that
    losses are means of their micro-batch; where no data set has masks, the grounding encoder's pictures."""
    official = processor.config.mode == "official"
    unused = set(COUNTS.values()) if official else set()
    if not any(entry.kind == "segmentation" for entry in recipe.data):
        unused |= {"grounding_images", "masks", "resized", "original", "num_masks"}
    return partial(_batch, collate=Collate(processor, pack=not official), unused=unused)


def _batch(samples: list[Sample], collate: Collate, unused: set[str]) -> dict:
    return {key: value for key, value in collate(samples).items() if key not in unused}


def write_record(run: Path, target: Path, **more) -> None:
    """How a model was made, beside it: the command, the settings, seconds of training, the last losses, and `more`,
    JSON-ready values such as the recipe and the start."""
    log = read_log(run / LOG_NAME)
    stored = json.loads((run / SETTINGS).read_text("utf-8"))
    record = {
        "command": " ".join(["glamm-mini", *sys.argv[1:]]),
        **more,
        "settings": {name: value for name, value in stored.items() if name not in more},
        "seconds": round(sum(line.get("seconds", 0.0) for line in log)),
        "validation": [{"step": line["step"], **line["validation"]} for line in log if "validation" in line],
        "last": next((line for line in reversed(log) if "loss" in line), None),
    }
    target.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _frozen_type(recipe: Recipe) -> torch.dtype:
    # A sharded layer is gathered as one piece, in which all weights have one type.
    if recipe.frozen != "half" or recipe.settings.shard != "none":
        return torch.float32
    return AUTOCAST[resolve_precision(recipe.settings.precision, join_processes(recipe.settings).device)]
