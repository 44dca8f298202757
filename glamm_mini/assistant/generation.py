"""How an answer is written: its length, drawn or greedy, streamed; and the watch over its numbers."""

import math
import operator
import secrets
from collections.abc import Iterable
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
        for name in options.keys() - Options.__annotations__.keys():
            raise TypeError(f"{name!r} is not an option; expected some of {', '.join(Options.__annotations__)}")
        given = {"max_new_tokens": default_length, "temperature": 0.0, "seed": secrets.randbits(62), "details": False}
        how = cls(**given | {name: value for name, value in options.items() if value is not None})
        length = _number("max_new_tokens", how.max_new_tokens, operator.index, 1, "a whole number of at least 1")
        seed = _number("seed", how.seed, operator.index, 0, "a whole number of at least 0")
        finite = "a finite number of at least 0, and 0 draws nothing"
        temperature = _number("temperature", how.temperature, float, 0, finite)
        if how.streamer is not None:
            put, is_class = getattr(how.streamer, "put", None), isinstance(how.streamer, type)
            if is_class or not callable(put) or not hasattr(how.streamer, "end"):
                wanted = "expected one with put and end, as transformers' TextStreamer"
                raise ValueError(f"streamer is {how.streamer!r}; {wanted}")
            if rows != 1:
                raise ValueError(f"streamer follows one answer, but {rows} questions were asked; ask one at a time")
        if not isinstance(how.details, bool):
            raise ValueError(f"details is {how.details!r}; expected True or False")
        return cls(length, temperature, seed, how.streamer, how.details)


def _number(name: str, value, convert, least: int, expected: str):
    """What `convert` makes of a number, of a tensor's and NumPy's too; ValueError for one under `least`, and others."""
    try:
        # A truth value is a number, and a text may hold one, but neither was meant.
        number = math.nan if isinstance(value, bool | str | bytes) else convert(value)
    except (TypeError, ValueError, ArithmeticError, RuntimeError):
        number = math.nan
    if not least <= number < (2**62 if convert is operator.index else math.inf):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
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

    def token_scores(self, sequences: torch.Tensor) -> torch.Tensor:
        """(R, T) log probabilities of generated sequences (R, T), asked for once; only with details."""
        self._keep(sequences)
        return torch.stack(self.scores, 1).float().cpu()


class AnswerStream:
    """Hands on to a streamer what belongs to the answer: not its begin, end and padding, `drop`."""

    def __init__(self, streamer, drop: Iterable[int]):
        self.streamer, self.drop, self.begun, self.ended = streamer, torch.tensor([*drop]), False, False

    def put(self, value: torch.Tensor) -> None:
        """value: (1, 0), the prompt, which is fed as embeddings; then (1,), a token each time."""
        # A streamer with skip_prompt=True passes over the first call, whatever it brings.
        value = value[~torch.isin(value, self.drop)] if self.begun else value
        if len(value) or not self.begun:
            self.streamer.put(value)
        self.begun = True

    def end(self) -> None:
        """The answer is complete, or has failed: without an end, its reader would wait for ever."""
        if not self.ended:
            self.ended = True
            self.streamer.end()
