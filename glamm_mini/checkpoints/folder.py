"""Checkpoints as folders: weights, config.json and the tokenizer, written whole or not at all, and loaded by name."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from glamm_mini.checkpoints.fill import fill
from glamm_mini.checkpoints.find import WEIGHTS, check_no_pickle
from glamm_mini.checkpoints.placement import dispatch, first_device, folder_on_disk, main_device, place
from glamm_mini.checkpoints.quantize import check_kind, is_quantized
from glamm_mini.checkpoints.source import open_checkpoint
from glamm_mini.checkpoints.write import MAX_SHARD_SIZE, whole_folder, write_weights
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor

__all__ = ["WEIGHTS", "load_model", "load_weights", "save_model"]


def save_model(
    folder: str | Path,
    model,
    processor: GlammProcessor,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Path:
    """Write weights, configuration and tokenizer; a kill while saving leaves the old ones, which `load_model` finds.

    dtype: store weights in this type (torch.bfloat16 halves the file); they are loaded as float32 all the same.
    max_shard_size: bytes, or such as "4GB"; more weights are written in several files with an index.
    Raises OSError if the disk is full or the place cannot be written; what lay in `folder` is untouched then.
    ValueError for a model whose weights are not all there: quantized, or offloaded.
    """
    folder, state = Path(folder), model.state_dict()
    if is_quantized(model) or any(tensor.is_meta for tensor in state.values()):
        raise ValueError("a quantized or offloaded model cannot be saved; load it whole, then save it")
    for name in model.all_tied_weights_keys:
        state.pop(name, None)
    with whole_folder(folder) as fresh:
        processor.save_pretrained(fresh)
        model.config.save_pretrained(fresh)
        types = {name: dtype if dtype and t.is_floating_point() else t.dtype for name, t in state.items()}
        sizes = {name: t.numel() * types[name].itemsize for name, t in state.items()}
        write_weights(fresh, sizes, ((name, t.to(types[name])) for name, t in state.items()), max_shard_size)
        for name in ("model_card.md", "training.json"):
            if (folder / name).is_file():
                shutil.copy2(folder / name, fresh / name)
    return folder


def load_model(
    name: str | Path,
    dtype: str | torch.dtype | None = None,
    *,
    device: str | torch.device = "cpu",
    quantize: str | None = None,
    max_memory: dict | None = None,
    offload_folder: str | Path | None = None,
    vision_tower: str | Path | None = None,
    config: GlammConfig | None = None,
    drop: Iterable[str] = (),
) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The model and the processor of a bundled name, a folder or a hub id, of ours or official.

    Every weight must be there, and no other. Each goes from its file straight to its type and device, so that beside
    the finished model there is never more in memory than a slice of a file. `model.load_report` tells what came from
    where.

    dtype: "float32" (default), "bfloat16" or "float16", for every part; "stored" keeps the type that each tensor has.
    device: such as "cpu" or "cuda:0"; "auto" lets accelerate place parts on all GPUs, the CPU and the disk.
    quantize: "4bit" or "8bit" for the language model's linear layers, each as it is read; everything on one device.
    max_memory, offload_folder: see `checkpoints.placement.place`; for device="auto".
    vision_tower: official checkpoints leave out CLIP; folder or hub id of it, default what their config.json names.
    config: in place of what an official config.json says.
    drop: beginnings of official names that are left out, such as ("model.old_head.",), where a checkpoint holds more
        than the model has a place for. A second name of values that are taken needs no dropping.

    Raises FileNotFoundError for what is missing, ValueError for what is damaged or of another kind of model. Nothing
    that could run code is read.
    """
    kind = _dtype(dtype)
    check_kind(quantize)
    _check_device(device, quantize, max_memory, offload_folder)
    source = open_checkpoint(name, vision_tower, config, drop=drop)
    processor = source.processor()
    model = source.empty_model()
    source.check(model)
    devices = {"": device}
    if device == "auto":
        devices = first_device() if quantize else place(model, kind or torch.float32, max_memory, offload_folder)
    if "disk" in devices.values():
        model.offloaded = folder_on_disk(offload_folder)
        offload_folder = model.offloaded.name
    model.load_report = fill(model, source, kind, devices, offload_folder, quantize)
    if len(set(devices.values())) > 1 or "disk" in devices.values():
        dispatch(model, devices, offload_folder)
    else:
        model.to(main_device(devices))  # the computed buffers; the weights are there already
    return model, processor


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype == "stored":
        return None
    kind = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is unknown; expected float32, bfloat16, float16 or stored")
    return kind


def _check_device(device, quantize, max_memory, offload_folder) -> None:
    given = [n for n, v in (("max_memory", max_memory), ("offload_folder", offload_folder)) if v is not None]
    if given and device != "auto":
        raise ValueError(f"{' and '.join(given)} belong to device='auto', but device is {device!r}")
    if given and quantize:
        raise ValueError(f"quantize={quantize!r} keeps the model on one device; leave out {' and '.join(given)}")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but PyTorch finds no GPU; leave device out, or give 'cpu'")


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
