"""What a pass through GLaMM holds besides its weights, part by part, in bytes: formulas of shapes alone.

Training keeps for the backward pass what each operation's gradient needs. Rules behind all formulas:

- A trained linear layer or convolution keeps its input; a frozen one keeps nothing of its own. Where no gradient flows
  (a frozen encoder on pixels) nothing is kept at all.
- Fused attention keeps queries, keys, values and its output, and no (T x T) scores.
- Norms keep their input, which is float32 whatever the compute type: both the residual stream and the norms stay in
  float32 under CUDA's autocast. With autocast each linear layer keeps a cast copy of its input.
- Activation checkpointing keeps one float32 input a layer, and one whole layer while that runs again; by
  then the backward pass has given back what later parts kept, which makes room for it.

Written B for bytes of a number in the compute type (2 in half precision), 4 for float32.
"""

import math
from dataclasses import dataclass

from glamm_mini.model.config import GlammConfig
from glamm_mini.model.sam import KERNEL_WIDTH, NUMBERS_AT_ONCE

SPEAKING = {"language_model", "embeddings", "vl_projector", "region_encoder", "lora"}
"""Where something of these trains, a gradient flows through the language model's layers."""

DECODER_TOKENS = 6
"""The pixel decoder's own tokens, one for quality and four for masks, and the prompt."""


@dataclass(frozen=True)
class Load:
    """What one device works on at a time, and how.

    batch: rows, one picture and one conversation each. text: ids of a row beside the image. supervised: of these, how
    many are learned. boxes, masks: of one row. picture: its height and width, at which masks are compared. size: bytes
    of a number in the compute type. checkpointing: of transformer layers and rounds of mixing.
    """

    batch: int = 1
    text: int = 192
    supervised: int = 96
    boxes: int = 0
    masks: int = 3
    picture: tuple[int, int] = (480, 640)
    size: int = 4
    checkpointing: bool = False


@dataclass(frozen=True)
class Flow:
    """Which parts train (names of the model's children), LoRA's adapted layers a transformer layer, and dropout."""

    trained: frozenset
    adapted: int = 0
    dropout: bool = True

    def weights(self, part: str) -> bool:
        """Whether the linear layers inside a part learn."""
        return part in self.trained


def stored_activations(config: GlammConfig, load: Load, flow: Flow) -> dict[str, float]:
    """Bytes that one forward pass keeps for the backward pass, per part of the model, and what the backward pass of a
    part adds to that at worst (a layer computed again)."""
    sees = flow.weights("global_encoder")
    draws = flow.weights("grounding_encoder")
    speaks = sees or bool(flow.trained & SPEAKING or flow.adapted)
    nothing = (0.0, 0.0)
    kept = {
        "pixel_decoder": _decoder(config, load) if draws or flow.weights("pixel_decoder") or speaks else nothing,
        "lp_projector": _lp_projector(config, load) if speaks or flow.weights("lp_projector") else nothing,
        "language_model": _language(config, load, flow) if speaks else nothing,
        "region_encoder": _region(config, load, flow) if sees or flow.weights("region_encoder") else nothing,
        "vl_projector": _vl_projector(config, load, flow) if sees or flow.weights("vl_projector") else nothing,
        "grounding_encoder": _grounding(config, load) if draws else nothing,
        "global_encoder": _global(config, load) if sees else nothing,
    }  # in the order of the backward pass
    given_back, total = 0.0, {}
    for part, (held, again) in kept.items():
        total[part] = held + (max(0.0, again - given_back) if load.checkpointing else 0.0)
        given_back += held
    return total


def positions(config: GlammConfig, load: Load) -> int:
    """T: positions of a row in the language model; the image takes `image_tokens` of them."""
    return load.text + config.image_tokens


def _layers(load: Load, count: int, one: float, entry: float) -> tuple[float, float]:
    """Bytes that `count` layers keep, `one` each or with checkpointing their inputs, and those of one."""
    return (count * entry, one) if load.checkpointing else (count * one, 0.0)


def _casts(load: Load, layers: int, width: float) -> float:
    """Inputs of `layers` linear layers that read the same tensor: shared in float32, one cast copy each in half."""
    return (layers * load.size if load.size < 4 else 4) * width


def _global(config: GlammConfig, load: Load) -> tuple[float, float]:
    """A CLIP layer, a patch: inputs of two norms 2 x 4C, their outputs for q k v and fc1, q k v and output 4 x BC,
    the MLP 2 x BM, and one BM more for quick_gelu's sigmoid."""
    v = config.vision
    c, m, patches = v.hidden_size, v.intermediate_size, config.image_tokens + 1
    hidden = (3 if v.hidden_act == "quick_gelu" else 2) * load.size * m
    one = 8 * c + _casts(load, 3, c) + _casts(load, 1, c) + 4 * load.size * c + hidden
    pixels = 3 * v.image_size**2 * load.size
    kept, again = _layers(load, v.num_hidden_layers, one * patches, 4 * c * patches)
    return load.batch * (kept + pixels + 4 * c * patches), load.batch * again


