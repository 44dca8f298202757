"""A GLaMM put together from pretrained parts: CLIP sees, Llama speaks, SAM draws; what joins them starts anew.

This is how the official model began before any training of its own, and how the colab size begins: the V-L projector,
the region encoder and the L-P projector have no pretrained counterpart and get this package's starting values.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

from glamm_mini.checkpoints.official_config import CLIP
from glamm_mini.checkpoints.part_sources import Source, clip_source, llama_source, sam_source
from glamm_mini.checkpoints.sam_names import published_name
from glamm_mini.checkpoints.shards import list_tensors, read_tensors
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.dtypes import TYPES, half_type
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.model.initialize import initialize_weights
from glamm_mini.processing.llama_tokenizer import official_tokenizer
from glamm_mini.processing.processor import GlammProcessor

PUBLISHED = {
    "colab": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "sam_vit_b_01ec64.pth"),
    "7b": ("lmsys/vicuna-7b-v1.5", "sam_vit_h_4b8939.pth"),
}
"""size -> language model on the hub, file of segment-anything's weights."""

OWN_PARTS = ("vl_projector", "region_encoder", "lp_projector")
VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")

VISION_SHAPE = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers")
TEXT_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
VISION_SHAPE += ("num_attention_heads",)
COMPUTED = (".position_ids", "rotary_emb.inv_freq", "pixel_mean", "pixel_std")
"""Endings of buffers that old checkpoints store and no current class does."""

_SHOWN = 4


@dataclass
class PartsReport:
    """Where everything came from. filled: part -> (place, tensors, parameters). started: parts with starting values.
    new_rows: rows of the vocabulary that start at the mean of the old ones. ignored: names in the files that no part
    of a GLaMM has a use for (CLIP's text tower, stored buffers)."""

    dtype: torch.dtype
    filled: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    started: dict[str, int] = field(default_factory=dict)
    new_rows: int = 0
    ignored: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{part:<18} {count / 1e6:9.1f} M  {tensors:4d} tensors from {place}"
            for part, (place, tensors, count) in self.filled.items()
        ]
        lines += [f"{part:<18} {count / 1e6:9.1f} M  starting values" for part, count in self.started.items()]
        lines.append(f"{self.new_rows} new tokens start at the mean of the old rows; weights are {self.dtype}")
        return "\n".join(lines)


