"""How an answer is written: its length, drawn or greedy, streamed; and the watch over its numbers."""

import math
import operator
import secrets
from collections.abc import Iterable
from typing import Any, TypedDict

import torch
from transformers import LogitsProcessor

MAX_NEW_TOKENS = {"fixed": 256, "official": 512}
"""By `config.mode`; 512 as the released evaluation."""

BROKEN = (
    "the model computes numbers that are not finite (NaN or infinity), {where}; its weights are damaged, or its values "
    "are too large for float16: load it again, with dtype='float32' or 'bfloat16'"
)


class Options(TypedDict, total=False):
    """What every call of the assistant takes by keyword.

    max_new_tokens: the answer is cut after so many; 256, or 512 in official mode, if left out.
    temperature: 0 or None takes the likeliest token each time; above 0, tokens are drawn, the more freely the higher.
    seed: 0 or more, makes what is drawn the same each time; answer k of a batch is drawn with seed + k. torch's own
        random numbers are neither used nor changed.
    streamer: has `put` and `end`, as transformers' TextStreamer; gets the tokens of the one answer as they come.
    details: keep the logits of masks and the scores of tokens on the answer.
    """

    max_new_tokens: int | None
    temperature: float | None
    seed: int | None
    streamer: Any
    details: bool


NUMBERS = {
    "max_new_tokens": (operator.index, 1, 2**62, "a whole number of at least 1"),
    "seed": (operator.index, 0, 2**62, "a whole number of at least 0"),
    "temperature": (float, 0, math.inf, "a finite number of at least 0, and 0 draws nothing"),
}
"""Of an option: what makes a number of it, the least that it may be, what it must stay under, and this in words."""


def checked_options(options: Options, default_length: int, rows: int) -> Options:
    """All options, for `rows` questions.

    Raises TypeError for a name that is not an option, ValueError that names an option with a bad value.
    """
    for name in options.keys() - Options.__annotations__.keys():
        raise TypeError(f"{name!r} is not an option; expected some of {', '.join(Options.__annotations__)}")
    how = {"max_new_tokens": default_length, "temperature": 0.0, "seed": secrets.randbits(62)}
    how |= {"streamer": None, "details": False} | {name: value for name, value in options.items() if value is not None}
    for name, (convert, least, end, expected) in NUMBERS.items():
        try:
            # A truth value is a number, and a text may hold one, but neither was meant.
            truth = isinstance(how[name], bool) or str(getattr(how[name], "dtype", "")).endswith("bool")
            number = math.nan if truth or isinstance(how[name], str | bytes) else convert(how[name])
        except (TypeError, ValueError, ArithmeticError, RuntimeError):
            number = math.nan
        if not least <= number < end:
            raise ValueError(f"{name} is {how[name]!r}; expected {expected}")
        how[name] = number
    streamer, details = how["streamer"], how["details"]
    fits = not isinstance(streamer, type) and all(callable(getattr(streamer, key, None)) for key in ("put", "end"))
    if streamer is not None and not fits:
        raise ValueError(f"streamer is {streamer!r}; expected one with put and end, as transformers' TextStreamer")
    if streamer is not None and rows != 1:
        raise ValueError(f"streamer follows one answer, but {rows} questions were asked; ask one at a time")
    if not isinstance(details, bool):
        raise ValueError(f"details is {details!r}; expected True or False")
    return how


class TokenChooser(LogitsProcessor):
    """Stands last before the likeliest token is taken: refuses what is not finite, draws, and keeps scores.

    Drawing: the token with the largest logit + temperature x Gumbel noise is one drawn from softmax(logits /
    temperature). The noise comes from generators of this call alone, so that threads do not share any.
    """

    def __init__(self, rows: int, temperature: float, seed: int, details: bool = False):
        self.temperature, self.details = temperature, details
        self.generators = [torch.Generator().manual_seed(seed + row) for row in range(rows if temperature else 0)]
        self.scores: list[torch.Tensor] = []  # with details, (R, 1) of each token: the logarithm of its probability

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids: (R, T) new tokens so far. scores: (R, V) logits of the next. Raises ValueError for NaN."""
        # One number a row: minus infinity, which forbids a token, is allowed, but not for all of them.
        if not bool(torch.isfinite(scores.logsumexp(-1)).all()):
            raise ValueError(BROKEN.format(where=f"at token {input_ids.shape[1] + 1} of the answer"))
        drawn = scores
        if self.generators:
            noise = [-torch.empty(scores.shape[1]).exponential_(generator=own).log() for own in self.generators]
            drawn = scores + self.temperature * torch.stack(noise).to(scores)
        if self.details:
            self.scores.append(scores.log_softmax(-1).gather(1, drawn.argmax(-1, keepdim=True)))
        return drawn


class AnswerStream:
    """Hands on to a streamer, or to None, what belongs to the answer: not its begin, end and padding, `drop`.

    The streamer runs without the model's `turn`: it may ask the model itself, or wait for a thread that does.
    """

    def __init__(self, streamer, drop: Iterable[int], turn):
        self.streamer, self.drop, self.begun, self.turn = streamer, torch.tensor([*drop]), False, turn

    def put(self, value: torch.Tensor) -> None:
        """value: (1, 0), the prompt, which is fed as embeddings; then (1,), a token each time."""
        # A streamer with skip_prompt=True passes over the first call, whatever it brings.
        value = value[~torch.isin(value, self.drop)] if self.begun else value
        if len(value) or not self.begun:
            self.turn.release()
            try:
                self.streamer.put(value)
            finally:
                self.turn.acquire()
        self.begun = True

    def end(self) -> None:
        """What `generate` calls; the reader hears of the end when the answer is complete, by `close`."""

    def close(self) -> None:
        """The answer is complete, or has failed: without an end, its reader would wait for ever."""
        if self.streamer is not None:
            self.streamer.end()
