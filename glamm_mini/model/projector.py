"""The two small networks that carry vectors between worlds: vision to language, and language to prompt."""

from torch import nn


class VLProjector(nn.Sequential):
    """Vision to language: Linear, GELU, Linear, from the global encoder's width to the language model's."""

    def __init__(self, vision_width: int, language_width: int):
        super().__init__(nn.Linear(vision_width, language_width), nn.GELU(), nn.Linear(language_width, language_width))


class LPProjector(nn.Sequential):
    """Language to prompt: the state of a [SEG] becomes a prompt of the pixel decoder.

    The paper writes GELU; the official code, and so the released weights, use ReLU.
    """

    def __init__(self, language_width: int, prompt_width: int):
        super().__init__(nn.Linear(language_width, language_width), nn.ReLU(), nn.Linear(language_width, prompt_width))
