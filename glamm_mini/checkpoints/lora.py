"""LoRA by peft: put in, saved, loaded to go on, and merged, in one call each; folders are peft's own.

Hu et al., LoRA, 2021. The official fine-tuning takes rank 8, alpha 16, dropout 0.05 on queries and values. Converted to
official names the matrices are `model.layers.N.self_attn.q_proj.lora_A.default.weight`, as official runs save them.

A model with LoRA stays a GLaMM: peft's layers stand in its language model, and no wrapper around it. So the official
choice of trained parts beside LoRA trains in place, which `modules_to_save` would wrap and rename.
"""

import json
import logging
import math
from collections.abc import Collection, Iterable
from copy import deepcopy
from numbers import Integral, Real
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from glamm_mini.checkpoints.files import Stored, first_line, list_tensors, mismatch, reading
from glamm_mini.checkpoints.placement import of_extra
from glamm_mini.checkpoints.save import is_quantized, recover, whole_folder
from glamm_mini.paths import folder_path

ADAPTER = "default"
"""What peft calls the only adapter; part of the official names."""

TARGETS = ("q_proj", "v_proj")
WEIGHTS, SETTINGS, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
NEEDED = ["peft_type", "r", "lora_alpha"]
KNOWN = "lora_dropout target_modules modules_to_save rank_pattern exclude_modules layers_to_transform layers_pattern"
KNOWN += (
    " use_rslora init_lora_weights inference_mode task_type base_model_name_or_path revision auto_mapping peft_version"
)
"""Settings of peft that may differ from its defaults; any other would change what the matrices mean, unseen."""

_PROBE = 16


def add_lora(model, rank: int = 8, alpha: float = 16, dropout: float = 0.05, targets: tuple = TARGETS) -> int:
    """Put LoRA beside the language model's layers of these names and freeze its own weights; nothing changes at first.

    The matrices are float32 whatever type the frozen weights have. Everything outside the language model is left
    alone: CLIP and SAM have layers called `q_proj` too. Returns how many layers were adapted.

    Raises ModuleNotFoundError if peft is not installed, ValueError if the model has LoRA already, is quantized, has no
    layer of these names, or a setting is out of range.
    """
    fresh, listed = not has_lora(model), isinstance(targets, Collection) and not isinstance(targets, str)
    targets, sizes = targets if listed else (targets,), (rank, alpha, dropout)
    numbers = isinstance(rank, Integral) and all(isinstance(x, Real) and type(x) is not bool for x in sizes)
    if not numbers or rank < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise ValueError(f"rank {rank}, alpha {alpha}, dropout {dropout}; expected at least 1, above 0, and 0 to 1")
    named = model.language_model.named_modules()
    sides = {n.rpartition(".")[2]: min(m.in_features, m.out_features) for n, m in named if isinstance(m, nn.Linear)}
    absent = sorted({str(name) for name in targets if name not in list(sides)})
    if fresh and (absent or not targets):
        raise ValueError(f"the language model has no linear layer called {' or '.join(absent) or targets}")
    if fresh and rank > (most := max(sides[name] for name in targets)):
        raise ValueError(f"rank {rank} is more than the layers' smaller side; expected at most {most}")
    settings = _peft().LoraConfig(
        r=int(rank),
        lora_alpha=int(alpha) if isinstance(alpha, Integral) else float(alpha),
        lora_dropout=float(dropout),
        task_type="CAUSAL_LM",  # peft's own loading then offers generate
        target_modules=rf"language_model\.(.*\.)?({'|'.join(sorted(map(str, targets)))})",
    )
    _put_in(model, settings)
    return len(_layers(model))


def has_lora(model) -> bool:
    """Whether LoRA stands beside layers of the model. ValueError for what is none."""
    if not isinstance(model, nn.Module) or not hasattr(model, "language_model"):
        raise ValueError(f"model is a {type(model).__name__}; expected a GlammForConditionalGeneration")
    return any(".lora_" in name for name, _ in model.named_parameters())


def lora_settings(model) -> dict[str, Any]:
    """rank, alpha, dropout and targets of the model's LoRA. Raises ValueError if it has none."""
    if not has_lora(model):
        raise ValueError("the model has no LoRA; put it in with add_lora, or load one with load_lora")
    own = model.peft_config[ADAPTER]
    targets = sorted({path.rpartition(".")[2] for path in _layers(model)})
    return {"rank": own.r, "alpha": own.lora_alpha, "dropout": own.lora_dropout, "targets": targets}


