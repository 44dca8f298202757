"""The official checkpoint's state-dict names beside ours, and a strict loader that maps one to the other.

The names differ, the tensors do not: every weight is taken over as it is, without transposing, splitting or scaling.
"""

import re

import torch

from glamm_mini.checkpoints.report import LoadReport

NAMES = (
    ("model.embed_tokens.", "language_model.model.embed_tokens."),
    ("model.layers.", "language_model.model.layers."),
    ("model.norm.", "language_model.model.norm."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_tower.vision_model.", "global_encoder.clip."),
    ("model.mm_projector.", "vl_projector."),
    ("model.region_encoder.mlvl_fuse.input_conv.", "region_encoder.inputs."),
    ("model.region_encoder.mlvl_fuse.fuse_convs.", "region_encoder.mixers."),
    ("model.region_encoder.roi_align.pconvs.", "region_encoder.roi_convs."),
    ("model.region_encoder.roi_align.flatten_linear.", "region_encoder.flatten."),
    ("model.region_encoder.roi_align.pos_embedd.", "region_encoder.position."),
    ("model.region_encoder.roi_align.updims.", "region_encoder.out."),
    ("model.grounding_encoder.image_encoder.", "grounding_encoder.vit."),
    ("model.grounding_encoder.prompt_encoder.", "pixel_decoder.prompt_encoder."),
    ("model.grounding_encoder.mask_decoder.", "pixel_decoder.mask_decoder."),
    ("model.text_hidden_fcs.0.", "lp_projector."),
)
"""(official prefix, our prefix); no prefix of one column starts with another of the same column."""

COMPUTED = ("rotary_emb.inv_freq", "embeddings.position_ids", "pixel_mean", "pixel_std")
"""Endings of official buffers that no current class stores: they follow from the configuration."""

VISION_TOWER = "global_encoder.clip."
_SHOWN = 5


def official_to_ours(name: str) -> str | None:
    """Our state-dict name of an official one; None for a buffer that we compute and do not store.

    Raises ValueError for a name that the official model does not have.
    """
    if name.endswith(COMPUTED):
        return None
    ours = _renamed(name, NAMES)
    if ours is None:
        raise ValueError(f"{name!r} is no name of an official GLaMM checkpoint")
    if ours.startswith("region_encoder.mixers."):
        ours = ours.replace(".gn.", ".norm.")
    return ours


def ours_to_official(name: str) -> str:
    """The official state-dict name of one of ours. Raises ValueError for a name that our model does not have."""
    official = _renamed(name, [(b, a) for a, b in NAMES])
    if official is None:
        raise ValueError(f"{name!r} is no state-dict name of GlammForConditionalGeneration")
    if name.startswith("region_encoder.mixers."):
        official = official.replace(".norm.", ".gn.")
    return official


def _renamed(name: str, pairs) -> str | None:
    for old, new in pairs:
        if name.startswith(old):
            return new + name[len(old) :]
    return None


def load_official_state(model, state: dict[str, torch.Tensor], need_vision_tower: bool = True) -> LoadReport:
    """Fill `model` (GlammForConditionalGeneration) from an official state dict.

    need_vision_tower: released checkpoints leave out the CLIP encoder, which is loaded from its own, unchanged
        weights; pass False for them, and fill `model.global_encoder.clip` yourself.
    Values are copied into the model's dtype and device; a model on the meta device takes the tensors themselves.
    Raises one ValueError that lists missing, unexpected and wrongly shaped names; then nothing has been loaded.
    """
    wanted = model.state_dict()
    renamed, ignored, unexpected = {}, [], []
    for name, tensor in state.items():
        try:
            ours = official_to_ours(name)
        except ValueError:
            unexpected.append(name)
            continue
        if ours is None:
            ignored.append(name)
        elif ours not in wanted:
            unexpected.append(name)
        else:
            renamed[ours] = tensor
    absent = [name for name in wanted if name not in renamed]
    kept = [] if need_vision_tower else [name for name in absent if name.startswith(VISION_TOWER)]
    missing = [ours_to_official(name) for name in absent if name not in kept]
    shapes = [
        f"{ours_to_official(name)} is {tuple(tensor.shape)}, the model has {tuple(wanted[name].shape)}"
        for name, tensor in renamed.items()
        if tensor.shape != wanted[name].shape
    ]
    complain(missing, unexpected, shapes)
    model.load_state_dict(renamed, strict=False, assign=any(t.is_meta for t in wanted.values()))
    return LoadReport(len(renamed), ignored, kept)


def complain(
    missing: list[str], unexpected: list[str], shapes: list[str], where: str | None = None, droppable: bool = False
) -> None:
    """Raises one ValueError that names what does not fit, with a hint where the cause is known; nothing, no error.

    where: the checkpoint's folder; None for a state dict that is in memory already. droppable: whether the
    unexpected names can be left out by `drop`.
    """
    problems = [
        f"{len(names)} {what} ({'; '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if not problems:
        return
    hint = ""
    if missing and all("vision_tower" in name for name in missing):
        advice = (
            "give CLIP's folder as vision_tower" if where else "pass need_vision_tower=False and load CLIP on its own"
        )
        hint = f" The checkpoint holds no vision tower: {advice}."
    if droppable and unexpected and not missing:
        hint = (
            " If it is no loss, leave the unexpected names out by how they begin: drop=('BEGINNING',) in Python, "
            "--drop BEGINNING on the command line."
        )
    if any(re.search(r"\.lora_[AB]\.", name) for name in unexpected):
        hint = " The checkpoint holds LoRA matrices: merge them first, and save the merged model."
    raise ValueError(f"{where or 'the official checkpoint'} does not fit this model: {', '.join(problems)}.{hint}")


def official_state(model) -> dict[str, torch.Tensor]:
    """The model's weights under their official names (no copies), with the computed buffers that old code stores."""
    state = {ours_to_official(name): tensor for name, tensor in model.state_dict().items()}
    return state | computed_buffers(model.config) | _tower_positions(model.config)


def computed_buffers(config) -> dict[str, torch.Tensor]:
    """Rotary frequencies (head / 2,) of every layer, which old code saves with the weights, under official names."""
    text = config.text
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    theta = text.rope_parameters["rope_theta"]
    frequencies = 1.0 / theta ** (torch.arange(0, head, 2, dtype=torch.float32) / head)  # (head / 2,)
    names = (f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(text.num_hidden_layers))
    return {name: frequencies.clone() for name in names}


def _tower_positions(config) -> dict[str, torch.Tensor]:
    vision = config.vision
    positions = torch.arange((vision.image_size // vision.patch_size) ** 2 + 1)[None]  # (1, P + 1)
    return {"model.vision_tower.vision_tower.vision_model.embeddings.position_ids": positions}


def saved_officially(name: str) -> bool:
    """Whether official checkpoints hold a tensor of this official name: all but CLIP's, which is never trained."""
    return "vision_tower" not in name


def merged_dtype(name: str) -> torch.dtype:
    """The type that the official merge script stores a tensor of this official name in (by reading it): the parts
    that it builds anew stay float32, and so do the rotary frequencies."""
    whole = name.startswith(("model.grounding_encoder.", "model.text_hidden_fcs.")) or name.endswith("inv_freq")
    return torch.float32 if whole else torch.bfloat16
