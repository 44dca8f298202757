"""A GLaMM put together from pretrained parts: CLIP sees, Llama speaks, SAM draws; what joins them starts anew.

This is how the official model began before any training of its own, and how the colab size begins: the V-L projector,
the region encoder and the L-P projector have no pretrained counterpart and get this package's starting values.
"""

import copy
import hashlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, SamConfig

from glamm_mini.checkpoints.files import HUB_ID, Stored, find_folder, list_tensors, weight_files
from glamm_mini.checkpoints.load import dtype_of, filled
from glamm_mini.checkpoints.official import CLIP, COMPUTED
from glamm_mini.checkpoints.report import LoadReport
from glamm_mini.checkpoints.source import CLIP_REST, Source, read_config
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
"""What segment-anything's authors publish; one of these names that is no file here stands for its address.

The end of each name is the beginning of the file's SHA-256."""

OWN_PARTS = ("vl_projector", "region_encoder", "lp_projector")
VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
VISION_SHAPE = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers")
VISION_SHAPE += ("num_attention_heads",)
TEXT_SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


def from_parts(
    size: str | GlammConfig = "colab",
    global_encoder: str | Path = CLIP,
    language_model: str | Path | None = None,
    grounding_encoder: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
) -> tuple[GlammForConditionalGeneration, GlammProcessor, LoadReport]:
    """A GLaMM whose encoders, language model and decoder are pretrained ones, its processor, and what came from where.

    size: "colab" (TinyLlama-1.1B-Chat, SAM ViT-B), "7b" (Vicuna-7B v1.5, SAM ViT-H), or a configuration of your own.
    global_encoder, language_model: a folder in Hugging Face's format or a hub id. grounding_encoder: segment-anything's
        .pth, by path, https address or published name, or a folder or hub id of transformers' SamModel. Only what does
        not lie here is fetched from the network.
    dtype: "float32" (also None), "bfloat16", "float16", or "auto": bfloat16 on GPUs that compute it, float16 on older
        ones, float32 on a CPU, `device` being the device meant (default: the accelerator, if there is one). Only this
        choice looks at `device`; the model comes back on the CPU.
    seed: of the starting values of what joins the parts.

    Shapes must agree with the configuration; settings that shapes do not show (norm's epsilon, rotary base, activation,
    longest row) are the part's own. The tokenizer gets GLaMM's tokens; their rows in the embedding and in the head
    start at the mean of all old rows: a new token then means nothing in particular, and no answer begins with it.

    Training: weights that train want float32, whatever `dtype` the frozen ones have, for AdamW's small steps vanish
    in half precision and gradients in float16 cannot be unscaled. Either load float32 and let the trainer's autocast
    compute in half precision, or load half precision and call `.float()` on the parts that you unfreeze.

    Raises:
        FileNotFoundError: a folder, a file or a shard is not there. ValueError: a file is damaged, or holds another
            kind of model, other shapes, too few or unknown tensors. Both name the file.
    """
    if dtype == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        dtype = half_type(torch.device(device) if device is not None else found)
    kind = dtype_of(dtype) or torch.float32
    config = copy.deepcopy(size) if isinstance(size, GlammConfig) else GlammConfig.of_size(size)
    published = PUBLISHED.get(config.size_name, (None, None))
    language_model, grounding_encoder = language_model or published[0], grounding_encoder or published[1]
    if not language_model or not grounding_encoder:
        raise ValueError(
            f"no pretrained parts are published for the size {config.size_name!r} (only for {', '.join(PUBLISHED)}); "
            "name language_model and grounding_encoder"
        )
    source = Source(Path("the parts"), False, config, name=config.size_name)
    processor = _add_language(source, language_model)
    _add_clip(source, global_encoder)
    _add_sam(source, grounding_encoder)
    started = _started(config, kind, seed)
    source.places |= started
    model = filled(GlammForConditionalGeneration, source, kind)
    for part in OWN_PARTS:
        count = sum(p.numel() for p in getattr(model, part).parameters())
        model.load_report.notes.append(f"{part}: {count / 1e6:.1f} million starting values")
    return model, processor, model.load_report