def from_parts(
    size: str | GlammConfig = "colab",
    global_encoder: str | Path = CLIP,
    language_model: str | Path | None = None,
    grounding_encoder: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[GlammForConditionalGeneration, GlammProcessor, PartsReport]:
    """A GLaMM whose encoders, language model and decoder are pretrained ones, its processor, and what came from where.

    size: "colab" (TinyLlama-1.1B-Chat, SAM ViT-B), "7b" (Vicuna-7B v1.5, SAM ViT-H), or a configuration of your own.
    global_encoder, language_model: a folder in Hugging Face's format or a hub id. grounding_encoder: segment-anything's
        .pth, by path, https address or published name, or a folder or hub id of transformers' SamModel. Only what is
        no path here is fetched from the network.
    dtype: "float32" (also None), "bfloat16", "float16", or "auto": bfloat16 on GPUs that compute it, float16 on older
        ones, float32 on a CPU, `device` being the device meant (default: the accelerator, if there is one). Only this
        choice looks at `device`; the model comes back on the CPU.
    seed: of the starting values of what joins the parts.

    Shapes must agree with the configuration; settings that shapes do not show (norm's epsilon, rotary base, activation,
    longest row) are the part's own. The tokenizer gets GLaMM's tokens; their rows in the embedding and in the head
    start at the mean of all old rows: a new token then means nothing in particular, and no answer begins with it.
    Parts are filled one after the other and tensor by tensor, so that the peak stays near the model's own size.

    Training: weights that train want float32, whatever `dtype` the frozen ones have, for AdamW's small steps vanish
    in half precision and gradients in float16 cannot be unscaled. Either load float32 and let the trainer's autocast
    compute in half precision, or load half precision and call `.float()` on the parts that you unfreeze.

    Raises:
        FileNotFoundError: a folder, a file or a shard is not there. ValueError: a file is damaged, or holds another
            kind of model, other shapes, too few or unknown tensors. Both name the part and the file.
    """
    kind = _dtype(dtype, device)
    config = copy.deepcopy(size) if isinstance(size, GlammConfig) else GlammConfig.of_size(size)
    sources = _sources(config, global_encoder, language_model, grounding_encoder)
    processor = _processor(config, sources)
    model, report = _empty(config), PartsReport(kind)
    plans = {part: _plan(part, source, model) for part, source in sources.items()}  # all are checked before one is read
    report.ignored = [name for _, ignored in plans.values() for name in ignored]
    for part, (wanted, _) in plans.items():
        report.filled[part] = _fill(model, sources[part], wanted, kind, report)
    _start(model, kind, seed, report)
    return model.eval(), processor, report


def _sources(config: GlammConfig, sees, speaks, draws) -> dict[str, Source]:
    """Where the three pretrained parts lie; those that are not named are the published ones of the size."""
    published = PUBLISHED.get(config.size_name, (None, None))
    speaks, draws = speaks or published[0], draws or published[1]
    if not speaks or not draws:
        raise ValueError(
            f"no pretrained parts are published for the size {config.size_name!r} (only for {', '.join(PUBLISHED)}); "
            "name language_model and grounding_encoder"
        )
    return {
        "global_encoder": _named("global_encoder", clip_source, sees),
        "language_model": _named("language_model", llama_source, speaks),
        "grounding_encoder": _named("grounding_encoder", sam_source, draws),
    }


def _processor(config: GlammConfig, sources: dict[str, Source]) -> GlammProcessor:
    """The processor with the language model's tokenizer; `config` takes over the parts' own settings and the ids."""
    config.vision = _agreed("global_encoder", sources["global_encoder"], config.vision, VISION_SHAPE)
    config.text = _agreed("language_model", sources["language_model"], config.text, TEXT_SHAPE)
    tokenizer = _named("language_model", official_tokenizer, sources["language_model"].folder)
    config.text.vocab_size = max(config.text.vocab_size, len(tokenizer))
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text, token, getattr(tokenizer, token))
    config.tie_word_embeddings = config.text.tie_word_embeddings
    return GlammProcessor(config, tokenizer)


def _empty(config: GlammConfig) -> GlammForConditionalGeneration:
    """The model with parameters on the meta device; computed buffers hold their values."""
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        return GlammForConditionalGeneration(config)


def _dtype(dtype, device) -> torch.dtype:
    if dtype == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        return half_type(torch.device(device) if device is not None else found)
    kind = TYPES.get(dtype or "float32", dtype)
    if kind not in TYPES.values():
        raise ValueError(f"dtype {dtype!r} is unknown; expected auto, {', '.join(TYPES)}")
    return kind


def _named(part: str, function, *arguments):
    """function(*arguments), with the part's name in front of what goes wrong."""
    try:
        return function(*arguments)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{part}: {error}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{part}: {error}") from error


def _agreed(part: str, source: Source, config, names: tuple[str, ...]):
    """The part's own configuration, once its shapes are those that GLaMM's configuration wants."""
    odd = [n for n in names if getattr(source.config, n) != getattr(config, n)]
    if odd:
        pairs = ", ".join(f"{n} {getattr(source.config, n)} (expected {getattr(config, n)})" for n in odd)
        raise ValueError(
            f"{part}: {source.folder} has {pairs}; give another checkpoint, or a GlammConfig whose "
            f"{'vision' if part == 'global_encoder' else 'text'} has these settings"
        )
    return source.config


def _ours(part: str, name: str, renamed: bool) -> str | None:
    """The model's name of a tensor in a part's file; None for what GLaMM has no use for. renamed: by transformers."""
    name = published_name(name) if renamed and part == "grounding_encoder" else name
    if name.endswith(COMPUTED):
        return None
    if part == "global_encoder":
        if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_scale")):
            return None
        return "global_encoder.clip." + name.removeprefix("vision_model.")
    if part == "language_model":
        return f"language_model.{name}"
    if name.startswith("image_encoder."):
        return name.replace("image_encoder.", "grounding_encoder.vit.", 1)
    return f"pixel_decoder.{name}"


