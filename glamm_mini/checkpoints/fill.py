"""Weights from files straight into a model that was built without any, one tensor at a time.

Each tensor goes to its type and its device as it is read, and a layer that is to be quantized is so at once: beside
the finished model there is never more in memory than a slice of one file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate.utils import offload_weight, save_offload_index
from torch import nn

from glamm_mini.checkpoints.placement import device_of, main_device
from glamm_mini.checkpoints.quantize import layers_to_quantize, quantized, replace
from glamm_mini.checkpoints.report import LoadReport, type_name
from glamm_mini.checkpoints.source import Source


def fill(
    model,
    source: Source,
    dtype: torch.dtype | None = None,
    devices: Mapping[str, str | int] | None = None,
    offload_folder: str | Path | None = None,
    quantize: str | None = None,
    advance: Callable[[int], None] | None = None,
) -> LoadReport:
    """Fill `source.empty_model()`, whose names and shapes have been checked.

    dtype: every weight's new type; None keeps the stored ones. SAM's matrix of position frequencies is cast like the
        rest: the released code casts it too, and its published figures were made so.
    devices: the device of each part by the beginning of its name, as accelerate writes it; "disk" writes the weights
        to `offload_folder` and leaves them on the meta device. Default: everything on the CPU.
    quantize: "4bit" or "8bit" for the language model's linear layers. advance: told the bytes of each tensor read.
    """
    devices = devices or {"": "cpu"}
    layers = set(layers_to_quantize(model, quantize)) if quantize else set()
    report, index = source.report(), {}
    names, buffers = set(model.state_dict()), {name for name, _ in model.named_buffers()}
    for name, tensor, file in source.tensors():
        path = name.rpartition(".")[0]
        # accelerate fetches parameters alone; a buffer stays where it is used.
        device = main_device(devices) if name in buffers else device_of(name, devices)
        # A copy even where nothing changes: a view of the file would keep the file mapped.
        first = "cpu" if device == "disk" or path in layers else device
        own = tensor.to(first, dtype or tensor.dtype, copy=True)
        if device == "disk":
            index = offload_weight(own, name, offload_folder, index)
        else:
            put(model, name, own)
        if path in layers and not any(p.is_meta for p in model.get_submodule(path).parameters()):
            replace(model, path, quantized(model.get_submodule(path), quantize).to(device))
        report.add(name, tensor.shape, tensor.dtype, quantize if path in layers else type_name(own.dtype), file)
        if advance is not None:
            advance(tensor.nbytes)
    report.kept = sorted(names - source.places.keys() - set(model.all_tied_weights_keys))
    if index:
        save_offload_index(index, offload_folder)
    if model.all_tied_weights_keys:
        model.tie_weights()
    return report


def put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the model's parameter or buffer of that name, without a copy."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=owner._parameters[leaf].requires_grad)
    else:
        owner._buffers[leaf] = tensor
