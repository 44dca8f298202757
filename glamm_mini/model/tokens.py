"""The special tokens of GLaMM, in the order in which official checkpoints number them, and their ids.

Ids are always asked of the tokenizer (`convert_tokens_to_ids`): encoding "[SEG]" may put another piece in front of it.
"""

from dataclasses import dataclass

IM_START = "<im_start>"
IM_END = "<im_end>"
BBOX = "<bbox>"
POINT = "<point>"
SEG = "[SEG]"
PHRASE_START = "<p>"
PHRASE_END = "</p>"

ADDED_TOKENS = (IM_START, IM_END, BBOX, POINT, SEG, PHRASE_START, PHRASE_END)
"""Added behind the language model's own vocabulary, in this order (32000..32006 on the official base of 32000)."""

IMAGE = "<image>"
"""Stands in a prompt where the image features go; it has no embedding, only the index below."""
IMAGE_TOKEN_INDEX = -200
IGNORE_INDEX = -100


@dataclass
class TokenIds:
    """Ids of `ADDED_TOKENS`, in their order; filled from the tokenizer. These are the official ones."""

    im_start: int = 32000
    im_end: int = 32001
    bbox: int = 32002
    point: int = 32003
    seg: int = 32004
    phrase_start: int = 32005
    phrase_end: int = 32006

    def __post_init__(self) -> None:
        if len(set(vars(self).values())) < len(vars(self)):
            raise ValueError(f"tokens are {vars(self)}; expected an id of its own for each")
