"""The tiny model's own trainings: three backbones from nothing, and GLaMM from them. Settings are in recipes/."""

from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from glamm_mini import paths
from glamm_mini.assistant.assistant import Assistant
from glamm_mini.checkpoints.load import load_weights
from glamm_mini.checkpoints.save import save_model
from glamm_mini.model.config import SIZES, GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.storybook.dataset import MIXTURE, StorybookDataset
from glamm_mini.storybook.language import tasks
from glamm_mini.storybook.language.tokenizer import build_wordpiece
from glamm_mini.storybook.pretrain.encoder_stage import EncoderTraining, collate_encoder
from glamm_mini.storybook.pretrain.joint_stage import JointCollate, JointTraining
from glamm_mini.storybook.pretrain.language_stage import SPOKEN, LanguageCollate, LanguageTraining
from glamm_mini.storybook.pretrain.segmenter_stage import SegmenterTraining, collate_segmenter
from glamm_mini.storybook.pretrain.validation import storybook_figures
from glamm_mini.training.recipe import read_recipe
from glamm_mini.training.record import write_record
from glamm_mini.training.settings import split, whole
from glamm_mini.training.trainer import Trainer

ENDLESS = 10_000_000
"""Storybook scenes are drawn when they are asked for, so that no scene is ever seen twice."""

VALIDATION_SCENES = 24

CONVERSATIONS = 11
"""About each scene; they share one row and the picture's features."""


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


def train_backbones(size: str, data: str, out: Path, resume: bool, overrides: list[str]) -> Path:
    """The three backbones, one after the other; `OUT/model` then holds one safetensors file each.

    An override such as `encoder.steps=100` reaches one stage, `steps=100` all of them, and `only=encoder` trains one:
    the stages do not need each other, so that two can run side by side on two cores.
    """
    own, overrides = split(overrides, ("only",))
    defaults = read_recipe("backbones", size).stages
    if own.get("only", "encoder") not in defaults:
        raise ValueError(f"only={own['only']} names no backbone; expected one of {', '.join(defaults)}")
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
    settings = {name: defaults[name].with_overrides(_for_stage(name, stages, overrides)) for name in stages}
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
    own, rest = split(overrides, ("backbones", "scenes", "start", "tasks", "conversations"))
    scenes, conversations = whole(own, "scenes", VALIDATION_SCENES), whole(own, "conversations", CONVERSATIONS)
    mixture = {task: MIXTURE.get(task, 0.0) for task in own["tasks"].split(",")} if "tasks" in own else None
    folder = Path(own["backbones"]) if "backbones" in own else paths.checkpoint_folder("backbones")
    torch.manual_seed(0)
    stage = load_backbones(folder, glamm)
    if "start" in own:
        load_weights(stage, Path(own["start"]) / "last" / "model.safetensors")
    settings = read_recipe("storybook", size).settings.with_overrides(rest)
    side = processor.config.grounding.image_size
    dataset = StorybookDataset("train", 0, ENDLESS, side, mixture, conversations)
    validate = partial(_validate, processor=processor, scenes=scenes) if scenes else None
    Trainer(stage, dataset, JointCollate(processor), settings, Path(out), validate).fit(resume=resume)
    folder = Path(out) / "model"
    if PartialState().is_main_process:
        save_model(folder, glamm, processor, torch.bfloat16)
        write_record(Path(out), folder / "training.json")
    return folder


def _validate(stage: JointTraining, processor: GlammProcessor, scenes: int) -> dict[str, float]:
    return storybook_figures(Assistant(stage.glamm, processor), scenes)


def _for_stage(name: str, names, overrides: list[str]) -> list[str]:
    """Overrides of one stage: those without a prefix, and those with its own."""
    stages = tuple(f"{stage}." for stage in names)
    return [o.removeprefix(f"{name}.") for o in overrides if o.startswith(f"{name}.") or not o.startswith(stages)]
