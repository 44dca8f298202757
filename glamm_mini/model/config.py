"""One configuration tree for every size of GLaMM, from two CPU cores to the official 7B weights."""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from glamm_mini.model.tokens import TokenIds
from glamm_mini.ranges import check_ranges, check_together, flat

SIZES = ("tiny", "colab", "7b")
MODES = ("official", "fixed")
COMMON = {*dir(PreTrainedConfig()), "dtype", "torch_dtype", "quantization_config", "auto_map"}  # any may be given these


@dataclass
class RegionConfig:
    """The region encoder: one token per box from four feature levels of the global image encoder.

    scales: side of each level's map over the side of the feature grid, shallowest level first (official 8 4 2 1).
    box_image_size: pixels that a box of the whole picture spans before RoIAlign; None for the global encoder's image
        size. Official weights were trained with 224 although the encoder runs at 336.
    """

    channels: int = 1024
    scales: tuple[int, ...] = (8, 4, 2, 1)
    rounds: int = 5
    groups: int = 64
    roi_size: int = 14
    sampling_ratio: int = 2
    position_hidden: int = 256
    hidden: int = 1024
    box_image_size: int | None = None


@dataclass
class GroundingConfig:
    """The grounding image encoder and the pixel decoder, in the terms of segment-anything."""

    image_size: int = 1024
    patch_size: int = 16
    hidden: int = 1280
    depth: int = 32
    heads: int = 16
    global_attention: tuple[int, ...] = (7, 15, 23, 31)
    window: int = 14
    relative_positions: bool = True
    prompt_dim: int = 256
    mask_in_channels: int = 16
    decoder_depth: int = 2
    decoder_hidden: int = 2048
    decoder_heads: int = 8
    iou_hidden: int = 256
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    @property
    def grid(self) -> int:
        """Side of the image embedding, in patches."""
        return self.image_size // self.patch_size


@dataclass
class LossConfig:
    """Weights of the losses; `dice_scale` and `dice_eps` are the constants inside the official dice loss."""

    cross_entropy: float = 1.0
    mask_bce: float = 2.0
    mask_dice: float = 0.5
    dice_scale: float = 1000.0
    dice_eps: float = 1e-6


@dataclass
class PromptConfig:
    """How questions and answers become one text. `system` may be empty; `image_line` introduces the image."""

    system: str = ""
    user: str = "USER"
    assistant: str = "ASSISTANT"
    image_line: str = "The <image> provides an overview of the picture.\n"
    max_length: int = 1536  # tokens of the longest row, image features included


PARTS = dict(region=RegionConfig, grounding=GroundingConfig, losses=LossConfig, prompt=PromptConfig, tokens=TokenIds)
RIGHT = {name: value for cls in (CLIPVisionConfig, LlamaConfig) for name, value in flat(cls().to_dict())}
RIGHT = {name.rpartition(".")[2]: value for name, value in RIGHT.items()}
RIGHT |= {name: value for cls in PARTS.values() for name, value in vars(cls()).items()}
RIGHT |= dict.fromkeys(("vision", "text", *PARTS), {}) | {"box_image_size": 224, "pad_token_id": 0}
RIGHT |= dict(feature_layer=-2, level_step=3, size_name="7b") | dict.fromkeys((*COMMON, "eos_token_id"))
"""A right value of every setting whose kind is checked, by its last name; None for those that others check."""
OFFICIAL_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


