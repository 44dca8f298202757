"""Tagged answers: "<p> a red kite </p> [SEG] over the sea." to a clean caption and its phrases, and back."""

import re
from dataclasses import dataclass, field

from glamm_mini.text.tokens import PHRASE_END, PHRASE_START, SEG

_TAG = re.compile(f"({re.escape(PHRASE_START)}|{re.escape(PHRASE_END)}|{re.escape(SEG)})")


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
    is_open, start, closed = False, 0, None  # closed: span of the last phrase that still waits for its [SEG]
    for piece in _TAG.split(text):
        if piece == PHRASE_START:
            if is_open:
                notes.append("a phrase was opened inside another; the first was never closed")
            is_open, start = True, caption.next_start()
        elif piece == PHRASE_END:
            if not is_open:
                notes.append("a phrase was closed that was never opened")
            closed = caption.span_from(start) if is_open else closed
            is_open = False
        elif piece == SEG:
            if is_open:
                notes.append("a [SEG] stands inside a phrase that was not closed")
                closed, is_open = caption.span_from(start), False
            phrases.append(PhraseSpan(caption.text[slice(*closed)] if closed else "", closed))
            closed = None
        else:
            caption.append(piece)
    if is_open:
        notes.append("the last phrase was not closed")
    return GroundedText(caption.text, phrases, notes)


class _Caption:
    """Text that grows piece by piece; a blank at its end is kept back until a word follows it."""

    def __init__(self):
        self.text, self.blank = "", False

    def append(self, piece: str) -> None:
        words = re.sub(r"\s+", " ", piece)
        words = re.sub(r" ([.,;:!?])", r"\1", words)
        body = words.strip(" ")
        if not body:
            self.blank = self.blank or bool(words)
            return
        if (self.blank or words.startswith(" ")) and self.text and body[0] not in ".,;:!?":
            self.text += " "
        self.text += body
        self.blank = words.endswith(" ")

    def next_start(self) -> int:
        # Between a word and a phrase there is always a blank in the caption, whatever the model wrote.
        self.blank = self.blank or bool(self.text)
        return len(self.text) + (1 if self.text else 0)

    def span_from(self, start: int) -> tuple[int, int] | None:
        return (start, len(self.text)) if start < len(self.text) else None


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
