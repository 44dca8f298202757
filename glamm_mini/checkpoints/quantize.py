"""The language model's linear layers in 4 or 8 bits, by bitsandbytes: a 7B model fits on one GPU of 16 GB."""

from torch import nn

KINDS = ("4bit", "8bit")
BLOCK = 64
"""Weights that share one scale in 4 bits; a layer's input width is a multiple of it, or bitsandbytes fails on a CPU."""

LANGUAGE = "language_model.model."
"""Where the layers stand that are quantized. The image encoders, the projectors and the pixel decoder stay as they are
(masks suffer first from lost bits), and so does the language model's head."""


def check_kind(kind: str | None) -> None:
    """Raises ValueError for an unknown kind, ModuleNotFoundError that names the extra if bitsandbytes is missing."""
    if kind is None:
        return
    if kind not in KINDS:
        raise ValueError(f"quantize is {kind!r}; expected None, {' or '.join(map(repr, KINDS))}")
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"quantize={kind!r} needs bitsandbytes, which is not installed: pip install 'glamm-mini[quantize]'",
            name="bitsandbytes",
        ) from error


def layers_to_quantize(model, kind: str) -> list[str]:
    """Names of the layers that will be replaced. Raises ValueError if there is none, as in the tiny model."""
    check_kind(kind)
    names = [name for name, layer in model.named_modules() if is_quantizable(name, layer)]
    if not names:
        raise ValueError(
            f"quantize={kind!r} finds no layer in this model whose width is a multiple of {BLOCK}; it is small enough "
            "as it is: leave quantize out"
        )
    return names


def is_quantizable(name: str, layer: nn.Module) -> bool:
    """Whether a module of GlammForConditionalGeneration, with its name, is a layer that `quantize` replaces."""
    return name.startswith(LANGUAGE) and type(layer) is nn.Linear and layer.in_features % BLOCK == 0


def quantize(model, kind: str) -> None:
    """Replace the linear layers of the language model; the weights shrink with the next `.to`.

    `load_model(quantize=)` does it layer by layer while it reads, so that the whole model is never in memory.
    Raises ValueError if no layer can be replaced.
    """
    for name in layers_to_quantize(model, kind):
        replace(model, name, quantized(model.get_submodule(name), kind))


def replace(model, name: str, layer: nn.Module) -> None:
    """Put a layer where the module of that name stood."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


def is_quantized(model) -> bool:
    """Whether any of the model's layers are bitsandbytes'."""
    return any(type(module).__module__.startswith("bitsandbytes") for module in model.modules())


def quantized(layer: nn.Linear, kind: str) -> nn.Module:
    """bitsandbytes' layer with the weights of `layer`, which shrink with its next `.to(device)`."""
    import bitsandbytes as bnb

    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data
    # On the meta device, or a full-size weight would be made only to be thrown away.
    if kind == "4bit":
        small = bnb.nn.Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4", device="meta")
        small.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        small = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0, device="meta")
        small.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        small.bias = layer.bias
    return small.train(layer.training)  # bitsandbytes has other kernels for evaluation
