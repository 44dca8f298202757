"""Loading: a bundled name, a folder or a hub id, of ours or official, becomes a model whose every weight was there.

A checkpoint is opened first (`open_checkpoint`): its names and shapes are known, and nothing is read. Then the model
takes the values one tensor at a time, by transformers' `from_pretrained` where it lies in pieces or is quantized.
"""

import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from glamm_mini.checkpoints.files import find_folder, first_line, list_tensors, mismatch, reading, stamps
from glamm_mini.checkpoints.lora import load_lora
from glamm_mini.checkpoints.placement import bits, dispatch, folder_on_disk, place, quantization, quantized_layers
from glamm_mini.checkpoints.save import quiet
from glamm_mini.checkpoints.source import UNREADABLE, Source, open_checkpoint, type_name
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.processor import GlammProcessor

HUB = ("revision", "token", "cache_dir", "force_download", "local_files_only", "subfolder")
"""What `from_pretrained` is told about a repository of the hub; `subfolder` also of a folder here."""

AUTO = ("_from_auto", "trust_remote_code", "adapter_kwargs")
"""What transformers' Auto classes hand over as well, for which it means nothing."""

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
    device, quantize, max_memory, offload_folder: as `glamm_mini.load` takes them; see `checkpoints.placement`.
    vision_tower: official checkpoints leave out CLIP; folder or hub id of it, default what their config.json names.
    config: in place of what an official config.json says.
    drop: beginnings of official names that are left out, where a checkpoint holds more than the model has a place for.
        A second name of values that are taken needs no dropping.
    lora: folder of an adapter, by `save_lora` or peft, that is put beside the weights. hub: see HUB.

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
    _check_device(device, quantize, max_memory=max_memory, offload_folder=offload_folder)
    settings = quantization(quantize, kind)
    source, processor = _opened(name, vision_tower, config, drop, hub)
    model = filled(GlammForConditionalGeneration, source, kind, device, settings, max_memory, offload_folder)
    if lora is not None:
        load_lora(model, lora)
        model.requires_grad_(False)
    return model, processor


def model_from(cls: type, name: str | Path, config: GlammConfig | None = None, **given: Any):
    """What `GlammForConditionalGeneration.from_pretrained` does; see there."""
    placement = ("max_memory", "offload_folder", "attn_implementation")
    known = "dtype torch_dtype device_map quantization_config vision_tower drop output_loading_info".split()
    hub = _of_hub(given, "from_pretrained", (*AUTO, *placement, *known))
    given = {key: value for key, value in given.items() if value is not None}
    kinds = {dtype_of(given[key]) for key in known[:2] if key in given} or {torch.float32}
    if len(kinds) > 1:
        raise ValueError(f"dtype and torch_dtype are {' and '.join(map(str, kinds))}; leave torch_dtype out")
    [kind], device = kinds, given.get("device_map", "cpu")
    _check_device(device, **{key: given[key] for key in placement[:2] if key in given})
    if isinstance(kinds := given.get("attn_implementation"), Mapping):
        _check_parts("attn_implementation", kinds, ("", *GlammConfig.sub_configs))
    source, _ = _opened(name, given.get("vision_tower"), config, given.get("drop", ()), hub, alone=True)
    settings = quantization(given.get("quantization_config"), kind)
    model = filled(cls, source, kind, device, settings, **{key: given[key] for key in placement if key in given})
    nothing = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    return (model, nothing) if given.get("output_loading_info") else model


def processor_from(name: str | Path, vision_tower: str | Path | None = None, **given: Any) -> GlammProcessor:
    """What `GlammProcessor.from_pretrained` does: the processor of a checkpoint, of which no weight is needed."""
    hub = _of_hub(given, "GlammProcessor.from_pretrained", (*AUTO, "use_fast", "dtype", "device_map"))
    return open_checkpoint(name, vision_tower, need_tower=False, weights="none", **hub).processor()


def _of_hub(given: dict, call: str, passed_over: tuple[str, ...]) -> dict:
    """The keywords for the hub. ValueError for one that `call` does not know."""
    unknown = sorted(given.keys() - {*HUB, *passed_over})
    if unknown:
        raise ValueError(f"{call} does not know {', '.join(unknown)}; see its help")
    return {key: value for key, value in given.items() if key in HUB}


def _opened(name, vision_tower, config, drop, hub: dict, alone: bool = False) -> tuple[Source, GlammProcessor | None]:
    """The opened checkpoint and its processor, all of one save: a folder that is saved to meanwhile is opened again.
    alone: a model of ours that was saved without its tokenizer, whose configuration holds all ids, is good as well."""
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
        else:
            if stamps(folder) == before:
                source.name = str(name)
                return source, processor
    raise OSError(f"{name} is being written all the time; load it when that is done")


