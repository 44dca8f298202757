"""The answer as a piece of HTML that stands alone: picture beside sentence, phrases in the colors of their masks.

All colors are inline, for public notebook viewers strip style sheets. Where style sheets are kept, pointing at a
phrase lights up its mask and pointing at a mask lights up its phrase; no script is needed.
"""

import hashlib
from html import escape

from glamm_mini.visuals.answer_png import overlay_of
from glamm_mini.visuals.encode import data_url
from glamm_mini.visuals.overlay import mask_path, shown_ratio
from glamm_mini.visuals.palette import color, hex_color, ink_on
from glamm_mini.visuals.sentence import Run, loose_phrases, question_words, sentence_runs

LONG_SIDE = 640
WIDE = 1.9
"""Pictures with a larger width/height than this take the whole width, the sentence goes below."""

SHORT = 26
"""Phrases of at most this many letters are kept on one line."""


def answer_html(answer) -> str:
    """The answer as HTML. answer: a GroundedAnswer, or anything with its fields; `image` may be None."""
    scope = "glamm-" + hashlib.sha256(f"{answer.text}|{answer.question}".encode()).hexdigest()[:10]
    wide = answer.image is not None and shown_ratio(answer.image) > WIDE
    picture = "" if answer.image is None else _picture(answer, wide)
    return (
        f"{_hover_style(scope, len(answer.phrases))}"
        f'<div class="{scope}" style="display:flex;flex-wrap:wrap;align-items:center;gap:20px 28px;max-width:1040px;'
        f'padding:10px 2px;font-family:system-ui,-apple-system,Segoe UI,DejaVu Sans,sans-serif;font-size:17px">'
        f'{picture}<div style="flex:1 1 {"100%" if wide else "280px"};min-width:0;line-height:2.05;'
        f'overflow-wrap:anywhere">{_words(answer)}</div></div>'
    )


def answer_page(answers, title: str = "GLaMM") -> str:
    """A whole HTML document with one answer or several; follows the reader's light or dark setting."""
    body = "\n<hr style='border:0;border-top:1px solid #8884;margin:28px 0'>\n".join(answer_html(a) for a in answers)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>:root{{color-scheme:light dark}}body{{margin:36px auto;max-width:1060px;padding:0 20px}}</style>"
        f"</head>\n<body>\n{body}\n</body></html>\n"
    )


def chat_html(answers) -> str:
    """The turns of a chat as HTML that stands alone, with a thin line between them."""
    line = '<hr style="border:0;border-top:1px solid #8886;margin:10px 0;max-width:1040px">'
    return f"<div>{line.join(map(answer_html, answers))}</div>"


def _picture(answer, wide: bool) -> str:
    """The image with its masks; above it one invisible area a mask that reacts to the pointer."""
    ratio = shown_ratio(answer.image)
    size = (round(LONG_SIDE * min(1, ratio)), round(LONG_SIDE * min(1, 1 / ratio)))
    alt = escape(f"The picture with {len(answer.phrases)} masks: {answer.caption}")
    basis = "100%" if wide else f"{min(460, round(440 * ratio))}px"
    return (
        f'<div style="position:relative;flex:0 1 {basis};line-height:0;overflow:hidden;border-radius:10px">'
        f'<img src="{data_url(overlay_of(answer, size))}" alt="{alt}" '
        f'style="width:100%;height:auto;display:block;margin:0;border-radius:10px">{_areas(answer)}</div>'
    )


def _areas(answer) -> str:
    # Small masks lie above large ones, as in the picture.
    order = sorted(enumerate(answer.phrases), key=lambda numbered: -int(numbered[1].mask.sum()))
    paths = {i: path for i, phrase in order if (path := mask_path(phrase.mask))}
    if not paths:
        return ""
    shades = "".join(
        f'<path class="shade s{i}" d="M0 0H1000V1000H0Z{path}" fill="#000" fill-opacity="0.62" fill-rule="evenodd" '
        f'opacity="0" pointer-events="none"/>'
        for i, path in paths.items()
    )
    areas = "".join(
        f'<path class="m{i}" d="{path}" fill="#fff" fill-opacity="0" fill-rule="evenodd"/>' for i, path in paths.items()
    )
    return (
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true" '
        f'style="position:absolute;left:0;top:0;width:100%;height:100%">{shades}{areas}</svg>'
    )


def _words(answer) -> str:
    runs, loose = sentence_runs(answer), loose_phrases(answer)
    quiet = "opacity:{};font-size:{}px;line-height:1.5;margin-{}:6px"
    lines = [
        (quiet.format(".62", 14, "bottom"), escape(question_words(answer))),
        ("", "".join(_run(answer, run) for run in runs)),
        ("", " ".join(_run(answer, run) for run in loose)),
        ("opacity:.62", "" if runs or loose else "(no words)"),
        *((quiet.format(".72", 13, "top"), f"Note: {escape(note)}") for note in answer.notes or []),
    ]
    styled = [(f' style="{style}"' if style else "", words) for style, words in lines if words]
    return "".join(f"<div{style}>{words}</div>" for style, words in styled)


def _run(answer, run: Run) -> str:
    if run.phrase is None:
        return escape(run.text)
    phrase, rgb = answer.phrases[run.phrase], color(run.phrase)
    paint, title = "", "no pixel was found for this phrase"
    if phrase.mask.any():
        paint = f"background-color:{hex_color(rgb)};color:{hex_color(ink_on(rgb))};"
        title = f"score {phrase.score:.2f}, {phrase.mask.mean():.1%} of the picture"
    wrap = "white-space:nowrap;" if len(run.text) <= SHORT else ""
    return (
        f'<span class="p{run.phrase}" title="{escape(title)}" style="{paint}border:2px solid {hex_color(rgb)};'
        f"border-radius:8px;padding:2px 7px;box-decoration-break:clone;-webkit-box-decoration-break:clone;"
        f'{wrap}cursor:default">{escape(run.text)}</span>'
    )


def _hover_style(scope: str, count: int) -> str:
    """The extra for viewers that keep style sheets: everything else grows dark, the phrase gets a ring."""
    if not count:
        return ""
    rules = [f".{scope} .shade{{transition:opacity .15s}}"]
    for i in range(count):
        pointed = f".{scope}:has(.p{i}:hover,.m{i}:hover)"
        rules.append(f"{pointed} .s{i}{{opacity:1}}{pointed} .p{i}{{box-shadow:0 0 0 3px #999}}")
    return f"<style>{''.join(rules)}</style>"
