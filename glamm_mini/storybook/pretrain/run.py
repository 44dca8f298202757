"""The tiny model's own trainings: three backbones from nothing, and GLaMM from them. Settings are in recipes/."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tokenizers import Tokenizer

from glamm_mini import paths
from glamm_mini.assistant.assistant import Assistant
from glamm_mini.checkpoints.load import load_weights
from glamm_mini.checkpoints.save import save_model
from glamm_mini.model.config import SIZES, GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.dataset import MIXTURE, StorybookDataset, Stress
from glamm_mini.storybook.language import tasks
from glamm_mini.storybook.language.tokenizer import build_wordpiece
from glamm_mini.storybook.pretrain.encoder_stage import EncoderTraining, collate_encoder
from glamm_mini.storybook.pretrain.joint_stage import JointCollate, JointTraining
from glamm_mini.storybook.pretrain.language_stage import SPOKEN, LanguageCollate, LanguageTraining
from glamm_mini.storybook.pretrain.segmenter_stage import SegmenterTraining, collate_segmenter
from glamm_mini.storybook.pretrain.validation import storybook_figures
from glamm_mini.training.checkpoint import WEIGHTS, write_tensors
from glamm_mini.training.finetune import write_record
from glamm_mini.training.recipes import VALIDATION_SCENES, OwnRecipe, Recipe
from glamm_mini.training.run_folder import LAST
from glamm_mini.training.settings import Table, Tables, setting
from glamm_mini.training.trainer import Trainer

ENDLESS = math.inf
"""Storybook scenes are drawn when they are asked for, so that no scene is ever seen twice. Their order says nothing:
each is drawn by itself, so they are taken as they come."""

STAGES = ("encoder", "segmenter", "language")

CONTINUED = Stress(absent=0.12, hard=0.4)
"""What a model that has learned the mixture is asked more."""


def untrained(size: str) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """A GLaMM of the tiny size without any training, and its processor with the storybook tokenizer.

    Raises ValueError for a size whose parts come from the hub instead.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")
    if size != "tiny":
        raise ValueError(f"size {size!r} starts from pretrained parts of the hub; the storybook recipes make size tiny")
    config = GlammConfig.of_size(size)
    # The two roles stand in every row: spelled in letters, they take a third of its words.
    tokenizer = build_wordpiece([config.prompt.user, config.prompt.assistant, *tasks.corpus_words()])
    config.text.vocab_size = len(tokenizer)
    config.text.pad_token_id, config.text.bos_token_id, config.text.eos_token_id = 0, 1, 2
    processor = GlammProcessor(config, tokenizer)
    torch.manual_seed(0)
    return GlammForConditionalGeneration(config), processor


@dataclass(frozen=True)
class BackboneOptions(Table):
    """Settings of the backbones' training that are not the trainer's."""

    only: str = setting("", "a stage to train alone: encoder, segmenter or language; empty trains all")


def backbone_tables(recipe: Recipe) -> Tables:
    """`steps=100` on the command line reaches all stages, `encoder.steps=100` one."""
    return [("", BackboneOptions()), *((f"{stage}.", settings) for stage, settings in recipe.stages.items())]


def train_backbones(size: str, out: Path, resume: bool, tables: list) -> Path:
    """The three backbones, one after the other; `OUT/model` then holds one safetensors file each.

    The stages do not need each other: with `only`, two can be trained side by side on two cores, each in a folder of
    its own.
    """
    options, *settings = tables
    settings = dict(zip(STAGES, settings, strict=True))
    if options.only and options.only not in STAGES:
        raise ValueError(f"only={options.only} names no backbone; expected one of {', '.join(STAGES)}")
    glamm, processor = untrained(size)
    side = processor.config.grounding.image_size
    silent = {"conversations": 1, "mixture": {"gcg": 1}}
    stages = {
        "encoder": (EncoderTraining, partial(collate_encoder, processor=processor), silent),
        "segmenter": (SegmenterTraining, partial(collate_segmenter, processor=processor), silent),
        "language": (LanguageTraining, LanguageCollate(processor), SPOKEN),
    }
    model_folder = Path(out) / "model"
    for name in [options.only] if options.only else STAGES:
        module, collate, talk = stages[name]
        torch.manual_seed(0)
        stage = module(glamm)
        scenes = StorybookDataset("train", settings[name].seed, ENDLESS, side, **talk)
        trainer = Trainer(stage, scenes, collate, settings[name], Path(out) / name)
        trainer.fit(resume=resume)
        if not PartialState().is_main_process:
            continue
        model_folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().to(torch.bfloat16) for k, v in trainer.model.state_dict().items()}
        write_tensors(model_folder / f"{name}.safetensors", state)
        write_record(Path(out) / name, model_folder / f"{name}.training.json")
    if PartialState().is_main_process:
        processor.save_pretrained(model_folder)
    return model_folder


