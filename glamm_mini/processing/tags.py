"""Tagged answers: "<p> a red kite </p> [SEG] over the sea." to a clean caption and its phrases, and back."""

import re
from dataclasses import dataclass, field

from glamm_mini.model.tokens import PHRASE_END, PHRASE_START, SEG

_TAG = re.compile(f"({re.escape(PHRASE_START)}|{re.escape(PHRASE_END)}|{re.escape(SEG)})")
_NO_MASK = "a phrase is not followed by a [SEG], and so has no mask"


@dataclass
class PhraseSpan:
    """A phrase and where it stands in the caption; text "" and span None for a [SEG] that has no phrase."""

    text: str
    span: tuple[int, int] | None


@dataclass
class GroundedText:
    """caption: tags removed, runs of blanks joined, no blank before . , ; : ! ?
    phrases: one per [SEG], in order. notes: what was wrong with the tags, in words for the reader."""

    caption: str
    phrases: list[PhraseSpan] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse_grounded(text: str) -> GroundedText:
    """Read a tagged answer. Never fails: unbalanced tags are taken as far as they make sense, and noted."""
    caption, notes, phrases = _Caption(), [], []
    is_open, closed = False, None  # closed: span of the last phrase that still waits for its [SEG]
    for piece in _TAG.split(text):
        if piece == PHRASE_START:
            if is_open:
                notes.append("a phrase was opened inside another; the first was never closed")
            notes += [_NO_MASK] if closed else []
            caption.open_phrase()
            is_open, closed = True, None
        elif piece == PHRASE_END:
            if not is_open:
                notes.append("a phrase was closed that was never opened")
            closed = caption.phrase_span() if is_open else closed
            is_open = False
        elif piece == SEG:
            if is_open:
                notes.append("a [SEG] stands inside a phrase that was not closed")
                closed, is_open = caption.phrase_span(), False
            phrases.append(PhraseSpan(caption.text[slice(*closed)] if closed else "", closed))
            closed = None
        else:
            caption.append(piece)
    if is_open:
        notes.append("the last phrase was not closed")
    notes += [_NO_MASK] if closed else []
    return GroundedText(caption.text, phrases, notes)


class _Caption:
    """Text that grows piece by piece; a blank at its end is kept back until a word follows it."""

    def __init__(self):
        self.text, self.blank, self.start = "", False, None  # start: of the phrase that was opened last

    def append(self, piece: str) -> None:
        words = re.sub(r" ([.,;:!?])", r"\1", re.sub(r"\s+", " ", piece))
        body = words.strip(" ")
        if not body:
            self.blank = self.blank or bool(words)
            return
        if (self.blank or words.startswith(" ")) and self.text and body[0] not in ".,;:!?":
            self.text += " "
        self.start = len(self.text) if self.start is None else self.start
        self.text += body
        self.blank = words.endswith(" ")

    def open_phrase(self) -> None:
        # Between a word and a phrase there is always a blank in the caption, whatever the model wrote. Where the
        # phrase starts is known with its first word only: no blank is put before a comma.
        self.blank, self.start = True, None

    def phrase_span(self) -> tuple[int, int] | None:
        return None if self.start is None else (self.start, len(self.text))


def tag_phrases(caption: str, spans: list[tuple[int, int]]) -> str:
    """Put "<p> phrase </p> [SEG]" around each (start, end) of the caption. Spans must not overlap (ValueError)."""
    out, at = "", 0
    for start, end in spans:
        if not at <= start < end <= len(caption):
            raise ValueError(
                f"span {(start, end)} overlaps the one before it, is empty or lies outside a caption of "
                f"{len(caption)} characters; give spans in order"
            )
        out += f"{caption[at:start]}{PHRASE_START} {caption[start:end]} {PHRASE_END} {SEG}"
        at = end
    return out + caption[at:]
