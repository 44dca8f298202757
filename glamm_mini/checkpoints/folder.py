"""Checkpoints as folders: safetensors weights, config.json and the tokenizer, written whole or not at all."""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from glamm_mini.checkpoints.find import WEIGHTS, check_folder, check_no_pickle, find_folder, recover
from glamm_mini.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processor import GlammProcessor


def save_model(folder: str | Path, model, processor: GlammProcessor, dtype: torch.dtype | None = None) -> Path:
    """Write weights, configuration and tokenizer; a kill while saving leaves the old ones, which `load_model` finds.

    dtype: store weights in this type (torch.bfloat16 halves the file); they are loaded as float32 all the same.
    Raises OSError if the disk is full or the place cannot be written; what lay in `folder` is untouched then.
    """
    folder = Path(folder)
    if folder.is_file():
        raise OSError(f"{folder} is a file; a checkpoint is a folder: give another name")
    old = recover(folder)
    fresh = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        _write(fresh, folder, model, processor, dtype)
    except (OSError, SafetensorError) as error:
        # Half a checkpoint helps nobody, and on a full disk its room is needed.
        shutil.rmtree(fresh, ignore_errors=True)
        raise OSError(
            f"the checkpoint {folder} could not be written ({error}); what lay there before is untouched; "
            "free some room or choose another folder, then save again"
        ) from error
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _write(fresh: Path, folder: Path, model, processor: GlammProcessor, dtype: torch.dtype | None) -> None:
    """All files of a checkpoint into the folder `fresh`; the notes that lie in `folder` are taken along."""
    processor.save_pretrained(fresh)
    model.config.save_pretrained(fresh)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, fresh / WEIGHTS, metadata={"format": "pt"})
    for name in ("model_card.md", "training.json"):
        if (folder / name).is_file():
            shutil.copy2(folder / name, fresh / name)


def load_model(name: str | Path, dtype: str | None = None) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The model and the processor of a bundled name, a folder or a hub id. Every weight must be there, and no other.

    dtype: "float32" (default), "bfloat16" or "float16". Raises FileNotFoundError for what is missing, ValueError for
    what is damaged or of another kind of model. Pickled weights are never read.
    """
    kind = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is unknown; expected float32, bfloat16 or float16")
    folder = find_folder(name)
    check_folder(folder)
    try:
        processor = GlammProcessor.from_pretrained(folder)
        config = GlammConfig.from_pretrained(folder)
        model = GlammForConditionalGeneration(config)
    except Exception as error:  # the readers of config.json and tokenizer.json raise types of their own
        raise ValueError(f"{folder}: configuration or tokenizer cannot be read ({error}); copy it again") from error
    words, rows = max(processor.tokenizer.get_vocab().values()) + 1, config.text.vocab_size
    if words > rows:
        raise ValueError(
            f"{folder}: the tokenizer knows {words} tokens, the model {rows}; the tokenizer belongs to another model"
        )
    load_weights(model, folder / WEIGHTS)
    return model.to(kind), processor


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Fill a module from a safetensors file; names and shapes must agree exactly (ValueError that lists them).

    Raises FileNotFoundError when there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; train them, or give the folder that holds them")
    check_no_pickle(Path(path))
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
