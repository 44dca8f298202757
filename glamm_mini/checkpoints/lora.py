"""LoRA on the language model, by peft: put in, saved, loaded to go on, and merged, in one call each.

Hu et al., LoRA, 2021. The official fine-tuning takes rank 8, alpha 16, dropout 0.05 on queries and values. Converted to
official names the matrices are `model.layers.N.self_attn.q_proj.lora_A.default.weight`, as official runs save them.
"""

import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from glamm_mini.checkpoints.find import check_no_pickle

ADAPTER = "default"
"""What peft calls the only adapter; part of the official names."""

TARGETS = ("q_proj", "v_proj")
WEIGHTS, SETTINGS = "lora.safetensors", "lora.json"
SAME = ("rank", "alpha", "targets")
"""Settings in which an adapter on disk and one in a model must agree; dropout may change from run to run."""

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
    layers = _check(model, rank, alpha, dropout, targets)
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers))
    peft.inject_adapter_in_model(settings, model.language_model, ADAPTER)
    for name, parameter in model.language_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # peft takes the base's type; half precision loses small steps
    model.language_model.train(model.language_model.training)  # new layers begin in training mode, dropout on
    return len(layers)


def has_lora(model) -> bool:
    """Whether LoRA stands beside layers of the language model."""
    return any(".lora_" in name for name, _ in model.language_model.named_parameters())


def lora_settings(model) -> dict:
    """rank, alpha, dropout and targets of the model's LoRA. Raises ValueError if it has none."""
    if not has_lora(model):
        raise ValueError("the model has no LoRA; put it in with add_lora, or load one with load_lora")
    own = model.language_model.peft_config[ADAPTER]
    targets = sorted({path.rpartition(".")[2] for path in own.target_modules})
    return {"rank": own.r, "alpha": own.lora_alpha, "dropout": own.lora_dropout, "targets": targets}


def save_lora(folder: str | Path, model, base: str | None = None) -> Path:
    """Write what a run trains, LoRA and the other trained parts, without the frozen weights.

    base: which model it belongs on, for the reader of `lora.json`: a bundled name, a folder or a hub id.
    Raises ValueError if the model has no LoRA, OSError if it cannot be written; older files are untouched then.
    """
    folder = Path(folder)
    probe = [] if _first_query(model).requires_grad else _probe(model)
    record = {"base": base, **lora_settings(model), "probe": probe}
    state = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad or ".lora_" in n}
    fresh = folder / f".{WEIGHTS}.writing", folder / f".{SETTINGS}.writing"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, fresh[0], metadata={"format": "pt"})
        fresh[1].write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    except (OSError, SafetensorError) as error:
        for path in fresh:
            path.unlink(missing_ok=True)
        raise OSError(f"LoRA could not be written to {folder} ({error}); free some room, or name another") from error
    os.replace(fresh[0], folder / WEIGHTS)
    os.replace(fresh[1], folder / SETTINGS)
    return folder


def load_lora(model, folder: str | Path) -> dict:
    """Put saved LoRA and the parts trained with it into the model that it was trained on, ready to train on.

    LoRA is added where the model has none. What the file holds is trained from now on, all else is frozen. Trained
    parts become float32 in a model kept in half precision too: rounded, they would lose small steps of training.
    Such a model answers as it is and trains under autocast. Returns the settings in `lora.json`.

    Raises:
        FileNotFoundError: a file is missing. ValueError: a file is damaged, the adapter has another rank or other
            targets than the model's, or was trained on another model; the model is as it was then.
    """
    record, state = _read(Path(folder))
    given = {name: record[name] for name in ("rank", "alpha", "dropout", "targets")}
    fresh = not has_lora(model)
    if fresh:
        _check(model, **given)
    elif any(record[name] != lora_settings(model)[name] for name in SAME):
        own = lora_settings(model)
        odd = "; ".join(f"{n} {record[n]}, the model has {own[n]}" for n in SAME if record[n] != own[n])
        raise ValueError(f"the LoRA in {folder} has {odd}; merge the model's own first, or load the model anew")
    _check_fit(model, record, state, folder)
    if fresh:
        add_lora(model, **given)
    state = {_wrapped(name, model): tensor for name, tensor in state.items()}
    own = dict(model.named_parameters())
    for name, parameter in own.items():
        parameter.requires_grad = name in state
        if name in state:
            parameter.data = state[name].to(parameter.device, torch.float32, copy=True)
    return record


