"""Loading: a bundled name, a folder or a hub id, of ours or official, becomes a model whose every weight was there.

A checkpoint is opened first (`open_checkpoint`): its names and shapes are known, and nothing is read. Then
transformers' `from_pretrained` builds the model, places it, quantizes it and takes the values one tensor at a time.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from glamm_mini.checkpoints.files import find_folder, list_tensors, mismatch, stamps
from glamm_mini.checkpoints.lora import load_lora
from glamm_mini.checkpoints.placement import Quantization, dispatch, folder_on_disk, main_device, place, quantization
from glamm_mini.checkpoints.save import quiet
from glamm_mini.checkpoints.source import Source, open_checkpoint, type_name, unreadable
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor

HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
"""What `from_pretrained` is told about a repository of the hub; `subfolder` also of a folder here."""

PASSED_OVER = ("_from_auto", "trust_remote_code", "adapter_kwargs", "use_fast", "dtype", "device_map")
"""What transformers' Auto classes and pipelines hand to a processor, for which it means nothing."""

PLACED = ("auto", "balanced", "balanced_low_0", "sequential")
TRIES = 5

_ONE_AT_A_TIME = threading.RLock()
"""A model without weights is built by changing functions of torch for a moment, for all threads of the process."""


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
    lora: str | Path | None = None,
    **hub: Any,
) -> tuple[GlammForConditionalGeneration, GlammProcessor]:
    """The model and the processor of a bundled name, a folder or a hub id, of ours or official.

    Every weight must be there, and no other; memory stays near the model's own size. `model.load_report` tells what
    came from where.

    dtype: "float32" (default), "bfloat16" or "float16", for every part; "stored" keeps the type that each tensor has.
    device: such as "cpu" or "cuda:0"; "auto" lets accelerate place parts on all GPUs, the CPU and the disk.
    quantize: "4bit" or "8bit" for the language model's linear layers, each as it is read; everything on one device.
    max_memory, offload_folder: see `checkpoints.placement.place`; for device="auto".
    vision_tower: official checkpoints leave out CLIP; folder or hub id of it, default what their config.json names.
    config: in place of what an official config.json says.
    drop: beginnings of official names that are left out, such as ("model.old_head.",), where a checkpoint holds more
        than the model has a place for. A second name of values that are taken needs no dropping.
    lora: folder of an adapter, by `save_lora` or peft, that is put beside the weights.
    hub: revision, token, cache_dir, subfolder ..., as transformers takes them.

    Raises FileNotFoundError for what is missing, ValueError for what is damaged or of another kind of model. Nothing
    that could run code is read.
    """
    if hub.keys() - set(HUB):
        raise TypeError(f"load_model() has no keyword {', '.join(sorted(hub.keys() - set(HUB)))}")
    if not isinstance(drop, str | list | tuple) or not all(isinstance(start, str) for start in drop):
        raise ValueError(f"drop is {drop!r}; expected beginnings of official names, such as ('model.old_head.',)")
    if lora is not None and not isinstance(lora, str | Path):
        raise ValueError(f"lora is {lora!r}; expected the folder of an adapter")
    kind = dtype_of(dtype)
    _check_device(device, quantize, max_memory, offload_folder)
    settings = quantization(quantize, kind)
    source, processor = _opened(name, vision_tower, config, drop, hub)
    model = filled(GlammForConditionalGeneration, source, kind, device, settings, max_memory, offload_folder)
    if lora is not None:
        load_lora(model, lora)
        model.requires_grad_(False)
    return model, processor


def model_from(cls: type, name: str | Path, config: GlammConfig | None = None, **given: Any):
    """What `GlammForConditionalGeneration.from_pretrained` does; see there."""
    hub = {key: given.pop(key) for key in HUB if key in given}
    info = given.pop("output_loading_info", False)
    dtype, old = given.pop("dtype", None), given.pop("torch_dtype", None)
    kind = dtype_of(dtype if dtype is not None else old)
    device, folder, memory = (given.pop(key, None) for key in ("device_map", "offload_folder", "max_memory"))
    settings, tower, drop = (given.pop(key, None) for key in ("quantization_config", "vision_tower", "drop"))
    attention = {k: given.pop(k) for k in ("attn_implementation",) if given.get(k) is not None}
    unknown = sorted(given.keys() - {"_from_auto", "trust_remote_code", "adapter_kwargs"})
    if unknown:
        raise ValueError(f"from_pretrained does not know {', '.join(unknown)}; see its help")
    if isinstance(device, str) and device not in PLACED:
        _check_device(device, None, None, None)
    source, _ = _opened(name, tower, config, drop or (), hub, alone=True)
    device = "cpu" if device is None else device
    model = filled(cls, source, kind, device, quantization(settings, kind), memory, folder, **attention)
    nothing = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    return (model, nothing) if info else model


def processor_from(name: str | Path, vision_tower: str | Path | None = None, **hub: Any) -> GlammProcessor:
    """What `GlammProcessor.from_pretrained` does: the processor of a checkpoint, of which no weight is needed."""
    unknown = sorted(hub.keys() - {*HUB, *PASSED_OVER})
    if unknown:
        raise ValueError(f"GlammProcessor.from_pretrained does not know {', '.join(unknown)}; see its help")
    hub = {key: value for key, value in hub.items() if key in HUB}
    return open_checkpoint(name, vision_tower, need_tower=False, weights="none", **hub).processor()


