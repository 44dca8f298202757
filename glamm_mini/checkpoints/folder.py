"""Checkpoints as folders: safetensors weights, config.json and the tokenizer, written whole or not at all."""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glamm_mini import paths
from glamm_mini.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processor import GlammProcessor

WEIGHTS = "model.safetensors"


def save_model(folder: str | Path, model, processor: GlammProcessor, dtype: torch.dtype | None = None) -> Path:
    """Write weights, configuration and tokenizer; a kill while saving leaves the old ones, which `load_model` finds.

    dtype: store weights in this type (torch.bfloat16 halves the file); they are loaded as float32 all the same.
    """
    folder = Path(folder)
    old = _recover(folder)
    fresh = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    processor.save_pretrained(fresh)
    model.config.save_pretrained(fresh)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, fresh / WEIGHTS, metadata={"format": "pt"})
    for name in ("model_card.md", "training.json"):
        if (folder / name).is_file():
            shutil.copy2(folder / name, fresh / name)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _recover(folder: Path) -> Path:
    """Put back what a kill between the two renames of `save_model` left aside; returns where the old folder goes."""
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    return old


def load_model(name: str | Path, dtype: str | None = None) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The model and the processor of a bundled name or a folder. Every weight must be there, and no other."""
    kind = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is unknown; expected float32, bfloat16 or float16")
    if Path(name).name and not Path(name).exists():
        _recover(Path(name))
    folder = Path(name) if Path(name).is_dir() else paths.checkpoint_folder(str(name))
    missing = [f for f in (WEIGHTS, "config.json", "tokenizer.json") if not (folder / f).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} is no GLaMM checkpoint: {', '.join(missing)} missing; train one (make tiny) or copy it whole"
        )
    try:
        processor = GlammProcessor.from_pretrained(folder)
    except Exception as error:  # the readers of config.json and tokenizer.json raise types of their own
        raise ValueError(f"{folder}: configuration or tokenizer cannot be read ({error}); copy it again") from error
    model = GlammForConditionalGeneration(GlammConfig.from_pretrained(folder))
    load_weights(model, folder / WEIGHTS)
    return model.to(kind), processor


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Fill a module from a safetensors file; names and shapes must agree exactly (ValueError that lists them).

    Raises FileNotFoundError when there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; train them, or give the folder that holds them")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}); copy or train it again") from error
    own = module.state_dict()
    wrong = [k for k in state if k in own and own[k].shape != state[k].shape]
    absent, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if wrong or absent or foreign:
        raise ValueError(
            f"{path} does not fit: {len(absent)} weights missing {absent[:3]}, {len(foreign)} unknown {foreign[:3]}, "
            f"{len(wrong)} of another shape {wrong[:3]}; the checkpoint belongs to another model or version"
        )
    module.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})