class GlammConfig(PreTrainedConfig):
    """Everything that decides the shape and the behavior of a GLaMM.

    Args:
        vision, text ... tokens: CLIPVisionConfig, LlamaConfig and the dataclasses above, or their settings.
        feature_layer: hidden state of the vision tower that the language model reads, from the end (-2 official).
        level_step: distance between the hidden states that the region encoder reads, back from `feature_layer`.
        mode: "official" is the released code's behavior, "fixed" what we train (see `losses`, `processor`).
        seg_state: "before" (official): a mask comes from the state that predicts [SEG]; "at": from [SEG]'s own.
        size_name: one of SIZES, or "custom".
        kwargs: what every transformers configuration has.

    Raises ValueError for a setting that there is not or that cannot be, and for other language models than Llama.
    """

    model_type = "glamm_mini"
    sub_configs = {"vision": CLIPVisionConfig, "text": LlamaConfig}

    def __init__(
        self,
        vision: CLIPVisionConfig | dict | None = None,
        text: LlamaConfig | dict | None = None,
        region: RegionConfig | dict | None = None,
        grounding: GroundingConfig | dict | None = None,
        losses: LossConfig | dict | None = None,
        prompt: PromptConfig | dict | None = None,
        tokens: TokenIds | dict | None = None,
        feature_layer: int = -2,
        level_step: int = 3,
        mode: str = "fixed",
        seg_state: str = "before",
        size_name: str = "custom",
        **kwargs: Any,
    ):
        for name, value, known in (("mode", mode, MODES), ("seg_state", seg_state, ("before", "at"))):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {known}")
        if "transformers_version" not in kwargs and (unknown := sorted(kwargs.keys() - COMMON)):
            raise ValueError(f"GlammConfig has no setting {unknown}; sizes are those of its parts, such as text=...")
        classes, given = dict(vision=CLIPVisionConfig, text=LlamaConfig) | PARTS, locals()
        for name, cls in classes.items():
            setattr(self, name, _part(name, cls, given[name]))
        self.feature_layer, self.level_step = feature_layer, level_step
        self.mode, self.seg_state, self.size_name = mode, seg_state, size_name
        check_ranges({name: given[name] for name in ("feature_layer", "level_step", "size_name")}, RIGHT)
        for name in kwargs.keys() & {"dtype", "torch_dtype"}:
            kind = str(kwargs[name]).removeprefix("torch.")
            if kind != "None" and not isinstance(getattr(torch, kind, None), torch.dtype):
                raise ValueError(f"{name} is {kwargs[name]!r}; expected a number type, such as 'float32'")
        check_together(self)
        kwargs.setdefault("tie_word_embeddings", self.text.tie_word_embeddings)
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, *args: Any, **kwargs: Any) -> "GlammConfig":
        """As transformers', which would ask the hub for anything; ValueError for what cannot be a name."""
        if not isinstance(pretrained_model_name_or_path, str | PathLike):
            raise ValueError(f"no model was named, but {pretrained_model_name_or_path!r}; give a folder or a hub id")
        if (folder := Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")).is_dir():
            if not (folder / (kwargs.get("_configuration_file") or "config.json")).is_file():
                raise FileNotFoundError(f"there is no config.json in {folder}")
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "GlammConfig":
        """As transformers'; ValueError for settings of another kind of model, which would become the default ones."""
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            hint = "official checkpoints are read by glamm_mini.load and by from_pretrained of model and processor"
            raise ValueError(f"settings of the type {kind!r} were given; expected {cls.model_type!r}; {hint}")
        return super().from_dict(config_dict, **kwargs)

    @classmethod
    def of_size(cls, size: str, **changes: Any) -> "GlammConfig":
        """The configuration of a named size: "tiny", "colab" or "7b"; `changes` override top-level settings."""
        if size not in SIZES:
            raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")
        stored = tomllib.loads((Path(__file__).parent / "sizes.toml").read_text("utf-8"))
        own = {"prompt": {"system": OFFICIAL_SYSTEM}, "size_name": size} | stored[size]
        vision = stored[own["vision"]] if isinstance(own["vision"], str) else own["vision"]
        return cls(**(own | {"vision": vision} | changes))

    @property
    def image_grid(self) -> int:
        """Side of the global encoder's feature grid, in patches."""
        return self.vision.image_size // self.vision.patch_size

    @property
    def image_tokens(self) -> int:
        """How many positions one image takes in the language model's row."""
        return self.image_grid**2

    @property
    def region_layers(self) -> tuple[int, ...]:
        """Hidden states (0 = embeddings) that the region encoder reads, shallowest first; 14 17 20 23 officially."""
        last = self.vision.num_hidden_layers + 1 + self.feature_layer
        return tuple(last - self.level_step * k for k in reversed(range(len(self.region.scales))))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> LlamaConfig:
        """The language model's, wherever transformers asks for words."""
        return self.text

    def memory_report(self, dtype: str = "float32", trained: str | Sequence[str] = "all", **more: Any) -> dict:
        """Megabytes of every part on one device, counted without allocating them; `print` it for a table.

        trained: "all", "none", "official" (the released recipe's), or pieces of parameters' names; and `more`, see
        `glamm_mini.course.memory.memory_report`.
        """
        from glamm_mini.course.memory.memory_report import memory_report

        return memory_report(self, dtype=dtype, trained=trained, **more)

    def to_dict(self) -> dict[str, Any]:
        """As transformers' to_dict, with the nested dataclasses as plain dictionaries."""
        parts = {name: asdict(getattr(self, name)) for name in PARTS}
        return super().to_dict() | parts | {"vision": self.vision.to_dict(), "text": self.text.to_dict()}


def _part(name: str, cls: type, given: object) -> Any:
    """A part from itself, or from its settings. ValueError for a setting that there is not, or that cannot be."""
    ours, names = cls in PARTS.values(), [f.name for f in fields(cls)]
    as_table = (vars if isinstance(given, cls) else asdict) if ours else PreTrainedConfig.to_dict
    table = as_table(given) if isinstance(given, cls | PreTrainedConfig) else {} if given is None else given
    kind = table.get("model_type") if isinstance(table, dict) and not ours else None
    if kind is not None and kind != cls.model_type:
        raise ValueError(f"{name} is a configuration of kind {kind!r}; GLaMM has a {cls.__name__} here")
    check_ranges({name: table}, RIGHT)
    if isinstance(given, cls):
        return given
    unknown = sorted(map(str, table.keys() - (set(names) if ours else COMMON | {"rope_theta", *dir(cls())})))
    if unknown and "transformers_version" not in table:
        own = [name for name in names if name not in COMMON]
        raise ValueError(f"{cls.__name__} has no setting {unknown}; it has {own}")
    for key in table if ours else ():
        if table[key] is None and getattr(cls, key, None) is not None:
            raise ValueError(f"{name}.{key} is None; expected a value, such as {getattr(cls, key)!r}")
    try:
        return cls(**{k: tuple(v) if ours and isinstance(v, list) else v for k, v in table.items()})
    except StrictDataclassError as error:  # transformers' own check of types
        raise ValueError(f"no {name} can be made of these settings: {' '.join(str(error).split())}") from error