def _add_language(source: Source, place: str | Path) -> GlammProcessor:
    folder, config = find_folder(place), source.config
    _model_type(folder, ("llama",))
    config.text = _agreed("language_model", folder, LlamaConfig.from_pretrained(folder), config.text, TEXT_SHAPE)
    tokenizer = official_tokenizer(folder)
    config.text.vocab_size = max(config.text.vocab_size, len(tokenizer))
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config.text, token, getattr(tokenizer, token))
    config.tie_word_embeddings = config.text.tie_word_embeddings
    _add(source, list_tensors(weight_files(folder)), lambda name: f"language_model.{name}")
    for name in VOCABULARY:
        entry, rows = source.places.get(name), config.text.vocab_size
        if entry is not None and len(entry.shape) == 2 and 0 < entry.shape[0] < rows:
            source.places[name] = _Grown(entry, rows)
            source.notes.append(f"{rows - entry.shape[0]} new tokens start at the mean of {entry.name}'s rows")
    return GlammProcessor(config, tokenizer)


def _add_clip(source: Source, place: str | Path) -> None:
    folder = find_folder(place)
    whole = _model_type(folder, ("clip", "clip_vision_model")) == "clip"
    own = CLIPConfig.from_pretrained(folder).vision_config if whole else CLIPVisionConfig.from_pretrained(folder)
    source.config.vision = _agreed("global_encoder", folder, own, source.config.vision, VISION_SHAPE)
    entries = list_tensors(weight_files(folder))
    source.ignored += [name for name in entries if name.startswith(CLIP_REST)]
    entries = {name: entry for name, entry in entries.items() if not name.startswith(CLIP_REST)}
    _add(source, entries, lambda name: "global_encoder.clip." + name.removeprefix("vision_model."))


def _add_sam(source: Source, place: str | Path) -> None:
    """SAM: its authors' .pth, by its path, https address or published name; or transformers' own folder or hub id."""
    path = Path(place)
    if path.is_dir() or (isinstance(place, str) and not path.exists() and HUB_ID.fullmatch(place)):
        folder = find_folder(place)
        _model_type(folder, ("sam",))
        SamConfig.from_pretrained(folder)
        _add(source, list_tensors(weight_files(folder)), lambda name: _sam_home(published_name(name)))
    else:
        _add(source, list_tensors([sam_file(place)]), _sam_home)


def _sam_home(name: str) -> str:
    if name.startswith("image_encoder."):
        return name.replace("image_encoder.", "grounding_encoder.vit.", 1)
    return f"pixel_decoder.{name}"


def _add(source: Source, entries: dict[str, Stored], home) -> None:
    """Give every tensor its place, or leave it aside as a buffer that we compute."""
    source.ignored += [name for name in entries if name.endswith(COMPUTED)]
    source.places |= {home(name): entry for name, entry in entries.items() if not name.endswith(COMPUTED)}


class _Grown:
    """A table of the vocabulary with more rows, at the mean of those that it has."""

    def __init__(self, entry: Stored, rows: int):
        self.entry, self.shape = entry, (rows, entry.shape[1])
        self.name, self.file, self.first = entry.name, entry.file, None
        self.dtype, self.nbytes = entry.dtype, entry.nbytes

    def __getitem__(self, key: Any) -> torch.Tensor:
        table = self.entry[...]
        mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table.dtype)
        return torch.cat([table, mean.expand(self.shape[0] - len(table), -1)])


class _Started:
    """A tensor that no file holds."""

    file, first = Path("starting values"), None

    def __init__(self, name: str, tensor: torch.Tensor):
        self.name, self.tensor = name, tensor
        self.shape, self.dtype, self.nbytes = tuple(tensor.shape), tensor.dtype, 0

    def __getitem__(self, key: Any) -> torch.Tensor:
        return self.tensor


