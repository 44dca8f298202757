"""A chat as HTML and as one picture: its turns below one another, the photo repeated only where it tells something."""

from dataclasses import replace

from PIL import Image

from glamm_mini.visuals.answer_html import answer_html
from glamm_mini.visuals.answer_png import PAPER, answer_png


def shown_turns(turns: list) -> list:
    """A chat's answers, at least one; those with neither masks nor boxes lose their picture, except the first."""
    return [
        turn if k == 0 or turn.phrases or turn.boxes is not None else replace(turn, image=None)
        for k, turn in enumerate(turns)
    ]


def chat_html(turns: list) -> str:
    """The turns as HTML that stands alone, with a thin line between them."""
    line = '<hr style="border:0;border-top:1px solid #8886;margin:10px 0;max-width:1040px">'
    return f"<div>{line.join(answer_html(turn) for turn in shown_turns(turns))}</div>"


def chat_png(turns: list, width: int = 1200) -> Image.Image:
    """The turns in one picture, `width` pixels wide. Raises ValueError if width is under 320."""
    cards = [answer_png(turn, width) for turn in shown_turns(turns)]
    sheet = Image.new("RGB", (width, sum(card.height for card in cards)), PAPER)
    top = 0
    for card in cards:
        sheet.paste(card, (0, top))
        top += card.height
    return sheet
