"""Where a model's parts lie, by accelerate (GPUs first, then memory, then the disk), and how many bits they take.

A part that has no place on the main device lies elsewhere until it is called; accelerate fetches its weights, and
puts them back, around every call.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import compute_module_sizes
from torch import nn

from glamm_mini.paths import folder_path

WHOLE = ("LlamaDecoderLayer", "VisionTower", "GroundingImageEncoder", "RegionEncoder", "PixelDecoder")
"""Classes whose weights lie on one device: what they compute goes back and forth between them."""

STAYS = "pixel_decoder"
"""Always on the main device (16 MB at most): segment-anything reads its token tables without calling them, which is
when accelerate would fetch them."""

PARTS = ("global_encoder.clip", "vl_projector", "region_encoder", "language_model.model.embed_tokens")
PARTS += ("language_model.model", "language_model.lm_head", "grounding_encoder", "pixel_decoder", "lp_projector")
"""What GLaMM calls, each of which hands its result back on the device that its input came from."""

KINDS = ("4bit", "8bit")
BLOCK = 64
"""Weights that share one scale in 4 bits; a layer's input width is a multiple of it, or bitsandbytes fails on a CPU."""

LANGUAGE = "language_model.model."
"""Where the layers stand that are quantized. The image encoders, the projectors and the pixel decoder stay as they are
(masks suffer first from lost bits), and so does the language model's head."""


def place(
    model: nn.Module, dtype: torch.dtype, max_memory: Mapping | None = None, offload_folder: str | Path | None = None
) -> dict[str, str | int]:
    """A device for every part of a model that is still on the meta device: its name -> 0, 1 ..., "cpu" or "disk".

    max_memory: the most that each may hold; default: what is free, of all.
    Raises ValueError for a device or a size that there is not, and when the disk is needed but no folder was given.
    """
    known = ["cpu", *range(torch.cuda.device_count())]
    try:
        memory = None if max_memory is None else dict(max_memory)
        odd = [key for key in memory or () if key not in known]
        if odd:
            raise ValueError(f"of {known}, there is no {odd[0]!r}")
        devices = infer_auto_device_map(model, memory, no_split_module_classes=list(WHOLE), dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(f"max_memory {max_memory!r} ({error}); expected as {{0: '10GB', 'cpu': '30GB'}}") from error
    main, modules = main_device(devices), {name for name, _ in model.named_modules()}
    # accelerate fetches what modules own, so a single weight has to stay where it is used.
    devices = {name: device if name in modules else main for name, device in devices.items()}
    if set(devices) == {""}:  # all in one place
        devices = {name: devices[""] for name, _ in model.named_children()}
    devices = {name: device for name, device in devices.items() if not name.startswith(STAYS)} | {STAYS: main}
    if "disk" in devices.values() and offload_folder is None:
        sizes = compute_module_sizes(model, dtype=dtype)
        on_disk = sum(sizes[name] for name, device in devices.items() if device == "disk") / 1e9
        takes = f"{sizes[''] / 1e9:.2f} GB in {str(dtype).removeprefix('torch.')}"
        ways = "give offload_folder='FOLDER' to keep them on disk, a smaller dtype, or quantize"
        raise ValueError(f"the model takes {takes}, and {on_disk:.2f} GB of it find no memory; {ways}")
    return devices


def dispatch(model: nn.Module, devices: Mapping[str, str | int], kept: TemporaryDirectory | None) -> None:
    """Mark a model that lies in pieces, and let every part hand its result back where its input came from: GLaMM calls
    its parts one by one, and accelerate does so for calls of the whole model alone. `kept` goes when the model does."""
    if kept or len(set(devices.values())) > 1:
        model.offloaded, model.main_device = kept, main_device(devices)
    if len(set(devices.values()) - {"cpu", "disk"}) > 1:
        for name in PARTS:
            hook = AlignDevicesHook(execution_device=main_device(devices), io_same_device=True)
            add_hook_to_module(model.get_submodule(name), hook, append=True)


def main_device(devices: Mapping[str, str | int]) -> str | int:
    """The device that computes: the first GPU that holds anything, or the CPU."""
    return next((device for device in devices.values() if device not in ("cpu", "disk")), "cpu")


def folder_on_disk(devices: Mapping[str, str | int], offload_folder: str | Path | None) -> TemporaryDirectory | None:
    """A folder of its own inside `offload_folder` for the weights that lie on the disk; None where none do. Raises
    ValueError if no place was named, OSError if it cannot be made."""
    if "disk" not in devices.values():
        return None
    if offload_folder is None:
        raise ValueError("some weights are to lie on the disk; say where by offload_folder='FOLDER'")
    try:
        folder_path(offload_folder, "offload_folder").mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix="glamm-", dir=offload_folder)
    except OSError as error:
        hint = "name a place that can be written"
        raise OSError(f"offload_folder {offload_folder} cannot be made ({error}); {hint}") from error


def bits(settings: Any) -> str:
    """Which of KINDS bitsandbytes' settings are."""
    return "4bit" if settings.load_in_4bit else "8bit"


def quantized_layers(model: nn.Module, settings: Any) -> list[str]:
    """The layers that become quantized (ValueError if there is none, as in the tiny model); the settings then name all
    others, unless they name some themselves."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    language = {name: layer for name, layer in linear.items() if name.startswith(LANGUAGE)}
    layers = [n for n, layer in language.items() if type(layer) is nn.Linear and layer.in_features % BLOCK == 0]
    if not layers:
        found = f"finds no layer in this model whose width is a multiple of {BLOCK}"
        raise ValueError(f"quantize={bits(settings)!r} {found}; it is small enough as it is: leave quantize out")
    if settings.llm_int8_skip_modules is None:
        settings.llm_int8_skip_modules = sorted(linear.keys() - layers)
    return layers


def quantization(wanted: Any, dtype: torch.dtype | None) -> Any:
    """transformers' settings behind "4bit", "8bit" or a BitsAndBytesConfig; None for none. Raises ValueError for an
    unknown kind, ModuleNotFoundError that names the extra if bitsandbytes is missing."""
    if wanted is None:
        return None
    if isinstance(wanted, str) and wanted not in KINDS:
        raise ValueError(f"quantize is {wanted!r}; expected None, {' or '.join(map(repr, KINDS))}")
    from transformers import BitsAndBytesConfig

    with of_extra("bitsandbytes", "quantize", "quantizing"):
        import bitsandbytes  # noqa: F401
    if isinstance(wanted, str):
        four, compute = wanted == "4bit", dtype or torch.bfloat16
        finer = dict(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
        return BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, **finer)
    if not isinstance(wanted, BitsAndBytesConfig):
        raise ValueError(f"quantization_config is {type(wanted).__name__}; expected transformers' BitsAndBytesConfig")
    return wanted


@contextmanager
def of_extra(library: str, extra: str, what: str) -> Iterator[None]:
    """Imports inside are of a library that not every installation has; the error says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        fix = f"pip install 'glamm-mini[{extra}]'"
        raise ModuleNotFoundError(f"{what} needs {library}, which is not installed: {fix}", name=library) from error