def filled(
    cls: type,
    source: Source,
    kind: torch.dtype | None,
    device: str | int | torch.device | Mapping = "cpu",
    settings: Any = None,
    max_memory: dict | None = None,
    offload_folder: str | Path | None = None,
    **attention: Any,
) -> GlammForConditionalGeneration:
    """The model with its values, on its devices. kind: None keeps each weight's own type. settings: of bitsandbytes."""
    half = {e.dtype for e in source.places.values() if e.dtype.is_floating_point} - {torch.float32}
    if kind is None and len(half) > 1:
        raise ValueError(f"{source.folder} holds numbers of {', '.join(map(str, half))}; say which dtype it shall have")
    answers = None
    if isinstance(device, Mapping) and device.keys() == {""} and device[""] != "disk":
        device = device[""]
    if not source.official and (source.folder / "generation_config.json").is_file():
        # An official one holds settings of training, which would cut answers short and slow them.
        with reading(source.folder / "generation_config.json", " cannot be used"):
            answers = GenerationConfig.from_pretrained(source.folder)
    with _ONE_AT_A_TIME:
        if settings or attention or device in PLACED or isinstance(device, Mapping):
            dtype = kind or next(iter(half), torch.float32)
            empty = source.empty_model()
            source.check(empty)
            if isinstance(device, Mapping):
                _check_parts("device_map", device, dict(empty.named_modules()) | dict(empty.named_parameters()))
            layers = quantized_layers(empty, settings) if settings else []
            if device in PLACED and settings:  # on one device
                device = "cuda" if torch.cuda.is_available() else "cpu"
            devices = place(empty, dtype, max_memory, offload_folder) if device in PLACED else device
            if not isinstance(devices, Mapping):
                devices = {"": device if isinstance(device, int) else str(device)}
            kept = folder_on_disk(devices, offload_folder)
            whole = {name for name, entry in source.places.items() if entry.dtype == torch.float32}
            with quiet(sum(entry.nbytes for entry in source.places.values())):
                model = cls.from_pretrained(
                    None,
                    config=source.config,
                    state_dict=source.places,
                    dtype=dtype,
                    device_map=devices,
                    quantization_config=settings,
                    offload_folder=kept and kept.name,
                    generation_config=answers,
                    built=None if kind else lambda model: setattr(model, "_keep_in_fp32_modules_strict", whole),
                    **attention,
                )
            dispatch(model, devices, kept)
        else:
            model, layers = _whole(cls, source, kind, device, answers), []
    model.name_or_path, model.config.name_or_path = source.name, ""  # no folder of this machine is written down
    made = {name: type_name(tensor.dtype) for name, tensor in model.state_dict().items() if name in source.places}
    model.load_report = source.report(made | {f"{layer}.weight": bits(settings) for layer in layers})
    return model


def _whole(cls: type, source: Source, kind: torch.dtype | None, device: Any, answers: Any):
    """The model on one device, filled by us: `from_pretrained` gives the same, but compiles the patterns of all models
    that transformers knows first, which takes longer than everything else here."""
    with reading(source.folder, UNREADABLE), no_init_weights(), torch.random.fork_rng(devices=[]):
        model = cls(source.config)  # some parts draw numbers nevertheless
    source.check(model)
    state = {}
    for name, entry in source.places.items():
        state[name] = entry[...].to(device, kind if kind and entry.dtype.is_floating_point else entry.dtype)
    model.load_state_dict(state, strict=False, assign=True)  # all names were compared; tied ones may be left out
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


def _check_device(device: Any, quantize: Any = None, **placement: Any) -> None:
    auto, mapped = isinstance(device, str) and device in PLACED, isinstance(device, Mapping)
    given = " and ".join(name for name, value in placement.items() if value is not None)
    if given and not auto and not (mapped and given == "offload_folder"):
        raise ValueError(f"{given} belong to device='auto', but device is {device!r}")
    if given and quantize:
        raise ValueError(f"quantize={quantize!r} keeps the model on one device; leave out {given}")
    try:
        for one in (None, *(device.values() if mapped else [None if auto else device])):  # None: torch's default
            if torch.empty(0, device=None if mapped and one == "disk" else one).is_meta:
                raise RuntimeError("on meta, torch's default or asked for, are no values")
    except (RuntimeError, TypeError, AssertionError) as error:
        expected = "expected such as 'cpu', 'cuda', 'cuda:1' or 'auto'"
        raise ValueError(f"device {device!r} cannot be used ({first_line(error)}); {expected}") from error


def _check_parts(what: str, given: Mapping, known: Collection[str]) -> None:
    odd = [name for name in given if name not in known]
    if odd or not given:
        raise ValueError(f"{what} is {given!r}; expected names of parts, such as {', '.join(sorted(known)[1:4])}")


def load_weights(module: torch.nn.Module, path: str | Path) -> None:
    """Fill a module from a safetensors file (FileNotFoundError if there is none); names and shapes must agree exactly
    (ValueError that lists them)."""
    state, own = list_tensors([path]), module.state_dict()
    problems = mismatch({name: tuple(tensor.shape) for name, tensor in own.items()}, state)
    if problems:
        raise ValueError(f"{path} does not fit: {problems}; the checkpoint belongs to another model or version")
    module.load_state_dict({name: stored[...].to(own[name].dtype) for name, stored in state.items()})