def _vl_projector(config: GlammConfig, load: Load, flow: Flow) -> tuple[float, float]:
    """Per image token: GELU's input BD, and where the layers learn their inputs BC and BD."""
    c, d = config.vision.hidden_size, config.text.hidden_size
    learns = flow.weights("vl_projector")
    return load.batch * config.image_tokens * load.size * (learns * (c + d) + d), 0.0


def _region(config: GlammConfig, load: Load, flow: Flow) -> tuple[float, float]:
    """With S positions on all levels together: the levels' inputs B(V + 2)S, each round of mixing its convolution's
    input BCS, its norm's input and ReLU's output 2 x 4CS; per box, C x roi x roi per level and once summed.

    With checkpointing a round keeps its input 4CS alone.
    """
    r, c = config.region, config.region.channels
    if not load.boxes:
        return 0.0, 0.0
    s = sum((config.image_grid * scale) ** 2 for scale in r.scales)
    learns = flow.weights("region_encoder")
    inputs = s * learns * load.size * (config.vision.hidden_size + 2)
    rounds, again = _layers(load, r.rounds, s * c * (load.size + 8), 4 * s * c)
    box = c * r.roi_size**2 * (len(r.scales) + 1) * load.size + 4 * (3 * r.position_hidden + 4 * r.hidden)
    return load.batch * (inputs + rounds + load.boxes * box), load.batch * again


def _language(config: GlammConfig, load: Load, flow: Flow) -> tuple[float, float]:
    """A Llama layer, a position: inputs of two norms 2 x 4D; q and output 2 x BA, k and v 2 x BK; gate, its SiLU, and
    up 3 x BF. In a batch with padding, k and v are repeated for all query heads (K = A) and each layer keeps the mask.

    Where weights learn also: the norms' results 2 x 4D, inputs of q k v and of gate and up, and the input of down BF.
    LoRA keeps, for each adapted layer, its input cast (B + 1)D, dropout's mask being the 1.
    The head sees supervised positions only: their states BD and log-probabilities 4V.
    """
    t = config.text
    d, f = t.hidden_size, t.intermediate_size
    length, padded = positions(config, load), load.batch > 1
    a = t.num_attention_heads * head_width(config)
    k = a if padded else key_heads(config) * head_width(config)
    b, learns = load.size, flow.weights("language_model")
    one = 8 * d + 2 * b * (a + k) + 3 * b * f + padded * b * length
    if learns:
        one += 8 * d + _casts(load, 3, d) + _casts(load, 2, d) + b * f
    elif flow.adapted:
        one += flow.adapted * (b + flow.dropout) * d
    rows = load.batch * length
    layers, again = _layers(load, t.num_hidden_layers, one * rows, 4 * d * rows)
    head = load.batch * load.supervised * (b * d + 4 * t.vocab_size)
    return layers + head + (8 if learns else 4) * d * rows, again


def _grounding(config: GlammConfig, load: Load) -> tuple[float, float]:
    """A block of SAM's ViT, a patch: norms' inputs 2 x 4C, q k v's input (windows padded), queries, keys, values and
    output, wider by the relative positions, which keep 3BC more; the MLP's input BC and 2 x 4BC inside.

    The kernel for GPUs is meant; the CPU's, which works in blocks, keeps all scores for the backward pass.
    """
    g, b = config.grounding, load.size
    c, side = g.hidden, g.grid
    blocks = []
    for block in range(g.depth):
        padded, width = attention_size(config, block)
        attention = padded * b * (c + 4 * g.heads * width + (3 * c if g.relative_positions else 0))
        blocks.append(side**2 * (8 * c + _casts(load, 1, c) + 8 * b * c) + attention)
    kept = 4 * c * side**2 * g.depth if load.checkpointing else sum(blocks)
    neck = side**2 * (b * c + 2 * 4 * 3 * g.prompt_dim + b * g.prompt_dim)
    return load.batch * (kept + neck + 3 * g.image_size**2 * b), load.batch * max(blocks, default=0.0)


