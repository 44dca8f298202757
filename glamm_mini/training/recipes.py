"""Recipes: what is trained on what, in which order, with which settings. `glamm-mini train NAME` runs one."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from glamm_mini import paths
from glamm_mini.assistant import Assistant
from glamm_mini.checkpoints.folder import load_weights, save_model
from glamm_mini.config import SIZES, GlammConfig
from glamm_mini.datasets.storybook import tasks
from glamm_mini.datasets.storybook.dataset import MIXTURE, StorybookDataset
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processor import GlammProcessor
from glamm_mini.text.wordpiece import build_wordpiece
from glamm_mini.training.backbones import EncoderTraining, collate_encoder
from glamm_mini.training.joint import JointCollate, JointTraining
from glamm_mini.training.language import SPOKEN, LanguageCollate, LanguageTraining
from glamm_mini.training.logs import read_log
from glamm_mini.training.segmenter import SegmenterTraining, collate_segmenter
from glamm_mini.training.settings import TrainSettings
from glamm_mini.training.trainer import Trainer
from glamm_mini.training.validation import storybook_figures

ENDLESS = 10_000_000
"""Storybook scenes are drawn when they are asked for, so that no scene is ever seen twice."""

VALIDATION_SCENES = 24

CONVERSATIONS = 11
"""About each scene; they share one row and the picture's features."""

_BACKBONE = TrainSettings(lr=1.5e-3, muon_lr=0.02, precision="auto", threads=1, save_every=200)
BACKBONE_SETTINGS = {
    "encoder": replace(_BACKBONE, steps=1400, batch_size=32, seed=1),
    "segmenter": replace(_BACKBONE, steps=3000, batch_size=16, seed=2),
    "language": replace(_BACKBONE, steps=2300, batch_size=8, seed=3),
}
STORYBOOK_SETTINGS = TrainSettings(
    steps=1750,
    batch_size=16,
    lr=1e-3,
    muon_lr=0.008,
    lr_scales={"glamm.global_encoder": 0.25, "glamm.vl_projector": 0.5, "glamm.region_encoder": 0.5},
    threads=2,
    precision="auto",
    save_every=200,
    validate_every=350,
    seed=4,
)
"""Muon's rates are for matrices (see training/optimiser.py); lr is AdamW's, for all else."""


def untrained(size: str) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """A GLaMM of the tiny size without any training, and its processor with the storybook tokenizer.

    Raises ValueError for a size whose parts come from the hub instead.
    """
    if size not in SIZES:
        raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")
    if size != "tiny":
        raise ValueError(f"size {size!r} starts from pretrained parts of the hub; the storybook recipes make size tiny")
    config = GlammConfig.of_size(size)
    # The two roles stand in every row: spelt in letters, they take a third of its words.
    tokenizer = build_wordpiece([config.prompt.user, config.prompt.assistant, *tasks.corpus_words()])
    config.text.vocab_size = len(tokenizer)
    config.text.pad_token_id, config.text.bos_token_id, config.text.eos_token_id = 0, 1, 2
    processor = GlammProcessor(config, tokenizer)
    torch.manual_seed(0)
    return GlammForConditionalGeneration(config), processor


def train_backbones(size: str, data: str, out: Path, resume: bool, overrides: list[str]) -> Path:
    """The three backbones, one after the other; `OUT/model` then holds one safetensors file each.

    An override such as `encoder.steps=100` reaches one stage, `steps=100` all of them, and `only=encoder` trains one:
    the stages do not need each other, so that two can run side by side on two cores.
    """
    own, overrides = _split(overrides, ("only",))
    if own.get("only", "encoder") not in BACKBONE_SETTINGS:
        raise ValueError(f"only={own['only']} names no backbone; expected one of {', '.join(BACKBONE_SETTINGS)}")
    glamm, processor = untrained(size)
    side = processor.config.grounding.image_size
    scenes = partial(StorybookDataset, "train", size=ENDLESS, long_side=side)
    silent = {"conversations": 1, "mixture": {"gcg": 1}}
    stages = {
        "encoder": (EncoderTraining, partial(collate_encoder, processor=processor), scenes(**silent)),
        "segmenter": (SegmenterTraining, partial(collate_segmenter, processor=processor), scenes(**silent)),
        "language": (LanguageTraining, LanguageCollate(processor), scenes(**SPOKEN)),
    }
    model_folder = Path(out) / "model"
    names = [own["only"]] if own else list(stages)
    # All settings are read before the first stage: a slip in the last must not be found after an hour of training.
    settings = {name: BACKBONE_SETTINGS[name].with_overrides(_for_stage(name, overrides)) for name in stages}
    for name in names:
        module, collate, dataset = stages[name]
        torch.manual_seed(0)
        stage = module(glamm)
        Trainer(stage, dataset, collate, settings[name], Path(out) / name).fit(resume=resume)
        if not PartialState().is_main_process:
            continue
        model_folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in stage.state_dict().items()}
        save_file(state, model_folder / f"{name}.safetensors", metadata={"format": "pt"})
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


