"""LoRA by peft: put in, saved, loaded to go on, and merged, in one call each; folders are peft's own.

Hu et al., LoRA, 2021. The official fine-tuning takes rank 8, alpha 16, dropout 0.05 on queries and values. Converted to
official names the matrices are `model.layers.N.self_attn.q_proj.lora_A.default.weight`, as official runs save them.

A model with LoRA stays a GLaMM: peft's layers stand in its language model, and no wrapper around it. So the official
choice of trained parts beside LoRA trains in place, which `modules_to_save` would wrap and rename.
"""

import json
import logging
import math
import re
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from glamm_mini.checkpoints.files import Stored, list_tensors, mismatch
from glamm_mini.checkpoints.save import is_quantized, recover, whole_folder

ADAPTER = "default"
"""What peft calls the only adapter; part of the official names."""

TARGETS = ("q_proj", "v_proj")
WEIGHTS, SETTINGS, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
_PROBE = 16


def add_lora(model, rank: int = 8, alpha: float = 16, dropout: float = 0.05, targets: tuple = TARGETS) -> int:
    """Put LoRA beside the language model's layers of these names and freeze its own weights; nothing changes at first.

    The matrices are float32 whatever type the frozen weights have. Everything outside the language model is left
    alone: CLIP and SAM have layers called `q_proj` too. Returns how many layers were adapted.

    Raises:
        ModuleNotFoundError: peft is not installed. ValueError: the model has LoRA already, is quantized, has no layer
            of these names, or a setting is out of range.
    """
    peft = _peft()
    _check_free(model)
    targets = (targets,) if isinstance(targets, str) else targets
    if type(rank) is not int or rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise ValueError(f"rank {rank}, alpha {alpha}, dropout {dropout}; expected at least 1, above 0, and 0 to 1")
    linear = [n for n, m in model.language_model.named_modules() if isinstance(m, nn.Linear)]
    absent = set(targets) - {name.rpartition(".")[2] for name in linear}
    if absent or not targets:
        raise ValueError(f"the language model has no linear layer called {' or '.join(sorted(absent)) or targets}")
    settings = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        task_type="CAUSAL_LM",  # peft's own loading then offers generate
        target_modules=rf"language_model\.(.*\.)?({'|'.join(sorted(targets))})",
    )
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    _put_in(model, settings)
    for name, parameter in model.named_parameters():
        if name in trains and not name.startswith("language_model."):
            parameter.requires_grad = trains[name]
    return len(_layers(model))


def has_lora(model) -> bool:
    """Whether LoRA stands beside layers of the model."""
    return any(".lora_" in name for name, _ in model.named_parameters())


def lora_settings(model) -> dict[str, Any]:
    """rank, alpha, dropout and targets of the model's LoRA. Raises ValueError if it has none."""
    if not has_lora(model):
        raise ValueError("the model has no LoRA; put it in with add_lora, or load one with load_lora")
    own = model.peft_config[ADAPTER]
    targets = sorted({path.rpartition(".")[2] for path in _layers(model)})
    return {"rank": own.r, "alpha": own.lora_alpha, "dropout": own.lora_dropout, "targets": targets}


def save_lora(folder: str | Path, model, base: str | None = None) -> Path:
    """Write what a run trains, LoRA and the other trained parts, without the frozen weights, as peft would.

    base: which model it belongs on: a bundled name, a folder or a hub id.
    Raises ValueError if the model has no LoRA, OSError if it cannot be written; older files are untouched then.
    """
    lora_settings(model)
    folder, settings = Path(folder), deepcopy(model.peft_config[ADAPTER])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad or ".lora_" in n}
    others = {_plain(name).rpartition(".")[0] for name in trained if ".lora_" not in name}
    settings.base_model_name_or_path, settings.modules_to_save = base, sorted(others) or None
    settings.inference_mode = True
    state = {PREFIX + _plain(n).replace(f".{ADAPTER}.", "."): p.detach().cpu() for n, p in trained.items()}
    probe = [] if _first_query(model).requires_grad else _probe(model)
    with whole_folder(folder, mine=(folder / SETTINGS).is_file()) as fresh:
        settings.save_pretrained(fresh)
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        save_file(state, fresh / WEIGHTS, metadata={"format": "pt", "probe": json.dumps(probe)})
    return folder


def load_lora(model, folder: str | Path) -> dict[str, Any]:
    """Put a saved adapter, of `save_lora` or of peft itself, into the model that it was trained on, ready to train on.

    LoRA is added where the model has none. What the file holds is trained from now on, all else is frozen. Trained
    parts become float32 in a model kept in half precision too: rounded, they would lose small steps of training.
    Such a model answers as it is and trains under autocast. Returns the LoRA's settings and its `base`.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is damaged, the adapter has another rank or other
            targets than the model's, or was trained on another model; the model is as it was then.
    """
    settings, state, probe, folder = _read(Path(folder))
    whole, settings.modules_to_save = settings.modules_to_save or (), None  # these parts are trained in place
    fresh, trains = not has_lora(model), {name: p.requires_grad for name, p in model.named_parameters()}
    if fresh:
        try:
            _put_in(model, settings)
        except (ValueError, re.error) as error:  # none of its layers is there
            raise ValueError(f"the LoRA in {folder} cannot be put in: {error}") from error
    elif model.peft_config[ADAPTER].lora_alpha != settings.lora_alpha:
        own = model.peft_config[ADAPTER].lora_alpha
        raise ValueError(f"the LoRA in {folder} has alpha {settings.lora_alpha}, the model's has {own}")
    own = {_plain(name).replace(f".{ADAPTER}.", "."): p for name, p in model.named_parameters()}
    # Half of a module that stands beside LoRA would leave the other half as the base has it.
    wanted = {n for n in own if ".lora_" in n or n in state}.union(*(_of_module(own, name) for name in whole))
    problems = mismatch({n: tuple(own[n].shape) for n in wanted}, state)
    # A model kept in half precision differs from its float32 self by up to 1 part in 256.
    if problems:
        problems = f"is of another model: {problems}" if fresh else f"does not fit the model's: {problems}"
    elif len(probe) and not torch.allclose(torch.tensor(_probe(model)), probe, rtol=2**-7, atol=1e-4):
        problems = "was trained on other weights of the same shape"
    if problems:
        if fresh:
            _take_out(model, trains)
        base = settings.base_model_name_or_path or "a model that it does not name"
        raise ValueError(f"the LoRA in {folder} {problems}; it belongs on {base}")
    for name, parameter in own.items():
        parameter.requires_grad = name in state
        if name in state:
            parameter.data = state[name][...].to(parameter.device, torch.float32)
    return {"base": settings.base_model_name_or_path, **lora_settings(model)}


