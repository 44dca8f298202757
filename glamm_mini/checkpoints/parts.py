"""A GLaMM put together from pretrained parts: CLIP sees, Llama speaks, SAM draws; what joins them starts anew.

This is how the official model began before any training of its own, and how the colab size begins: the V-L projector,
the region encoder and the L-P projector have no pretrained counterpart and get this package's starting values.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from glamm_mini.checkpoints.files import Stored, find_folder, list_tensors, reading, weight_files
from glamm_mini.checkpoints.load import dtype_of, filled
from glamm_mini.checkpoints.official import CLIP, COMPUTED
from glamm_mini.checkpoints.source import UNREADABLE, LoadReport, Source, clip_to_ours, read_config
from glamm_mini.dtypes import half_type
from glamm_mini.model.config import GlammConfig
from glamm_mini.model.glamm import GlammForConditionalGeneration
from glamm_mini.processing.llama_tokenizer import official_tokenizer
from glamm_mini.processing.processor import GlammProcessor

PUBLISHED = {
    "colab": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "sam_vit_b_01ec64.pth"),
    "7b": ("lmsys/vicuna-7b-v1.5", "sam_vit_h_4b8939.pth"),
}
"""size -> language model on the hub, file of segment-anything's weights."""

SAM_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
SAM_FILES = ("sam_vit_b_01ec64.pth", "sam_vit_l_0b3195.pth", "sam_vit_h_4b8939.pth")
"""What segment-anything's authors publish; one of these names that is no file here is fetched from their address.

The end of each name is the beginning of the file's SHA-256."""

OWN_PARTS = ("vl_projector", "region_encoder", "lp_projector")
VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def from_parts(
    size: str | GlammConfig = "colab",
    global_encoder: str | Path = CLIP,
    language_model: str | Path | None = None,
    grounding_encoder: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[GlammForConditionalGeneration, GlammProcessor, LoadReport]:
    """A GLaMM on the CPU whose encoders, language model and decoder are pretrained ones, its processor, and what came
    from where.

    size: "colab" (TinyLlama-1.1B-Chat, SAM ViT-B), "7b" (Vicuna-7B v1.5, SAM ViT-H), or a configuration of your own.
    global_encoder, language_model: a folder in Hugging Face's format or a hub id. grounding_encoder: segment-anything's
        .pth, by path or published name. Only what does not lie here is fetched from the network.
    dtype: "float32" (also None), "bfloat16", "float16", or "auto": bfloat16 on GPUs that compute it, float16 on older
        ones, float32 on a CPU, `device` being the device meant (default: the accelerator, if there is one). Weights
        that train want float32: call `.float()` on the parts that you unfreeze, or compute under autocast.
    seed: of the starting values of what joins the parts.

    Shapes must agree with the configuration; settings that shapes do not show (norm's epsilon, rotary base, activation,
    longest row) are the part's own. The tokenizer gets GLaMM's tokens; their rows in the embedding and in the head
    start at the mean of all old rows: a new token then means nothing in particular, and no answer begins with it.

    Raises FileNotFoundError for a folder, file or shard that is not there, ValueError for a damaged file, and for
    another kind of model, other shapes, too few or unknown tensors; both name the file.
    """
    if dtype == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        dtype = half_type(torch.device(device or found))
    kind = dtype_of(dtype) or torch.float32
    config = copy.deepcopy(size) if isinstance(size, GlammConfig) else GlammConfig.of_size(size)
    published = PUBLISHED.get(config.size_name, (None, None))
    language_model, grounding_encoder = language_model or published[0], grounding_encoder or published[1]
    if not language_model or not grounding_encoder:
        known = f"no pretrained parts are published for the size {config.size_name!r} (only for {', '.join(PUBLISHED)})"
        raise ValueError(f"{known}; name language_model and grounding_encoder")
    source = Source(Path("the parts"), False, config, config.size_name)
    processor = _add_language(source, language_model)
    kinds = ("clip", "clip_vision_model")
    folder, config.vision = _agreed(global_encoder, kinds, config.vision, "image_size", "patch_size")
    _add(source, weight_files(folder), clip_to_ours)
    _add(source, [sam_file(grounding_encoder)], _sam_home)
    source.places |= _started(config, kind, seed)
    model = filled(GlammForConditionalGeneration, source, kind)
    return model, processor, model.load_report


def _add_language(source: Source, place: str | Path) -> GlammProcessor:
    config = source.config
    folder, config.text = _agreed(place, ("llama",), config.text, "num_key_value_heads")
    tokenizer = official_tokenizer(folder)
    config.text.vocab_size = rows = max(config.text.vocab_size, len(tokenizer))
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text, token, getattr(tokenizer, token))
    config.tie_word_embeddings = config.text.tie_word_embeddings
    _add(source, weight_files(folder), lambda name: f"language_model.{name}")
    for name in VOCABULARY:
        entry = source.places.get(name)
        if entry is not None and len(entry.shape) == 2 and 0 < entry.shape[0] < rows:
            shape = (rows, entry.shape[1])
            source.places[name] = replace(entry, shape=shape, read=lambda entry=entry: _grown(entry[...], rows))
            source.left.notes.append(f"{rows - entry.shape[0]} new tokens start at the mean of {entry.name}'s rows")
    return GlammProcessor(config, tokenizer)


