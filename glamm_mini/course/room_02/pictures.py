"""Tokens as a strip of cards, colored by who says them; a bar below a card says that the model learns to write it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image

from glamm_mini.assistant.requests import unknown_words
from glamm_mini.course.drawing.diagram import BLUE, GRAY, GREEN, INK, LINE, ORANGE, PURPLE, QUIET, Diagram
from glamm_mini.model.tokens import (
    ADDED_TOKENS,
    IGNORE_INDEX,
    IM_END,
    IM_START,
    IMAGE,
    IMAGE_TOKEN_INDEX,
    PHRASE_START,
    SEG,
)
from glamm_mini.processing.processor import GlammProcessor
from glamm_mini.processing.prompts import plain_words
from glamm_mini.processing.tags import parse_grounded
from glamm_mini.visuals.palette import RGB, color

ROLES: dict[str, RGB] = {"system": GRAY, "user": PURPLE, "image": BLUE, "answer": ORANGE, "special": GREEN}
"""Who a token belongs to; "special" are those that stand for no word: begin, end, phrase tags, `[SEG]`, `<bbox>`."""

TYPED = ("question", "question, unguarded", "answer")
"""What a typed sentence is taken for in `typed_tokens`."""

_MARGIN, _GAP = 20, 10


class Token(NamedTuple):
    """One token of a conversation. role: of ROLES. learned: it has a label. number: its id. color: instead of that of
    its role, such as the color of a mask."""

    text: str
    role: str
    learned: bool
    number: int
    color: RGB | None = None


def read_tokens(processor: GlammProcessor, turns: list[tuple[str, str | None]], has_image: bool = True) -> list[Token]:
    """The tokens of a conversation as the model is fed them, with who says them and whether they are learned."""
    ids, labels = processor.encode(turns, has_image)
    tokenizer, system = processor.tokenizer, processor.config.prompt.system
    begins = len(tokenizer(f"{system} ").input_ids) if system else 1
    image = {IMAGE_TOKEN_INDEX, *tokenizer.convert_tokens_to_ids([IM_START, IM_END])}
    special = {*tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS)), *tokenizer.all_special_ids} - image
    found = []
    for at, (number, label) in enumerate(zip(ids, labels, strict=True)):
        learned = label != IGNORE_INDEX
        role = "answer" if learned else "system" if at < begins else "user"
        role = "image" if number in image else "special" if number in special else role
        text = IMAGE if number == IMAGE_TOKEN_INDEX else tokenizer.convert_ids_to_tokens(number)
        found.append(Token(text, role, learned, number))
    return found


def by_phrase(tokens: Sequence[Token]) -> list[Token]:
    """The tokens in gray, those from a phrase's `<p>` to its `[SEG]` in the color of mask k, for the k-th `[SEG]`."""
    out, begins, masks = [token._replace(color=GRAY) for token in tokens], None, 0
    for at, token in enumerate(tokens):
        if token.text == PHRASE_START:
            begins = at
        elif token.text == SEG:
            begins = at if begins is None else begins
            out[begins : at + 1] = [t._replace(color=color(masks)) for t in tokens[begins : at + 1]]
            begins, masks = None, masks + 1
    return out


def token_strip(
    tokens: Sequence[Token], width: int = 1600, size: float = 27, numbers: bool = False, legend: bool = True
) -> Image.Image:
    """The tokens in reading order, in lines. A dark bar below: learned. numbers: also write the ids below."""
    ruler = Diagram(10, 10)
    widths = [_width(ruler, token, size, numbers) for token in tokens]
    lines, x = [[]], _MARGIN
    for token, wide in zip(tokens, widths, strict=True):
        if x + wide > width - _MARGIN and lines[-1]:
            lines.append([])
            x = _MARGIN
        lines[-1].append((token, x, wide))
        x += wide + _GAP
    pitch = size * (3.5 if numbers else 2.6)
    keys = _legend_rows(ruler, tokens, width) if legend else []
    diagram = Diagram(width, round(_MARGIN + pitch * len(lines) + 46 * len(keys)))
    for row, line in enumerate(lines):
        top = _MARGIN + row * pitch
        for token, left, wide in line:
            box = (left, top, left + wide, top + 1.6 * size)
            diagram.card(box, token.color or ROLES[token.role], 0.32, width=3, radius=8)
            diagram.words((left + wide / 2, top + 0.8 * size), token.text, size, token.role == "special", anchor="mm")
            if token.learned:
                diagram.card((left + 2, top + 1.72 * size, left + wide - 2, top + 1.94 * size), INK, 1.0, 0, 3)
            if numbers:
                middle = (left + wide / 2, top + 2.5 * size)
                diagram.words(middle, str(token.number), 0.85 * size, ink=QUIET, anchor="mm")
    for row, keys_of_row in enumerate(keys):
        _draw_legend(diagram, keys_of_row, _MARGIN + pitch * len(lines) + 46 * row + 12)
    return diagram.finish()


