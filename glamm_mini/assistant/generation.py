"""How an answer is written: its length, drawn or greedy, streamed; and the watch over its numbers."""

import math
import operator
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Generation:
    """Options, checked."""

    max_new_tokens: int
    temperature: float = 0.0
    seed: int = 0
    streamer: Any = None
    details: bool = False

    @classmethod
    def checked(cls, options: Options, default_length: int, rows: int) -> "Generation":
        """Raises TypeError for a name that is not an option, ValueError that names an option with a bad value."""
        unknown = [name for name in options if name not in Options.__annotations__]
        if unknown:
            raise TypeError(f"{unknown[0]!r} is not an option; expected some of {', '.join(Options.__annotations__)}")
        given = {name: value for name, value in options.items() if value is not None}
        length = _whole("max_new_tokens", given.get("max_new_tokens", default_length), 1)
        seed = _whole("seed", given.get("seed", secrets.randbits(62)), 0)
        streamer, details = given.get("streamer"), given.get("details", False)
        fits = not isinstance(streamer, type) and callable(getattr(streamer, "put", None)) and hasattr(streamer, "end")
        if streamer is not None and not fits:
            raise ValueError(f"streamer is {streamer!r}; expected one with put and end, as transformers' TextStreamer")
        if streamer is not None and rows != 1:
            raise ValueError(f"streamer follows one answer, but {rows} questions were asked; ask one at a time")
        if not isinstance(details, bool):
            raise ValueError(f"details is {details!r}; expected True or False")
        return cls(length, _temperature(given.get("temperature", 0.0)), seed, streamer, details)

    @contextmanager
    def streaming(self, tokens_to_drop: list[int]) -> Iterator["_AnswerStream | None"]:
        """The streamer for `generate`; where the block fails, the stream is ended: its reader would wait for ever."""
        stream = None if self.streamer is None else _AnswerStream(self.streamer, tokens_to_drop)
        try:
            yield stream
        except BaseException:
            if stream is not None:
                stream.end()
            raise


def _whole(name: str, value, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number < 2**62:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return number


def _temperature(value) -> float:
    # A tensor or a NumPy number is a number too, a text that holds one is not.
    number = math.nan if isinstance(value, (bool, str, bytes)) else value
    try:
        number = float(number)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"temperature is {value!r}; expected a finite number of at least 0, and 0 draws nothing")
    return number


class TokenChooser(LogitsProcessor):
    """Stands last before the likeliest token is taken: refuses what is not finite, draws, and keeps scores.

    Drawing: the token with the largest logit + temperature x Gumbel noise is one drawn from softmax(logits /
    temperature). The noise comes from generators of this call alone, so that threads do not share any.
    """

    def __init__(self, how: Generation, rows: int):
        self.how = how
        drawn = rows if how.temperature else 0
        self.generators = [torch.Generator().manual_seed(how.seed + row) for row in range(drawn)]
        self.scores: list[torch.Tensor] = []  # (R,) of each token so far
        self._last: torch.Tensor | None = None  # (R, V) log probabilities of the token that is chosen next

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """input_ids: (R, T) new tokens so far. scores: (R, V) logits of the next. Raises ValueError for NaN."""
        # One number a row: minus infinity, which forbids a token, is allowed, but not for all of them.
        if not bool(torch.isfinite(scores.logsumexp(-1)).all()):
            raise ValueError(BROKEN.format(where=f"at token {input_ids.shape[1] + 1} of the answer"))
        if self.how.details:
            self._keep(input_ids)
            self._last = scores.log_softmax(-1)
        if not self.generators:
            return scores
        noise = [-torch.empty(scores.shape[1]).exponential_(generator=own).log() for own in self.generators]
        return scores + self.how.temperature * torch.stack(noise).to(scores)

    def _keep(self, ids: torch.Tensor) -> None:
        if self._last is not None:
            self.scores.append(self._last.gather(1, ids[:, -1:].to(self._last.device))[:, 0])

    def token_scores(self, sequences: torch.Tensor) -> torch.Tensor | None:
        """(R, T) log probabilities of generated sequences (R, T); None without details."""
        if not self.how.details:
            return None
        self._keep(sequences)
        self._last = None
        return torch.stack(self.scores, 1).float().cpu()


class _AnswerStream:
    """Hands on what belongs to the answer: not its begin, end and padding."""

    def __init__(self, streamer, drop: list[int]):
        self.streamer, self.drop, self.begun, self.ended = streamer, torch.tensor(drop), False, False

    def put(self, value: torch.Tensor) -> None:
        """value: (1, 0), the prompt, which is fed as embeddings; then (1,), a token each time."""
        if not self.begun:
            self.begun = True  # a streamer with skip_prompt=True passes over the first call
            self.streamer.put(value)
            return
        value = value[~torch.isin(value, self.drop)]
        if len(value):
            self.streamer.put(value)

    def end(self) -> None:
        """The answer is complete, or has failed; what is said once more is not handed on."""
        if not self.ended:
            self.ended = True
            self.streamer.end()