def _started(config: GlammConfig, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """Starting values for what joins the parts, drawn from `seed` and from nothing else."""
    with torch.device("meta"):
        empty = GlammForConditionalGeneration(config)
    found = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in OWN_PARTS:
            own: nn.Module = getattr(empty, part).to_empty(device="cpu").to(dtype)
            for module in own.modules():
                empty._init_weights(module)
            found |= {f"{part}.{name}": _Started(name, p.data) for name, p in own.named_parameters()}
    return found


def _agreed(part: str, folder: Path, own, wanted, names: tuple[str, ...]):
    """The part's own configuration, once its shapes are those that GLaMM's configuration wants."""
    odd = [n for n in names if getattr(own, n) != getattr(wanted, n)]
    if odd:
        pairs = ", ".join(f"{n} {getattr(own, n)} (expected {getattr(wanted, n)})" for n in odd)
        raise ValueError(
            f"{part}: {folder} has {pairs}; give another checkpoint, or a GlammConfig whose "
            f"{'vision' if part == 'global_encoder' else 'text'} has these settings"
        )
    return own


def _model_type(folder: Path, expected: tuple[str, ...]) -> str:
    kind = read_config(folder).get("model_type")
    if kind not in expected:
        raise ValueError(f"{folder} holds a {kind!r}; expected {' or '.join(map(repr, expected))}")
    return kind


def sam_file(place: str | Path) -> Path:
    """A file of segment-anything; an address, or a published name, is fetched once and kept where torch keeps them.

    Raises FileNotFoundError if it cannot be fetched, ValueError if a published file has another SHA-256 than its name
    says; nothing is left behind then.
    """
    path, address = Path(place), str(place)
    if not path.is_file() and address in SAM_FILES:
        address = SAM_ADDRESS + address
    if not address.startswith("https://"):
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no file {path}; give a path, an https address, or one of {', '.join(SAM_FILES)}, "
                f"which are fetched from {SAM_ADDRESS}"
            )
        return path
    cache, parts = Path(torch.hub.get_dir()) / "checkpoints", urlparse(address)
    name, prefix = Path(parts.path).name, None
    if address == SAM_ADDRESS + name and name in SAM_FILES:
        prefix = Path(name).stem.rpartition("_")[2]
    else:  # another site's file must not be taken for this one, whatever both are called
        cache /= f"{parts.hostname}-{hashlib.sha256(address.encode()).hexdigest()[:8]}"
    if (cache / name).is_file():
        return cache / name
    cache.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(address, str(cache / name), hash_prefix=prefix)
    except OSError as error:  # URLError and HTTPError are OSErrors
        raise FileNotFoundError(
            f"{address} could not be fetched ({error}); check the network, or download it elsewhere and give its path"
        ) from error
    except RuntimeError as error:  # torch's, for a hash
        raise ValueError(
            f"{address} gave another file than the one published under that name ({error}); nothing was kept. Fetch "
            "it again, or download it elsewhere and give its path"
        ) from error
    return cache / name


MATRIX = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

RULES = (
    # One matrix under two names, of which a file may hold either or both.
    (r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$", MATRIX),
    (r"^vision_encoder\.", "image_encoder."),
    (r"^(image_encoder\.patch_embed)\.projection\.", r"\1.proj."),
    (r"^(image_encoder)\.layers\.", r"\1.blocks."),
    (r"^(image_encoder\.neck)\.conv1\.", r"\1.0."),
    (r"^(image_encoder\.neck)\.layer_norm1\.", r"\1.1."),
    (r"^(image_encoder\.neck)\.conv2\.", r"\1.2."),
    (r"^(image_encoder\.neck)\.layer_norm2\.", r"\1.3."),
    (r"^(prompt_encoder)\.point_embed\.", r"\1.point_embeddings."),
    (r"^(prompt_encoder)\.mask_embed\.conv1\.", r"\1.mask_downscaling.0."),
    (r"^(prompt_encoder)\.mask_embed\.layer_norm1\.", r"\1.mask_downscaling.1."),
    (r"^(prompt_encoder)\.mask_embed\.conv2\.", r"\1.mask_downscaling.3."),
    (r"^(prompt_encoder)\.mask_embed\.layer_norm2\.", r"\1.mask_downscaling.4."),
    (r"^(prompt_encoder)\.mask_embed\.conv3\.", r"\1.mask_downscaling.6."),
    (r"^(mask_decoder)\.upscale_conv1\.", r"\1.output_upscaling.0."),
    (r"^(mask_decoder)\.upscale_layer_norm\.", r"\1.output_upscaling.1."),
    (r"^(mask_decoder)\.upscale_conv2\.", r"\1.output_upscaling.3."),
    # Three-layer heads: first, one in the middle, last.
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
)
"""From transformers' name to the published one, in this order."""


def published_name(name: str) -> str:
    """The published name of a weight as transformers calls it."""
    for pattern, new in RULES:
        name = re.sub(pattern, new, name)
    return name