def attention_size(config: GlammConfig, block: int) -> tuple[int, int]:
    """Of a block of the grounding encoder: patches with the padding of windows, and a head's width for the kernel."""
    g = config.grounding
    windowed = g.window > 0 and block not in g.global_attention
    span = g.window if windowed else g.grid
    width = g.hidden // g.heads
    if g.relative_positions:
        width = -(-(width + 2 * span) // KERNEL_WIDTH) * KERNEL_WIDTH  # rounded up
    return (-(-g.grid // span) * span) ** 2, width


def _decoder(config: GlammConfig, load: Load) -> tuple[float, float]:
    """A mask, in numbers of the image embedding C x h x w: each two-way layer keeps 5 in the compute type and its
    norm's input in float32, the last attention 3, the upscaling 11; scores of 6 tokens in float32, kept twice. The
    loss keeps 16 bytes a pixel: the logits, the truth twice, the probabilities."""
    g, b = config.grounding, load.size
    embedding = g.prompt_dim * g.grid**2
    scores = DECODER_TOKENS * g.decoder_heads * g.grid**2
    layer = embedding * (5 * b + 4) + 2 * scores * 4
    each = g.decoder_depth * layer + (3 + 11) * b * embedding + 4 * scores
    return load.batch * load.masks * (each + 16 * math.prod(load.picture)), 0.0


def _lp_projector(config: GlammConfig, load: Load) -> tuple[float, float]:
    """A mask: the state, and ReLU's result."""
    return load.batch * load.masks * 2 * load.size * config.text.hidden_size, 0.0


def head_width(config: GlammConfig) -> int:
    """Width of one attention head of the language model."""
    t = config.text
    return getattr(t, "head_dim", None) or t.hidden_size // t.num_attention_heads


def key_heads(config: GlammConfig) -> int:
    """How many heads of keys and values a layer of the language model has."""
    return getattr(config.text, "num_key_value_heads", None) or config.text.num_attention_heads


def cache_bytes(config: GlammConfig, load: Load, new_tokens: int) -> int:
    """The key-value cache after `new_tokens`: keys and values of every layer and position; the last new token has
    none, for it is never fed."""
    length = positions(config, load) + max(new_tokens - 1, 0)
    width = key_heads(config) * head_width(config)
    return 2 * config.text.num_hidden_layers * width * load.size * load.batch * length


def handed_on(config: GlammConfig, load: Load) -> dict[str, float]:
    """Bytes of what the parts that see give to others, alive until the answer is there."""
    v, tokens = config.vision, config.image_tokens
    each = {
        "global_encoder": (tokens + 1) * v.hidden_size * len(config.region.scales),
        "vl_projector": tokens * config.text.hidden_size,
        "grounding_encoder": config.grounding.prompt_dim * config.grounding.grid**2,
    }
    return {part: load.batch * load.size * numbers for part, numbers in each.items()}


def working_memory(config: GlammConfig, load: Load) -> dict[str, float]:
    """Most bytes that each part works on when nothing is kept for a backward pass; parts run one after the other.

      CLIP: the states of all layers, which it is asked for, and one MLP. SAM's ViT: two residual streams and q, k, v of
    the widest block with its copies for the kernel, or its MLP. The region encoder: CLIP's grid twice at the finest
    level's size, or all levels and three copies of the finest. The language model: a prompt's states and one MLP,
    logits of one position. The decoder: 8 times the embedding for each mask it decodes at once, or masks at two sizes
    in float32.
    """
    v, t, g, r = config.vision, config.text, config.grounding, config.region
    b, n, patches, row = load.size, load.batch, config.image_tokens + 1, positions(config, load)
    clip = patches * (v.hidden_size * (v.num_hidden_layers + 4) + 3 * v.intermediate_size)
    sizes = [(config.image_grid * scale) ** 2 for scale in r.scales]
    region = max((2 * v.hidden_size + r.channels) * max(sizes), r.channels * (sum(sizes) + 3 * max(sizes)))
    region += load.boxes * r.channels * r.roi_size**2 * (len(r.scales) + 1)
    prompt = row * (6 * t.hidden_size + 3 * t.intermediate_size + (row if n > 1 else 0))
    embedding, masks = g.prompt_dim * g.grid**2, load.masks * n
    at_once = min(masks, max(1, NUMBERS_AT_ONCE // embedding))
    return {
        "global_encoder": n * b * clip,
        "vl_projector": n * b * config.image_tokens * 2 * t.hidden_size,
        "region_encoder": n * b * region if load.boxes else 0.0,
        "language_model": n * (b * prompt + 6 * t.vocab_size),
        "grounding_encoder": n * b * max(_vit_work(config, block) for block in range(g.depth)),
        "pixel_decoder": max(8 * at_once * embedding * b, 4 * masks * (g.image_size**2 + math.prod(load.picture))),
        "lp_projector": masks * 2 * b * t.hidden_size,
    }


def _vit_work(config: GlammConfig, block: int) -> float:
    """Numbers that one block of the grounding encoder works on, for one picture."""
    g = config.grounding
    padded, width = attention_size(config, block)
    attention = padded * (4 * g.hidden + 5 * g.heads * width * g.relative_positions)
    return 2 * g.hidden * g.grid**2 + max(attention, 8 * g.hidden * g.grid**2)