def _opened(name, vision_tower, config, drop, hub: dict, alone: bool = False) -> tuple[Source, GlammProcessor | None]:
    """The opened checkpoint and its processor, all of one save: a folder that is saved to meanwhile is opened again.

    alone: a model of ours that was saved without its tokenizer, whose configuration holds all ids, is good as well.
    """
    ways = {key: value for key, value in hub.items() if key not in ("revision", "subfolder")}  # to CLIP's repository
    for _ in range(TRIES):
        folder = find_folder(name, **hub)
        before = stamps(folder)
        try:
            source = open_checkpoint(folder, vision_tower, config, drop=drop, **ways)
            lone = alone and not source.official and not (folder / "tokenizer.json").is_file()
            processor = None if lone else source.processor()
        except (OSError, ValueError):
            if stamps(folder) == before:
                raise
            continue
        if stamps(folder) == before:
            source.name = str(name)
            return source, processor
    raise OSError(f"{name} is being written all the time; load it when that is done")


def filled(
    cls: type,
    source: Source,
    kind: torch.dtype | None,
    device: str | int | torch.device | Mapping = "cpu",
    settings: Quantization | None = None,
    max_memory: dict | None = None,
    offload_folder: str | Path | None = None,
    **attention: Any,
) -> GlammForConditionalGeneration:
    """The model with its values, on its devices."""
    types = {entry.dtype for entry in source.places.values() if entry.dtype.is_floating_point}
    half = sorted(types - {torch.float32}, key=str)
    if kind is None and len(half) > 1:
        raise ValueError(f"{source.folder} holds numbers of {', '.join(map(str, half))}; say which dtype it shall have")
    layers = settings.keep_the_rest(source.empty_model()) if settings else []
    if device in PLACED and settings:  # on one device
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device in PLACED:
        device = place(source.empty_model(), kind or torch.float32, max_memory, offload_folder)
    devices = dict(device) if isinstance(device, Mapping) else {"": device if isinstance(device, int) else str(device)}
    kept = folder_on_disk(offload_folder) if "disk" in devices.values() else None
    begun, answers = [], _generation(source)

    def built(model: GlammForConditionalGeneration) -> None:
        begun.append(model)
        source.check(model)
        if kind is None and half:  # "stored": one half type, and what is float32 stays so
            whole = {name for name, entry in source.places.items() if entry.dtype == torch.float32}
            model._keep_in_fp32_modules_strict = whole

    with _ONE_AT_A_TIME, quiet(source.nbytes):
        try:
            if settings is None and not attention and devices.keys() == {""} and not kept:
                model = _whole(cls, source, kind, devices[""], answers, built)
            else:
                model = cls.from_pretrained(
                    None,
                    config=source.config,
                    state_dict=source.places,
                    dtype=kind or (half or [torch.float32])[0],
                    device_map=devices,
                    quantization_config=settings and settings.config,
                    offload_folder=kept and kept.name,
                    generation_config=answers,
                    built=built,
                    **attention,
                )
        except Exception as error:
            if begun or isinstance(error, ImportError):
                raise
            raise unreadable(source.folder, error) from error  # each part of the model raises its own
    model.name_or_path, model.config.name_or_path = source.name, ""  # no folder of this machine is written down
    made = {name: type_name(tensor.dtype) for name, tensor in model.state_dict().items() if name in source.places}
    model.load_report = source.report(made | {f"{layer}.weight": settings.kind for layer in layers})
    if kept or len(set(devices.values())) > 1:
        model.offloaded, model.main_device = kept, main_device(devices)
        dispatch(model, devices)
    return model


def _generation(source: Source) -> GenerationConfig | None:
    """Of ours alone: an official one holds settings of training, which would cut answers short and slow them."""
    if source.official or not (source.folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(source.folder)


def _whole(cls: type, source: Source, kind: torch.dtype | None, device: str, answers: Any, built: Callable):
    """The model on one device, filled by us: `from_pretrained` gives the same, but compiles the patterns of all models
    that transformers knows first, which takes longer than everything else here."""
    with no_init_weights(), torch.random.fork_rng(devices=[]):  # some parts draw numbers nevertheless
        model = cls(source.config, built=built)
    state = {}
    for name, entry in source.places.items():
        state[name] = entry[...].to(device, kind if kind and entry.dtype.is_floating_point else entry.dtype)
    model.load_state_dict(state, strict=False, assign=True)  # `built` has compared all names; tied ones may be left out
    model.tie_weights()
    model.config.dtype = kind or model.dtype
    if answers is not None:
        model.generation_config = answers
    return model.to(device).eval()


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The type behind a name; None for "stored". ValueError for one that weights cannot have."""
    if dtype in ("stored", "auto"):
        return None
    kind = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype or "float32"), None)
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point or kind.itemsize < 2:
        raise ValueError(f"dtype {dtype!r} is unknown; expected float32, bfloat16, float16 or stored")
    return kind


def _check_device(device, quantize, max_memory, offload_folder) -> None:
    given = [n for n, v in (("max_memory", max_memory), ("offload_folder", offload_folder)) if v is not None]
    if given and device != "auto":
        raise ValueError(f"{' and '.join(given)} belong to device='auto', but device is {device!r}")
    if given and quantize:
        raise ValueError(f"quantize={quantize!r} keeps the model on one device; leave out {' and '.join(given)}")
    if device == "auto":
        return
    try:
        kind = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device {device!r} is unknown; expected such as 'cpu', 'cuda', 'cuda:1' or 'auto'") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but PyTorch finds no GPU; leave device out, or give 'cpu'")
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {str(device)!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0")


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Fill a module from a safetensors file; names and shapes must agree exactly (ValueError that lists them).

    Raises FileNotFoundError when there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}; train them, or give the folder that holds them")
    state, own = list_tensors([path]), module.state_dict()
    problems = mismatch({name: tuple(tensor.shape) for name, tensor in own.items()}, state)
    if problems:
        raise ValueError(f"{path} does not fit: {problems}; the checkpoint belongs to another model or version")
    module.load_state_dict({name: stored[...].to(own[name].dtype) for name, stored in state.items()})