def shift_strip(tokens: Sequence[Token], width: int = 1600, size: float = 27) -> Image.Image:
    """Above each arrow the token that the model reads last, below it the token that the loss asks for there.

    Pale: the loss does not ask. The last token is read but asks for nothing, so it has no column of its own.
    """
    ruler, pad = Diagram(10, 10), 0.4 * size
    pairs, lines, x = list(zip(tokens, tokens[1:], strict=False)), [[]], _MARGIN + 110
    for read, asked in pairs:
        wide = max(ruler.length(t.text, size, True) for t in (read, asked)) + 2 * pad
        if x + wide > width - _MARGIN:
            lines.append([])
            x = _MARGIN + 110
        lines[-1].append((read, asked, x, wide))
        x += wide + _GAP
    pitch = 6.6 * size
    diagram = Diagram(width, round(_MARGIN + pitch * len(lines)))
    for row, line in enumerate(lines):
        top = _MARGIN + row * pitch
        diagram.words((_MARGIN, top + 0.8 * size), "reads", size, ink=QUIET)
        diagram.words((_MARGIN, top + 4.4 * size), "asked", size, ink=QUIET)
        for read, asked, left, wide in line:
            middle = left + wide / 2
            cards = ((read, top, 0.32, True), (asked, top + 3.6 * size, 0.32 if asked.learned else 0.04, asked.learned))
            for token, y, strength, dark in cards:
                frame = token.color or ROLES[token.role] if dark else GRAY
                diagram.card((left, y, left + wide, y + 1.6 * size), frame, strength, width=3 if dark else 1, radius=8)
                ink = INK if dark else QUIET
                diagram.words((middle, y + 0.8 * size), token.text, size, token.role == "special", ink, anchor="mm")
            if asked.learned:
                diagram.arrow([(middle, top + 1.8 * size), (middle, top + 3.45 * size)], LINE)
    return diagram.finish()


def typed_tokens(processor: GlammProcessor, width: int = 620) -> Callable[[dict], tuple[Image.Image, str]]:
    """What a `PictureExplorer` draws: the tokens of choice["text"], taken for choice["as"] (of TYPED), and how many of
    them are learned."""

    def draw(choice: dict) -> tuple[Image.Image, str]:
        text, kind = choice["text"].strip(), choice["as"]
        if kind == "answer":
            turns = [("What do you see?", text)]
        else:
            turns = [(plain_words(text) if kind == "question" else text, "Yes.")]
        tokens = read_tokens(processor, turns)
        asking = sum(token.number == processor.config.tokens.seg for token in tokens)
        said = [f"As {kind}: {len(tokens)} tokens, {sum(token.learned for token in tokens)} of them learned"]
        said.append(f"{SEG} that the model reads as a token: {asking}")
        if kind == "answer":
            parsed = parse_grounded(text)
            said += [f"phrases: {', '.join(p.text or 'none' for p in parsed.phrases)}"] if parsed.phrases else []
            said += parsed.notes
        spelled = unknown_words(processor.tokenizer, text) if kind == "question" else []
        said += [f"spelled in pieces: {', '.join(spelled)}"] if spelled else []
        return token_strip(tokens, width, 24), "\n".join(said)

    return draw


def _width(ruler: Diagram, token: Token, size: float, numbers: bool) -> float:
    own = ruler.length(token.text, size, token.role == "special")
    return max(own, ruler.length(str(token.number), 0.85 * size) if numbers else 0) + 0.8 * size


def _legend_rows(ruler: Diagram, tokens: Sequence[Token], width: int) -> list[list[tuple[str, RGB]]]:
    """The roles that occur, and what the bar means, in rows that fit."""
    used = [(role, shade) for role, shade in ROLES.items() if any(t.role == role and not t.color for t in tokens)]
    keys = used + ([("learned", INK)] if any(t.learned for t in tokens) else [])
    rows, x = [[]], _MARGIN
    for name, shade in keys:
        wide = ruler.length(name, 24) + 70
        if x + wide > width and rows[-1]:
            rows.append([])
            x = _MARGIN
        rows[-1].append((name, shade))
        x += wide
    return [row for row in rows if row]


def _draw_legend(diagram: Diagram, keys: Sequence[tuple[str, RGB]], top: float) -> None:
    x = _MARGIN
    for name, shade in keys:
        if name == "learned":
            diagram.card((x, top + 10, x + 28, top + 16), shade, 1.0, 0, 3)
        else:
            diagram.card((x, top, x + 28, top + 26), shade, 0.32, 3, 6)
        diagram.words((x + 38, top + 13), name, 24, ink=QUIET)
        x += diagram.length(name, 24) + 70
