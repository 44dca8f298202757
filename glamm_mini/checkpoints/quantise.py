"""The language model's linear layers in 4 or 8 bits, by bitsandbytes: a 7B model fits on one GPU of 16 GB."""

from torch import nn

KINDS = ("4bit", "8bit")
BLOCK = 64
"""Weights that share one scale in 4 bits; a layer's input width is a multiple of it, or bitsandbytes fails on a CPU."""


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


def quantise(model, kind: str) -> None:
    """Replace the linear layers of `model.language_model`, but not its head; the weights shrink with the next `.to`.

    The image encoders, the projectors and the pixel decoder stay as they are: masks suffer first from lost bits.
    Raises ValueError if no layer can be replaced, as in the tiny model.
    """
    check_kind(kind)
    replaced = 0
    for parent in list(model.language_model.model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer.in_features % BLOCK == 0:
                setattr(parent, name, _quantised(layer, kind))
                replaced += 1
    if not replaced:
        raise ValueError(
            f"quantize={kind!r} finds no layer in this model whose width is a multiple of {BLOCK}; it is small enough "
            "as it is: leave quantize out"
        )


def _quantised(layer: nn.Linear, kind: str) -> nn.Module:
    import bitsandbytes as bnb

    sizes = (layer.in_features, layer.out_features, layer.bias is not None)
    weight = layer.weight.data
    if kind == "4bit":
        small = bnb.nn.Linear4bit(*sizes, compute_dtype=weight.dtype, quant_type="nf4")
        small.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        small = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0)
        small.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if layer.bias is not None:
        small.bias = layer.bias
    return small