def train_storybook(size: str, data: str, out: Path, resume: bool, overrides: list[str]) -> Path:
    """GLaMM from the bundled backbones on the mixture of storybook tasks; `OUT/model` then holds the model.

    Overrides of its own: `backbones=FOLDER` to start from others, `start=RUN` to go on from the end of an earlier run
    with settings of its own (another round), `scenes=64` to validate on more scenes, or on none (0), `tasks=gcg,vqa` to
    draw these tasks alone, `conversations=2` to hold fewer about each scene.
    """
    glamm, processor = untrained(size)
    own, rest = _split(overrides, ("backbones", "scenes", "start", "tasks", "conversations"))
    scenes, conversations = _whole(own, "scenes", VALIDATION_SCENES), _whole(own, "conversations", CONVERSATIONS)
    mixture = {task: MIXTURE.get(task, 0.0) for task in own["tasks"].split(",")} if "tasks" in own else None
    folder = Path(own["backbones"]) if "backbones" in own else paths.checkpoint_folder("backbones")
    torch.manual_seed(0)
    stage = load_backbones(folder, glamm)
    if "start" in own:
        load_weights(stage, Path(own["start"]) / "last" / "model.safetensors")
    settings = STORYBOOK_SETTINGS.with_overrides(rest)
    side = processor.config.grounding.image_size
    dataset = StorybookDataset("train", 0, ENDLESS, side, mixture, conversations)
    validate = partial(_validate, processor=processor, scenes=scenes) if scenes else None
    Trainer(stage, dataset, JointCollate(processor), settings, Path(out), validate).fit(resume=resume)
    folder = Path(out) / "model"
    if PartialState().is_main_process:
        save_model(folder, glamm, processor, torch.bfloat16)
        write_record(Path(out), folder / "training.json")
    return folder


def write_record(run: Path, target: Path) -> None:
    """How a model was made, beside it: the command, the settings, seconds of training, and the last losses."""
    log = read_log(run / "log.jsonl")
    record = {
        "command": " ".join(["glamm-mini", *sys.argv[1:]]),
        "settings": json.loads((run / "settings.json").read_text()),
        "seconds": round(sum(line.get("seconds", 0.0) for line in log)),
        "validation": [{"step": line["step"], **line["validation"]} for line in log if "validation" in line],
        "last": next((line for line in reversed(log) if "loss" in line), None),
    }
    target.write_text(json.dumps(record, indent=1) + "\n")


def _validate(stage: JointTraining, processor: GlammProcessor, scenes: int) -> dict[str, float]:
    return storybook_figures(Assistant(stage.glamm, processor), scenes)


RECIPES: dict[str, Callable[..., Path]] = {"backbones": train_backbones, "storybook": train_storybook}


def run(recipe: str, size: str, data: str, out: Path, resume: bool = False, overrides: list[str] | None = None) -> Path:
    """Run a recipe; returns the folder of the trained weights. Raises ValueError for an unknown recipe or data."""
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; expected one of {', '.join(RECIPES)}")
    if data != "storybook":
        raise ValueError(f"data {data!r} is unknown to recipe {recipe!r}; it trains on storybook")
    return RECIPES[recipe](size, data, Path(out), resume, list(overrides or []))


def _for_stage(name: str, overrides: list[str]) -> list[str]:
    """Overrides of one stage: those without a prefix, and those with its own."""
    stages = tuple(f"{stage}." for stage in BACKBONE_SETTINGS)
    return [o.removeprefix(f"{name}.") for o in overrides if o.startswith(f"{name}.") or not o.startswith(stages)]


def _split(overrides: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    own = dict(o.split("=", 1) for o in overrides if o.split("=", 1)[0] in names and "=" in o)
    return own, [o for o in overrides if o.split("=", 1)[0] not in own]


def _whole(own: dict[str, str], name: str, default: int) -> int:
    text = own.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; expected a whole number, 0 or more")
    return int(text)