def save_lora(folder: str | Path, model, base: str | None = None) -> Path:
    """Write what a run trains, LoRA and the other trained parts, as peft would. base: the name, folder or hub id of the
    model that it belongs on. Raises ValueError if there is no LoRA or not all of it is finite, OSError if it cannot be
    written; older files are untouched then."""
    lora_settings(model)
    if not isinstance(base, str | Path | None):
        raise ValueError(f"base is {base!r}; expected the name, folder or hub id of a model")
    folder, settings = folder_path(folder, "the place to save to"), deepcopy(model.peft_config[ADAPTER])
    trained = {name: p.detach() for name, p in _plain(model).items() if p.requires_grad or ".lora_" in name}
    if broken := [name for name, tensor in trained.items() if not bool(tensor.isfinite().all())]:
        raise ValueError(f"{broken[0]} holds values that are not finite; nothing was written")
    others = {name.rpartition(".")[0] for name in trained if ".lora_" not in name}
    settings.base_model_name_or_path, settings.modules_to_save = base and str(base), sorted(others) or None
    settings.inference_mode = True
    probe = [] if _first_query(model).requires_grad else _probe(model)
    with whole_folder(folder, mine=(folder / SETTINGS).is_file()) as fresh:
        settings.save_pretrained(fresh)
        state = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in trained.items()}
        save_file(state, fresh / WEIGHTS, metadata={"format": "pt", "probe": json.dumps(probe)})
    return folder


def load_lora(model, folder: str | Path) -> dict[str, Any]:
    """Put a saved adapter, of `save_lora` or of peft itself, into the model that it was trained on, ready to train on.

    LoRA is added where the model has none. What the file holds is trained from now on, all else is frozen. Trained
    parts become float32 in a model kept in half precision too: rounded, they would lose small steps of training.
    Such a model answers as it is and trains under autocast. Returns the LoRA's settings and its `base`.

    Raises FileNotFoundError if a file is missing. ValueError if a file is damaged, the adapter has another rank or
    other targets than the model's, or was trained on another model; the model is as it was then.
    """
    fresh, trains = not has_lora(model), {}
    settings, state, probe, folder = _read(folder_path(folder, "the adapter"))
    whole, settings.modules_to_save = settings.modules_to_save or (), None  # these parts are trained in place
    for name in () if fresh else ("lora_alpha", "use_rslora"):
        if (own := getattr(model.peft_config[ADAPTER], name)) != (other := getattr(settings, name)):
            raise ValueError(f"the LoRA in {folder} has {name.removeprefix('lora_')} {other}, the model's has {own}")
    if fresh:
        try:
            trains = _put_in(model, settings)
        except Exception as error:  # none of its layers is there, or peft stumbles, in many ways, over a setting
            raise ValueError(f"the LoRA in {folder} cannot be put in: {first_line(error)}") from error
    own = _plain(model)
    # Half of a module that stands beside LoRA would leave the other half as the base has it.
    wanted = {n for n in own if ".lora_" in n or n in state}.union(*(_of_module(own, name) for name in whole))
    problems = mismatch({n: tuple(own[n].shape) for n in wanted}, state)
    if problems:
        problems = f"is of another model: {problems}" if fresh else f"does not fit the model's: {problems}"
    # A model kept in half precision differs from its float32 self by up to 1 part in 256.
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
    """Add LoRA's products to the weights that they stand beside and take it out; answers stay the same up to rounding.
    Returns how many layers were merged. ValueError if there is no LoRA, or if a merged weight would not be finite."""
    lora_settings(model)
    layers = _layers(model)
    for k, path in enumerate(layers):
        try:
            model.get_submodule(path).merge(safe_merge=True)
        except ValueError as error:
            for done in layers[:k]:
                model.get_submodule(done).unmerge()
            raise ValueError(f"{path} cannot be merged ({error}); nothing was") from error
    _take_out(model, {})
    return len(layers)


