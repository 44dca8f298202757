"""The memory of a training as a sum: so many bytes for each number, by what is done with it."""


def training_state(
    frozen: float, trained: float, frozen_bytes: float = 4, gpus: int = 1, cut: tuple = ()
) -> dict[str, float]:
    """Bytes that each of `gpus` holds of weights, gradients and AdamW's two moments.

    frozen, trained: how many numbers. frozen_bytes: for each frozen one; trained ones, their gradients and both
    moments are float32. cut: the kinds that are divided among the GPUs; all others are there in every one.
    """
    weights = frozen_bytes * frozen + 4 * trained
    whole = {"weights": weights, "gradients": 4 * trained, "optimiser": 8 * trained}
    return {kind: size / gpus if kind in cut else size for kind, size in whole.items()}


def cache_bytes(layers: int, heads: int, head_width: int, tokens: int, number_bytes: float = 2) -> float:
    """Bytes of the keys and values that a language model keeps of one row of `tokens`."""
    return 2 * layers * heads * head_width * tokens * number_bytes