def merge_lora(model) -> int:
    """Add LoRA's products to the weights that they stand beside and take it out; names are a plain model's again.

    Answers stay the same up to rounding. Returns how many layers were merged. Raises ValueError if there is no LoRA,
    or if a merged weight would not be finite.
    """
    lora_settings(model)
    paths = [name.removesuffix(".base_layer") for name, _ in model.named_modules() if name.endswith(".base_layer")]
    for path in paths:
        layer = model.get_submodule(path)
        layer.merge(safe_merge=True)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    del model.language_model.peft_config
    return len(paths)


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


def _check(model, rank: int, alpha: float, dropout: float, targets) -> dict[str, nn.Module]:
    """The layers that LoRA will stand beside, by their path in the language model."""
    if has_lora(model):
        raise ValueError("the model has LoRA already; merge it first (merge_lora), or train on with it")
    if any(type(m).__module__.startswith("bitsandbytes") for m in model.language_model.modules()):
        raise ValueError("the language model is quantized; load it without quantize to train LoRA")
    if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise ValueError(f"rank {rank}, alpha {alpha}, dropout {dropout}; expected at least 1, above 0, and 0 to 1")
    found = {
        name: m
        for name, m in model.language_model.named_modules()
        if name.rpartition(".")[2] in targets and isinstance(m, nn.Linear)
    }
    absent = set(targets) - {name.rpartition(".")[2] for name in found}
    if absent or not found:
        raise ValueError(f"the language model has no linear layer called {' or '.join(sorted(absent)) or targets}")
    return found


def _plain(name: str) -> str:
    """A parameter's name as a model without LoRA has it."""
    return name.replace(".base_layer.", ".")


def _wrapped(name: str, model) -> str:
    """The model's own name of a parameter that a file calls `name`."""
    return next((own for own, _ in model.named_parameters() if _plain(own) == _plain(name)), name)


def _shapes(model, rank: int, targets) -> dict[str, tuple]:
    """Shapes of all parameters under plain names, with those that LoRA of this rank has or would have."""
    shapes = {_plain(n): tuple(p.shape) for n, p in model.named_parameters()}
    for name, shape in list(shapes.items()):
        path = name.removesuffix(".weight")
        if name.startswith("language_model.") and path.rpartition(".")[2] in targets:
            shapes[f"{path}.lora_A.{ADAPTER}.weight"] = (rank, shape[1])
            shapes[f"{path}.lora_B.{ADAPTER}.weight"] = (shape[0], rank)
    return shapes


def _check_fit(model, record: dict, state: dict, folder) -> None:
    shapes = _shapes(model, record["rank"], record["targets"])
    state = {_plain(name): tensor for name, tensor in state.items()}
    odd = [n for n, tensor in state.items() if shapes.get(n) != tuple(tensor.shape)]
    odd += [n for n in shapes if ".lora_" in n and n not in state]
    if odd:
        raise ValueError(
            f"the LoRA in {folder} is of another model: {len(odd)} tensors do not fit, such as {odd[0]}; "
            f"it belongs on {record['base'] or 'a model that it does not name'}"
        )
    own, stored = torch.tensor(_probe(model)), torch.tensor(record["probe"])
    # A model kept in half precision differs from its float32 self by up to 1 part in 256.
    if len(stored) and not torch.allclose(own, stored, rtol=2**-7, atol=1e-4):
        raise ValueError(
            f"the LoRA in {folder} was trained on other weights of the same shape; load it onto "
            f"{record['base'] or 'the model that it was trained on'}"
        )


def _probe(model) -> list[float]:
    """A few of the language model's own weights, which tell one base from another."""
    return [round(x, 6) for x in _first_query(model)[0, :_PROBE].float().tolist()]


def _first_query(model) -> nn.Parameter:
    names = model.language_model.named_parameters()
    return next(p for name, p in names if _plain(name).endswith("self_attn.q_proj.weight"))


def _read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; give a folder that save_lora has written")
    check_no_pickle(folder / WEIGHTS)
    try:
        record = json.loads((folder / SETTINGS).read_text("utf-8"))
        state = load_file(folder / WEIGHTS)
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"the LoRA in {folder} is damaged ({error}); copy it again") from error
    absent = {"base", "probe", "dropout", *SAME} - set(record if isinstance(record, dict) else ())
    if absent:
        raise ValueError(f"{folder / SETTINGS} does not say {', '.join(sorted(absent))}; copy it again")
    return record, state
