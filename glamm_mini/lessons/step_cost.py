"""How many floating-point operations a training step takes, from three numbers."""


def step_flops(numbers: float, trained: float, tokens: int, recompute: bool = False) -> float:
    """Operations of one step of a part whose `numbers` weights all meet all `tokens`; attention's scores not counted.

    A weight and a token meet in one multiplication and one addition. The forward pass does that once, the gradient of
    the inputs once more, even through frozen weights, and the gradient of the weights once for those that are trained.
    recompute: activation checkpointing runs the forward pass twice.
    """
    passes = numbers + numbers + trained + (numbers if recompute else 0)
    return 2 * tokens * passes
