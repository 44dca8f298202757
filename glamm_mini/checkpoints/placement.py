"""Which part of a model lies on which device, by accelerate: GPUs first, then the CPU's memory, then the disk.

A part that has no place on the main device lies elsewhere until it is called; accelerate fetches its weights, and
puts them back, around every call.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import compute_module_sizes

WHOLE = ("LlamaDecoderLayer", "CLIPVisionModel", "GroundingImageEncoder", "RegionEncoder", "PixelDecoder")
"""Classes whose weights lie on one device: what they compute goes back and forth between them."""

READ_OUTSIDE = ["PixelDecoder"]
"""Classes that read weights of their parts without calling these, as segment-anything's token tables are; all their
weights are fetched when they are called themselves."""

PARTS = ("global_encoder.clip", "vl_projector", "region_encoder", "language_model.model.embed_tokens")
PARTS += ("language_model.model", "language_model.lm_head", "grounding_encoder", "pixel_decoder", "lp_projector")
"""What GLaMM calls, each of which hands its result back on the device that its input came from."""


def place(
    model, dtype: torch.dtype, max_memory: Mapping | None = None, offload_folder: str | Path | None = None
) -> dict[str, str | int]:
    """A device for every part of a model that is still on the meta device: its name -> 0, 1 ..., "cpu" or "disk".

    max_memory: the most that each may hold, such as {0: "10GB", "cpu": "30GB"}; default: what is free, of all.
    Raises ValueError for a device or a size that there is not, and when the disk is needed but no folder was given.
    """
    _check_memory(max_memory)
    try:
        memory = None if max_memory is None else dict(max_memory)
        devices = infer_auto_device_map(model, memory, no_split_module_classes=list(WHOLE), dtype=dtype)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"max_memory {max_memory!r} cannot be used ({error}); expected {{0: '10GB', 'cpu': '30GB'}}"
        ) from error
    main = main_device(devices)
    modules = {name for name, _ in model.named_modules()}
    # accelerate fetches what modules own, so a single weight has to stay where it is used.
    devices = {name: device if name in modules else main for name, device in devices.items()}
    if "disk" in devices.values() and offload_folder is None:
        sizes = compute_module_sizes(model, dtype=dtype)
        on_disk = sum(sizes[name] for name, device in devices.items() if device == "disk")
        raise ValueError(
            f"the model takes {sizes[''] / 1e9:.2f} GB in {str(dtype).removeprefix('torch.')}, and {on_disk / 1e9:.2f} "
            "GB of it find no memory; give offload_folder='FOLDER' to keep them on disk, a smaller dtype, or quantize"
        )
    return devices


def dispatch(model, devices: Mapping[str, str | int], offload_folder: str | Path | None = None):
    """Let accelerate move inputs and weights of a filled model, whose parts lie as `place` has said."""
    dispatch_model(model, dict(devices), offload_dir=offload_folder, preload_module_classes=READ_OUTSIDE)
    main = model.main_device = main_device(devices)
    if len(set(devices.values()) - {"cpu", "disk"}) > 1:
        for name in PARTS:
            hook = AlignDevicesHook(execution_device=main, io_same_device=True)
            add_hook_to_module(model.get_submodule(name), hook, append=True)
    return model


def first_device() -> dict[str, str]:
    """Everything on the GPU, or on the CPU where there is none."""
    return {"": "cuda" if torch.cuda.is_available() else "cpu"}


def main_device(devices: Mapping[str, str | int]) -> str | int:
    """The device that computes: the first GPU that holds anything, or the CPU."""
    return next((device for device in devices.values() if device not in ("cpu", "disk")), "cpu")


def device_of(name: str, devices: Mapping[str, str | int]) -> str | int:
    """The device of a weight: that of the longest beginning of its name that `devices` holds."""
    while name not in devices and name:
        name = name.rpartition(".")[0]
    return devices[name]


def folder_on_disk(offload_folder: str | Path) -> TemporaryDirectory:
    """A folder of its own for one model's weights, inside `offload_folder`; it goes when the model does.

    Raises OSError if it cannot be made.
    """
    try:
        Path(offload_folder).mkdir(parents=True, exist_ok=True)
        return TemporaryDirectory(prefix="glamm-", dir=offload_folder)
    except OSError as error:
        raise OSError(
            f"offload_folder {offload_folder} cannot be made ({error}); name a place that can be written"
        ) from error


def _check_memory(max_memory: Mapping | None) -> None:
    if max_memory is None:
        return
    known = ["cpu", *range(torch.cuda.device_count())]
    if not isinstance(max_memory, Mapping) or any(key not in known for key in max_memory):
        raise ValueError(
            f"max_memory is {max_memory!r}; expected sizes for some of {known}, such as {{'cpu': '30GB'}}; this "
            f"machine has {torch.cuda.device_count()} GPUs"
        )