def merge_lora(model) -> int:
    """Add LoRA's products to the weights that they stand beside and take it out; names are a plain model's again.

    Answers stay the same up to rounding. Returns how many layers were merged. Raises ValueError if there is no LoRA,
    or if a merged weight would not be finite.
    """
    lora_settings(model)
    layers = _layers(model)
    for path in layers:
        model.get_submodule(path).merge(safe_merge=True)
    _take_out(model, {})
    return len(layers)


def _check_free(model) -> None:
    if has_lora(model):
        raise ValueError("the model has LoRA already; merge it first (merge_lora), or train on with it")
    if is_quantized(model):
        raise ValueError("the language model is quantized; load it without quantize to use LoRA")


def _put_in(model, settings) -> None:
    _check_free(model)
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        _peft().inject_adapter_in_model(settings, model, ADAPTER)
    except ValueError:
        _take_out(model, trains)
        raise
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # peft takes the base's type; half precision loses small steps
    model.train(model.training)  # new layers begin in training mode, dropout on


def _take_out(model, trains: dict[str, bool]) -> None:
    """Put the plain layers back in their places; `trains` says which of their weights are trained."""
    for path in _layers(model):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_submodule(path).get_base_layer())
    vars(model).pop("peft_config", None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = trains.get(name, parameter.requires_grad)


def _layers(model) -> list[str]:
    return [name.removesuffix(".base_layer") for name, _ in model.named_modules() if name.endswith(".base_layer")]


def _peft():
    # Where bitsandbytes is installed, peft imports it; it then warns of a kernel for 4 bits that LoRA does not need.
    quiet = logging.getLogger("bitsandbytes")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LoRA needs peft, which is not installed: pip install 'glamm-mini[train]'", name="peft"
        ) from error
    finally:
        quiet.setLevel(level)
    return peft


def _plain(name: str) -> str:
    """A parameter's name as a model without LoRA has it."""
    return name.replace(".base_layer.", ".")


def _of_module(names: Iterable[str], module: str) -> set[str]:
    """Names of the parameters of a layer, or of all layers below where it has none of its own."""
    direct = {name for name in names if f".{name.rpartition('.')[0]}".endswith(f".{module}")}
    return direct or {name for name in names if f".{module}." in f".{name}"}


def _probe(model) -> list[float]:
    """A few of the language model's own weights, which tell one base from another."""
    return [round(x, 6) for x in _first_query(model)[0, :_PROBE].float().tolist()]


def _first_query(model) -> nn.Parameter:
    names = model.language_model.named_parameters()
    return next(p for name, p in names if _plain(name).endswith("self_attn.q_proj.weight"))


def _read(folder: Path) -> tuple[Any, dict[str, Stored], torch.Tensor, Path]:
    """Settings, tensors by their names in the model, and some of the base's own numbers (none in a folder of peft)."""
    if folder.is_dir():
        recover(folder)
    if not (folder / SETTINGS).is_file() and (folder / "lora" / SETTINGS).is_file():
        folder = folder / "lora"  # what a training leaves: its run around the adapter
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; give a folder that save_lora or peft has written")
    state, peft = list_tensors([folder / WEIGHTS]), _peft()
    try:
        settings = peft.LoraConfig.from_pretrained(folder)
        lacking = [m for m in settings.modules_to_save or () if not any(f".{m}." in f".{name}" for name in state)]
        settings.inference_mode = False
        targets = settings.target_modules
        targets = [targets] if isinstance(targets, str) else list(targets)
        rank, alpha, dropout = int(settings.r), float(settings.lora_alpha), float(settings.lora_dropout)
        if not targets or not all(isinstance(one, str) for one in targets) or not 0 <= dropout < 1:
            raise ValueError(f"lora_dropout is {dropout}, target_modules are {targets}")
        settings.lora_dropout = dropout
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            probe = torch.tensor(json.loads((file.metadata() or {}).get("probe", "[]")))
    except Exception as error:  # of the reader of the file, and of each setting
        raise ValueError(f"{folder / SETTINGS} cannot be read ({error}); copy it again") from error
    if lacking:
        raise ValueError(f"{folder / WEIGHTS} lacks {', '.join(lacking[:3])}, which {SETTINGS} names; copy it again")
    if not 0 < alpha < math.inf:
        raise ValueError(f"{folder / SETTINGS}: lora_alpha is {alpha}; expected a number above 0")
    if rank < 1 or not any(".lora_" in name for name in state):
        raise ValueError(f"{folder} holds no LoRA, but {settings.peft_type} of rank {rank}; give another folder")
    return settings, {name.removeprefix(PREFIX): entry for name, entry in state.items()}, probe, folder
