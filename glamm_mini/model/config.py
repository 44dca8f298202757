"""One configuration tree for every size of GLaMM, from two CPU cores to the official 7B weights."""

from dataclasses import asdict, dataclass, fields

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

SIZES = ("tiny", "colab", "7b")
MODES = ("official", "fixed")
SEG_STATES = ("before", "at")


@dataclass
class RegionConfig:
    """The region encoder: one token per box from four feature levels of the global image encoder.

    scales: side of each level's map over the side of the feature grid, shallowest level first (official 8 4 2 1).
    box_image_size: pixels that a box of the whole picture spans before RoIAlign. None means the global encoder's
        image size; official weights were trained with 224 although the encoder runs at 336.
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
    max_length: int = 1536
    """Longest row, in tokens, image features included."""


@dataclass
class TokenIds:
    """Ids of the added tokens; filled from the tokenizer, never by encoding their text."""

    im_start: int = 32000
    im_end: int = 32001
    bbox: int = 32002
    point: int = 32003
    seg: int = 32004
    phrase_start: int = 32005
    phrase_end: int = 32006


PARTS = {
    "region": RegionConfig,
    "grounding": GroundingConfig,
    "losses": LossConfig,
    "prompt": PromptConfig,
    "tokens": TokenIds,
}

OFFICIAL_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


class GlammConfig(PreTrainedConfig):
    """Everything that decides the shape and the behavior of a GLaMM.

    vision: transformers' CLIPVisionConfig. text: transformers' LlamaConfig. The other parts are dataclasses above.
    feature_layer: hidden state of the vision tower that the language model reads, counted from the end (-2 official).
    level_step: distance between the hidden states that the region encoder reads, counted back from `feature_layer`.
    mode: "official" reproduces the released code's behavior, "fixed" is what we train (see `losses`, `processor`).
    seg_state: "before" (official): a mask comes from the state that predicts [SEG]; "at": from [SEG]'s own state.
    """

    model_type = "glamm_mini"
    sub_configs = {"vision": CLIPVisionConfig, "text": LlamaConfig}

    def __init__(
        self,
        vision=None,
        text=None,
        region=None,
        grounding=None,
        losses=None,
        prompt=None,
        tokens=None,
        feature_layer: int = -2,
        level_step: int = 3,
        mode: str = "fixed",
        seg_state: str = "before",
        size_name: str = "custom",
        **kwargs,
    ):
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {MODES}")
        if seg_state not in SEG_STATES:
            raise ValueError(f"seg_state is {seg_state!r}; expected one of {SEG_STATES}")
        self.vision = _nested(CLIPVisionConfig, vision)
        self.text = _nested(LlamaConfig, text)
        given = dict(region=region, grounding=grounding, losses=losses, prompt=prompt, tokens=tokens)
        for name, cls in PARTS.items():
            setattr(self, name, _part(cls, given[name]))
        self.feature_layer = feature_layer
        self.level_step = level_step
        self.mode = mode
        self.seg_state = seg_state
        self.size_name = size_name
        kwargs.setdefault("tie_word_embeddings", self.text.tie_word_embeddings)
        super().__init__(**kwargs)

    @classmethod
    def of_size(cls, size: str, **changes) -> "GlammConfig":
        """The configuration of a named size: "tiny", "colab" or "7b"; `changes` override top-level settings."""
        builders = {"tiny": _tiny, "colab": _colab, "7b": _official_7b}
        if size not in builders:
            raise ValueError(f"size {size!r} is unknown; expected one of {', '.join(SIZES)}")
        return cls(**(builders[size]() | {"size_name": size} | changes))

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
        layers = tuple(last - self.level_step * k for k in reversed(range(len(self.region.scales))))
        if layers[0] < 0:
            raise ValueError(
                f"the region encoder needs hidden states {layers}, but the vision tower has only "
                f"{self.vision.num_hidden_layers} layers; lower level_step or the number of region scales"
            )
        return layers

    def memory_report(self, dtype: str = "float32", trained="all", **more) -> "dict[str, dict[str, float]]":
        """Memory of every part on one device, in megabytes, counted without allocating it; `print` it for a table.

        trained: "all", "none" (to answer), "official" (LoRA and the parts the released recipe trains), or pieces of
        parameters' names. more: `lora`, `quantize`, `sharding`, `devices`, `checkpointing`, `batch`, `text_tokens` ...,
        see `glamm_mini.course.memory.report.memory_report`.
        """
        from glamm_mini.course.memory.report import memory_report

        return memory_report(self, dtype=dtype, trained=trained, **more)

    def to_dict(self):
        """As transformers' to_dict, with the nested dataclasses as plain dictionaries."""
        out = super().to_dict()
        for name in PARTS:
            out[name] = asdict(getattr(self, name))
        for name in ("vision", "text"):
            out[name] = getattr(self, name).to_dict()
        return out


def _nested(cls, value):
    if isinstance(value, cls):
        return value
    return cls(**(value or {}))


def _part(cls, value):
    if isinstance(value, cls):
        return value
    value = dict(value or {})
    unknown = set(value) - {f.name for f in fields(cls)}
    if unknown:
        raise ValueError(f"{cls.__name__} has no setting {sorted(unknown)}; it has {[f.name for f in fields(cls)]}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})


def _tiny() -> dict:
    """About 4 million parameters: a picture of 128 px, described in under a second on one CPU core."""
    return dict(
        vision=dict(
            image_size=96,
            patch_size=8,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            hidden_act="gelu",
        ),
        text=dict(
            vocab_size=1024,
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=4,
            num_attention_heads=5,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        ),
        region=dict(channels=48, scales=(2, 1, 1, 1), rounds=2, groups=8, roi_size=7, position_hidden=64, hidden=128),
        grounding=dict(
            image_size=128,
            patch_size=8,
            hidden=96,
            depth=4,
            heads=3,
            global_attention=(0, 1, 2, 3),
            window=0,
            relative_positions=False,
            prompt_dim=64,
            mask_in_channels=8,
            decoder_hidden=192,
            decoder_heads=4,
            iou_hidden=64,
        ),
        # Official 0.5 for dice leaves small things to the pixel-wise loss, which hardly sees them.
        losses=dict(mask_dice=2.0),
        prompt=dict(max_length=512, image_line="<image>\n"),
        feature_layer=-1,
        level_step=1,
    )


def _colab() -> dict:
    """TinyLlama 1.1B, CLIP ViT-L/14-336 and SAM ViT-B: one 16 GB GPU."""
    return dict(
        vision=_clip_large(),
        text=dict(
            vocab_size=32007,
            hidden_size=2048,
            intermediate_size=5632,
            num_hidden_layers=22,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
        ),
        # Half the official width: it starts untrained here, and at full width its training alone would take 10 GB.
        region=dict(channels=512, groups=32),
        grounding=dict(hidden=768, depth=12, heads=12, global_attention=(2, 5, 8, 11)),
        prompt=dict(system=OFFICIAL_SYSTEM),
    )


def _official_7b() -> dict:
    """Vicuna-7B, CLIP ViT-L/14-336 and SAM ViT-H, in official mode."""
    return dict(
        vision=_clip_large(),
        text=dict(
            vocab_size=32007,
            hidden_size=4096,
            intermediate_size=11008,
            num_hidden_layers=32,
            num_attention_heads=32,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
        ),
        region=dict(box_image_size=224),
        grounding=dict(),
        prompt=dict(system=OFFICIAL_SYSTEM),
        mode="official",
    )


def _clip_large() -> dict:
    return dict(
        image_size=336,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        hidden_act="quick_gelu",
    )
