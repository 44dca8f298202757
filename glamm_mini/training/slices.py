"""A sharded run's checkpoint: every process writes the slices it holds, any number of processes reads them.

torch's distributed checkpoint in safetensors files: no pickle is written or read (its own format has several).
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

WEIGHT, MOMENT, AVERAGE = "model.", "optimizer.", "average."
"""What the names of tensors begin with."""

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def save_slices(
    folder: Path,
    model: nn.Module,
    names: set[str],
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes this process's slices of the tensors `names` of the model, of the optimizer and of the moving average.

    All processes call it together; `folder` must be one that they share.

    Raises:
        OSError: in every process, if one could not write.
    """
    moments = _moments(get_optimizer_state_dict(model, optimizer, options=_FLAT))
    tensors = _tensors(model, names, moments, average)
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise OSError("; ".join(str(_cause(failure)) for failure in error.failures.values())) from error


def load_slices(
    folder: Path,
    model: nn.Module,
    names: set[str],
    optimizer: torch.optim.Optimizer,
    average: dict[str, torch.Tensor] | None = None,
) -> None:
    """Fills model, optimizer and moving average, in slices or whole, whatever number of processes wrote them.

    Raises:
        ValueError: a file is damaged, or the checkpoint is of another model.
    """
    stored = {name: entry.size for name, entry in _stored(folder).items()}
    state = get_optimizer_state_dict(model, optimizer, options=_FLAT)  # makes moments for all trained parameters
    # A parameter that no step has used has none in the file, and must have none after.
    moved = {_owner(name.removeprefix(MOMENT)) for name in stored if name.startswith(MOMENT)}
    moments = [(name, moment) for name, moment in _moments(state) if _owner(name) in moved]
    tensors = _tensors(model, names, moments, average)
    _check(folder, stored, {name: tensor.shape for name, tensor in tensors.items()})
    _read(folder, tensors)
    set_optimizer_state_dict(model, optimizer, state, options=_FLAT)
    for name, parameter in model.named_parameters():
        if name not in moved:
            optimizer.state.pop(parameter, None)


def merge_slices(folder: Path, target: Path) -> int:
    """Writes the model's weights in `folder` to `target`, one plain safetensors file; returns their number.

    Needs memory for the weights once.

    Raises:
        ValueError: a file of `folder` is damaged, or there is none.
    """
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in _stored(folder).items()
        if name.startswith(WEIGHT)
    }
    _read(folder, tensors, together=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name.removeprefix(WEIGHT): t for name, t in tensors.items()}, str(target), metadata={"format": "pt"})
    return len(tensors)


def _tensors(model, names, moments, average) -> dict[str, torch.Tensor]:
    tensors = {WEIGHT + name: tensor for name, tensor in model.state_dict().items() if name in names}
    tensors |= {MOMENT + name: tensor for name, tensor in moments}
    return tensors | {AVERAGE + name: tensor for name, tensor in (average or {}).items()}


def _moments(state: dict) -> Iterator[tuple[str, torch.Tensor]]:
    # Beside the moments stand the settings of each group; they follow from TrainSettings and the step.
    return ((name, value) for name, value in state.items() if name.startswith("state.") and torch.is_tensor(value))


def _owner(moment: str) -> str:
    """The parameter's name in "state.NAME.exp_avg"."""
    return moment.removeprefix("state.").rpartition(".")[0]


def _read(folder: Path, tensors: dict[str, torch.Tensor], together: bool = True) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads: as it should be
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not together)


def _stored(folder: Path) -> dict:
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:
        raise ValueError(f"the sharded checkpoint {folder} cannot be read ({error}); copy it again in full") from error
    if not stored:
        raise ValueError(f"the sharded checkpoint {folder} holds no safetensors file; copy it again in full")
    return stored


def _check(folder: Path, stored: dict[str, torch.Size], wanted: dict[str, torch.Size]) -> None:
    odd = [n for n in sorted(set(stored) | set(wanted)) if stored.get(n) != wanted.get(n)]
    if odd:
        listed = ", ".join(odd[:5])
        raise ValueError(f"the checkpoint {folder} is of another model: {len(odd)} tensors differ, such as {listed}")


def _cause(failure) -> BaseException:
    return failure[0] if isinstance(failure, tuple) else failure