def _put_in(model, settings) -> dict[str, bool]:
    """Freezes the language model; returns which parameters were trained. ValueError if the model cannot take LoRA; it
    is as it was then."""
    if has_lora(model):
        raise ValueError("the model has LoRA already; merge it first (merge_lora), or train on with it")
    if is_quantized(model):
        raise ValueError("the language model is quantized; load it without quantize to use LoRA")
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        _peft().inject_adapter_in_model(settings, model, ADAPTER)
    except Exception:
        _take_out(model, trains)
        raise
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # peft takes the base's type; half precision loses small steps
        elif not name.startswith("language_model."):
            parameter.requires_grad = trains.get(name, False)
    model.train(model.training)  # new layers begin in training mode, dropout on
    return trains


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


def _peft() -> ModuleType:
    # Where bitsandbytes is installed, peft imports it; it then warns of a kernel for 4 bits that LoRA does not need.
    loud = logging.getLogger("bitsandbytes")
    level = loud.level
    loud.setLevel(logging.ERROR)
    try:
        with of_extra("peft", "train", "LoRA"):
            import peft
        return peft
    finally:
        loud.setLevel(level)


def _plain(model) -> dict[str, nn.Parameter]:
    """Parameters by the names of a file: as a model without LoRA has them, and LoRA's without that of the adapter."""
    named = model.named_parameters()
    return {name.replace(".base_layer.", ".").replace(f".{ADAPTER}.", "."): p for name, p in named}


def _of_module(names: Iterable[str], module: str) -> set[str]:
    """Names of the parameters of a layer, or of all layers below where it has none of its own."""
    direct = {name for name in names if f".{name.rpartition('.')[0]}".endswith(f".{module}")}
    return direct or {name for name in names if f".{module}." in f".{name}"}


def _first_query(model) -> nn.Parameter:
    named = model.language_model.named_parameters()
    return next(p for name, p in named if name.endswith(("self_attn.q_proj.weight", "q_proj.base_layer.weight")))


def _probe(model) -> list[float]:
    """A few of the language model's own weights, which tell one base from another."""
    return [round(x, 6) for x in _first_query(model)[0, :_PROBE].float().tolist()]


def _read(folder: Path) -> tuple[Any, dict[str, Stored], torch.Tensor, Path]:
    """Settings, tensors by their names in the model, and some of the base's own numbers (none in a folder of peft)."""
    if folder.is_dir():
        recover(folder)
    if not (folder / SETTINGS).is_file() and (folder / "lora" / SETTINGS).is_file():
        folder = folder / "lora"  # what a training leaves: its run around the adapter
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; give a folder that save_lora or peft has written")
    state = {name.removeprefix(PREFIX): entry for name, entry in list_tensors([folder / WEIGHTS]).items()}
    peft = _peft()
    with reading(folder / SETTINGS, " cannot be used"):
        given, plain = json.loads((folder / SETTINGS).read_text("utf-8")), vars(peft.LoraConfig())
        lost, others = [n for n in NEEDED if given.get(n) is None], plain.keys() - {*NEEDED, *KNOWN.split()}
        odd = [f"{n} {given[n]!r}" for n in others if (given.get(n) or None) not in (None, plain[n])]
        if lost:  # peft would take defaults
            raise ValueError(f"{', '.join(lost)} is missing")
        settings = peft.LoraConfig.from_pretrained(folder)
        settings.inference_mode, settings.lora_dropout = False, float(settings.lora_dropout)
        targets = settings.target_modules
        targets = [targets] if isinstance(targets, str) else list(targets)
        lacking = [m for m in settings.modules_to_save or () if not any(f".{m}." in f".{name}" for name in state)]
        for good, found in (
            (not odd, f"{', '.join(odd)} does not work here"),
            (not lacking, f"it names {', '.join(lacking[:3])}, which {WEIGHTS} lacks"),
            (targets and all(isinstance(one, str) for one in targets), f"target_modules are {targets}"),
            (0 <= settings.lora_dropout < 1, f"lora_dropout is {settings.lora_dropout}; expected 0 to 1"),
            (0 < float(settings.lora_alpha) < math.inf, f"lora_alpha is {settings.lora_alpha}; expected above 0"),
            (int(settings.r) >= 1, f"it holds no LoRA, but {settings.peft_type} of rank {settings.r}"),
            (any(".lora_" in name for name in state), f"{WEIGHTS} holds no LoRA"),
        ):
            if not good:
                raise ValueError(found)
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            probe = torch.tensor(json.loads((file.metadata() or {}).get("probe", "[]")))
    return settings, state, probe, folder