def _home(part: str) -> tuple[str, ...]:
    """Our prefixes that a part fills: SAM's file holds the grounding encoder and the pixel decoder."""
    return ("grounding_encoder.", "pixel_decoder.") if part == "grounding_encoder" else (f"{part}.",)


def _plan(part: str, source: Source, model) -> tuple[dict[str, list[str]], list[str]]:
    """Names in the files -> our names that they fill, and names without use; or one error that lists what is wrong."""
    own = {n: tuple(t.shape) for n, t in model.state_dict().items() if n.startswith(_home(part))}
    entries = _named(part, list_tensors, source.files)
    ours = {name: _ours(part, name, renamed=source.config is not None) for name in entries}
    plan = {name: [target] for name, target in ours.items() if target in own}
    embedding, head = VOCABULARY
    tied = [name for name, target in ours.items() if target == embedding and head not in ours.values()]
    if tied and model.config.text.tie_word_embeddings:
        plan[tied[0]].append(head)  # the file stores what is shared once
    filled = {target for targets in plan.values() for target in targets}
    problems = {
        "missing": [n for n in own if n not in filled],
        "unknown": [n for n, target in ours.items() if target and target not in own],
        "of another shape": [
            f"{name} is {entries[name].shape}, the model has {own[target]}"
            for name, targets in plan.items()
            for target in targets
            if not _fits(target, entries[name].shape, own[target])
        ],
    }
    _complain(part, source, problems)
    return plan, [name for name, target in ours.items() if target is None]


def _fits(name: str, given: tuple, own: tuple) -> bool:
    """Whether a tensor fills a parameter; those of the vocabulary may have fewer rows."""
    if name in VOCABULARY and len(given) == 2:
        return given[1] == own[1] and 0 < given[0] <= own[0]
    return given == own


def _complain(part: str, source: Source, problems: dict[str, list[str]]) -> None:
    found = [
        f"{len(names)} tensors {what} ({'; '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''})"
        for what, names in problems.items()
        if names
    ]
    if not found:
        return
    hint = "give the whole checkpoint of this part"
    if part == "grounding_encoder" and any("pos_embed" in text for text in problems["of another shape"]):
        hint = (
            "the grounding encoder's image size, width and depth are fixed by its positions: give the SAM whose "
            "settings the configuration's `grounding` has"
        )
    place = source.files[0] if len(source.files) == 1 else source.folder
    raise ValueError(f"{part}: {place} does not fit the configuration: {', '.join(found)}; {hint}")


def _fill(model, source: Source, plan, dtype: torch.dtype, report: PartsReport) -> tuple[str, int, int]:
    place = source.files[0] if len(source.files) == 1 else source.folder
    count = tensors = 0
    for name, tensor, _ in read_tensors(source.files, plan.keys()):
        for target in plan[name]:
            value = _materialize(model, target, dtype)
            rows = len(tensor) if target in VOCABULARY else None
            with torch.no_grad():
                value[:rows].copy_(tensor) if rows else value.copy_(tensor)
                if rows and rows < len(value):
                    value[rows:] = tensor.mean(0, dtype=torch.float32).to(dtype)
                    report.new_rows = len(value) - rows
            count, tensors = count + value.numel(), tensors + 1
    return str(place), tensors, count


def _materialize(model: nn.Module, name: str, dtype: torch.dtype) -> torch.Tensor:
    """Room for a parameter or a stored buffer in the wished type, in the model's own place; shared weights once."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if not isinstance(old, nn.Parameter):
        setattr(module, leaf, torch.empty(old.shape, dtype=dtype))
    elif old.is_meta:
        setattr(module, leaf, nn.Parameter(torch.empty(old.shape, dtype=dtype)))
    if name in VOCABULARY and model.config.text.tie_word_embeddings:
        model.language_model.tie_weights()
    return getattr(module, leaf)


def _start(model, dtype: torch.dtype, seed: int, report: PartsReport) -> None:
    """Starting values for what joins the parts, drawn from `seed` and from nothing else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in OWN_PARTS:
            own = getattr(model, part)
            for name, _ in list(own.named_parameters()):
                _materialize(model, f"{part}.{name}", dtype)
            for module in own.modules():
                initialize_weights(module, model.config.text.initializer_range)
            report.started[part] = sum(p.numel() for p in own.parameters())