def load_backbones(folder: Path, glamm: GlammForConditionalGeneration) -> JointTraining:
    """Put the trained backbones into a GLaMM; returns the joint stage, with the heads that they were trained with."""
    stages = {
        "encoder": EncoderTraining(glamm),
        "segmenter": SegmenterTraining(glamm),
        "language": LanguageTraining(glamm),
    }
    for name, stage in stages.items():
        load_weights(stage, folder / f"{name}.safetensors")
    encoder = stages["encoder"]
    language = stages["language"]
    return JointTraining(glamm, encoder.heads, encoder.region_heads, language.box, language.point)


@dataclass(frozen=True)
class StorybookOptions(Table):
    """Settings of the tiny model's training that are not the trainer's."""

    backbones: str = setting("", "folder of the backbones to start from; empty takes the bundled ones")
    start: str = setting("", "a bundled model, or a model's or an earlier run's folder, to go on from")
    tasks: str = setting("", "draw these alone, such as gcg,vqa, or gcg:9,vqa:8 with weights; empty draws all")
    scenes: int = setting(VALIDATION_SCENES, "validation asks about so many; 0: none", least=0, most=10**6)
    conversations: int = setting(11, "about each scene; they share a row and a picture's features", least=1, most=1000)
    absent: float = setting(0.0, "share of referring expressions that fit nothing", least=0, most=1)
    hard: float = setting(0.0, "share of questions that compare, count or ask about a box", least=0, most=1)


def storybook_tables(recipe: Recipe) -> Tables:
    """The tables of settings that `--set` changes."""
    return [("", StorybookOptions()), ("", recipe.settings)]


def continued_tables(recipe: Recipe) -> Tables:
    """The same, of a training that goes on from the bundled model."""
    return [("", StorybookOptions(start="tiny", **asdict(CONTINUED))), ("", recipe.settings)]


def train_storybook(size: str, out: Path, resume: bool, tables: list) -> Path:
    """GLaMM from the bundled backbones, or from where an earlier training ended, on the mixture of storybook tasks;
    `OUT/model` then holds the model."""
    options, settings = tables
    mixture = _mixture(options.tasks)
    glamm, processor = untrained(size)
    side = processor.config.grounding.image_size
    stress = Stress(options.absent, options.hard)
    dataset = StorybookDataset("train", settings.seed, ENDLESS, side, mixture, options.conversations, stress)
    torch.manual_seed(0)
    stage = load_backbones(Path(options.backbones or paths.checkpoint_folder("backbones")), glamm)
    if options.start:
        _go_on(stage, options.start, processor)
    validate = partial(_validate, processor=processor, scenes=options.scenes) if options.scenes else None
    about = {"backbones": options.backbones, "start": options.start, "mixture": mixture}
    about |= {"conversations": options.conversations, **asdict(stress)}
    trainer = Trainer(stage, dataset, JointCollate(processor), settings, Path(out), validate, about)
    trainer.fit(resume=resume)
    folder = Path(out) / "model"
    if PartialState().is_main_process:
        save_model(folder, trainer.model.glamm, processor, torch.bfloat16)
        write_record(Path(out), folder / "training.json", **about)
    return folder


def _mixture(tasks: str) -> dict[str, float]:
    """Task to weight, from the setting `tasks`; a task without a weight of its own takes that of MIXTURE."""
    mixture = {}
    for part in tasks.split(",") if tasks else ():
        task, colon, weight = part.partition(":")
        try:
            mixture[task] = float(weight) if colon else MIXTURE.get(task, 0.0)
        except ValueError:
            raise ValueError(f"tasks={tasks!r}: {weight!r} is not a number; write such as gcg:9,vqa:8") from None
    return mixture or MIXTURE


def _go_on(stage: JointTraining, start: str, processor: GlammProcessor) -> None:
    """Fill the stage from an earlier run, or its GLaMM alone from a model, whose aids are thrown away."""
    folder = Path(start) if Path(start).is_dir() else paths.checkpoint_folder(start)
    run = folder / LAST / WEIGHTS
    words = folder / ("model/tokenizer.json" if run.is_file() else "tokenizer.json")
    # Words in another order fit in every shape, and each would mean another one. A run that was stopped has none yet.
    if words.is_file() and Tokenizer.from_file(str(words)).get_vocab() != processor.tokenizer.get_vocab():
        raise ValueError(f"{folder} speaks other words than this version's storybook; start from the backbones")
    if run.is_file():
        load_weights(stage, run)
    else:
        load_weights(stage.glamm, folder / "model.safetensors")


def _validate(stage: JointTraining, processor: GlammProcessor, scenes: int) -> dict[str, float]:
    return storybook_figures(Assistant(stage.glamm, processor), scenes)


BACKBONES = OwnRecipe(train_backbones, backbone_tables)
STORYBOOK = OwnRecipe(train_storybook, storybook_tables)
STORYBOOK_CONTINUED = OwnRecipe(train_storybook, continued_tables)