def _grown(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A table of the vocabulary with more rows, at the mean of those that it has."""
    mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def _add(source: Source, files: list[Path], home: Callable[[str], str | None]) -> None:
    """Give every tensor its place, or leave it aside as a buffer that we compute."""
    source.put(list_tensors(files).values(), lambda name: None if name.endswith(COMPUTED) else home(name))


def _sam_home(name: str) -> str:
    vit = name.startswith("image_encoder.")
    return name.replace("image_encoder.", "grounding_encoder.vit.", 1) if vit else f"pixel_decoder.{name}"


def _started(config: GlammConfig, dtype: torch.dtype, seed: int) -> dict[str, Stored]:
    """Starting values for what joins the parts, drawn from `seed` and from nothing else."""
    with torch.device("meta"):
        empty = GlammForConditionalGeneration(config)
    found, nowhere = {}, Path("starting values")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in OWN_PARTS:
            own = getattr(empty, part).to_empty(device="cpu").to(dtype)
            own.apply(empty._init_weights)
            for name, p in own.state_dict(prefix=f"{part}.").items():
                found[name] = Stored(name, tuple(p.shape), dtype, nowhere, p.detach)
    return found


def _agreed(place: str | Path, kinds: tuple[str, ...], wanted: Any, *names: str) -> tuple[Path, Any]:
    """A part's folder and own configuration, once its kind and shapes are those that GLaMM's configuration wants."""
    folder = find_folder(place)
    kind = read_config(folder).get("model_type")
    if kind not in kinds:
        raise ValueError(f"{folder} holds a {kind!r}; expected {' or '.join(map(repr, kinds))}")
    with reading(folder, UNREADABLE):
        own = type(wanted).from_pretrained(folder)
    pairs = {name: (getattr(own, name), getattr(wanted, name)) for name in (*names, *SHAPE)}
    odd = ", ".join(f"{name} {a} (expected {b})" for name, (a, b) in pairs.items() if a != b)
    if odd:
        raise ValueError(f"{folder} has {odd}; give another checkpoint, or a GlammConfig of these settings")
    return folder, own


def sam_file(place: str | Path) -> Path:
    """A file of segment-anything; a published name is fetched once and kept where torch keeps what it fetches. Raises
    FileNotFoundError if it cannot be fetched, ValueError if what came has another SHA-256 than its name says."""
    path, name = Path(place), str(place)
    if path.is_file():
        return path
    if name not in SAM_FILES:
        known = ", ".join(SAM_FILES)
        raise FileNotFoundError(f"there is no file {path}; give the path of a .pth, or one of {known}, to be fetched")
    kept, address = Path(torch.hub.get_dir()) / "checkpoints" / name, SAM_ADDRESS + name
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(address, str(kept), hash_prefix=path.stem.rpartition("_")[2])
        except (OSError, RuntimeError) as error:  # of the network, all OSErrors; a RuntimeError for another hash
            kind, what = (FileNotFoundError, "") if isinstance(error, OSError) else (ValueError, "whole ")
            fix = "nothing was kept: try again, or download it elsewhere and give its path"
            raise kind(f"{address} could not be fetched {what}({error}); {fix}") from error
    return kept
