"""The conversation template: turns to one text, and which characters of it are learned; and once more in Jinja."""

import json
from dataclasses import dataclass

from glamm_mini.model.config import PromptConfig
from glamm_mini.model.tokens import ADDED_TOKENS, BBOX, IM_END, IM_START, IMAGE

EOS = "</s>"


@dataclass
class Prompt:
    """A conversation as text."""

    text: str
    supervised: list[tuple[int, int]]  # (start, end) of every answer with its `</s>`, in characters
    shared: int = 0  # characters that all conversations about one image begin with, to the image's end
    begins: bool = True  # whether it is the beginning of a row, before which `<s>` stands


def render(prompt: PromptConfig, turns: list[tuple[str, str | None]], has_image: bool, begins: bool = True) -> Prompt:
    """Turns (question, answer) to a prompt; an answer of None, in the last turn only, ends it for generation.

    Official layout: system, blank, then per turn "USER: question ASSISTANT: answer</s>" with nothing in between, the
    line that introduces the image before the first question. begins: False for turns that follow others: no system.
    """
    if not turns or not is_conversation(turns):
        raise ValueError(f"{repr(turns)[:60]} holds no turn, or not of (question, answer) alone; give at least one")
    if has_image and prompt.image_line.count(IMAGE) != 1:
        raise ValueError(f"the prompt's image_line is {prompt.image_line!r}; expected one {IMAGE} in it")
    text = f"{prompt.system} " if prompt.system and begins else ""
    spans, shared = [], 0
    for k, (question, answer) in enumerate(turns):
        text += f"{prompt.user}: "
        if k == 0 and has_image:
            line = prompt.image_line.replace(IMAGE, IM_START + IMAGE + IM_END)
            shared = len(text) + line.index(IM_END) + len(IM_END)
            text += line
        text += f"{question} {prompt.assistant}:"
        if answer is None:
            if k != len(turns) - 1:
                raise ValueError(f"turn {k} of {len(turns)} has no answer; only the last turn may be open")
            break
        text += " "
        spans.append((len(text), len(text) + len(answer) + len(EOS)))
        text += answer + EOS
    return Prompt(text, spans, shared, begins)


def is_conversation(turns: object) -> bool:
    """Whether these are pairs of a question and its answer, or None where that is to come."""
    pairs = isinstance(turns, list | tuple) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns)
    return pairs and all(isinstance(q, str) and isinstance(a, str | None) for q, a in turns)


def plain_words(text: str, keep: tuple[str, ...] = (BBOX,)) -> str:
    """Text as a user typed it, made harmless: a special token in it becomes ordinary characters.

    "[SEG]" turns into "[ SEG ]", which reads the same and encodes as words. `keep`: tokens a user may use.
    """
    for token in (*ADDED_TOKENS, IMAGE, EOS, "<s>", "<unk>"):
        if token not in keep:
            text = text.replace(token, f"{token[0]} {token[1:-1]} {token[-1]}")
    return text


TEMPLATE = """\
{%- macro words(message) -%}
{%- if message.content is string -%}{{ message.content }}
{%- elif message.content is undefined or message.content is not sequence -%}
{{- raise_exception('a message has no content; expected text, or a list of parts') -}}
{%- else -%}
{%- for part in message.content if part.type != 'image' -%}
{{- part.text if part.type == 'text' and part.text is string else raise_exception('a part is no text or image') -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro pictures(message) -%}
{%- for part in message.content if part.type == 'image' -%}i{%- endfor -%}
{%- endmacro -%}
{%- set given = messages[0].role == 'system' -%}
{%- set system = words(messages[0]) if given else SYSTEM -%}
{{- system + ' ' if system else '' -}}
{{- raise_exception('there is no question') if given and messages | length == 1 else '' -}}
{%- for message in (messages[1:] if given else messages) -%}
{%- set wanted = 'user' if loop.index is odd else 'assistant' -%}
{{- raise_exception('the roles are not user and assistant in turn') if message.role != wanted else '' -}}
{%- if pictures(message) and (not loop.first or pictures(message) | length > 1) -%}
{{- raise_exception('a conversation is about one image, which its first question holds') -}}
{%- endif -%}
{%- if message.role == 'user' -%}
{{- USER + ': ' + (IMAGE if pictures(message) else '') + words(message) -}}
{%- else -%}
{{- ' ' + ASSISTANT + ': ' + words(message) + END -}}
{%- endif -%}
{%- endfor -%}
{{- ' ' + ASSISTANT + ':' if add_generation_prompt else '' -}}
"""


def chat_template(prompt: PromptConfig) -> str:
    """Jinja text for `apply_chat_template` that renders messages as `render` renders turns: the same ids.

    Messages have role "user", "assistant" or, once at the beginning, "system" (in place of the prompt's own), and
    text or a list of parts of type "text" and "image" as content.
    """
    line = prompt.image_line.replace(IMAGE, IM_START + IMAGE + IM_END)
    names = dict(SYSTEM=prompt.system, USER=prompt.user, ASSISTANT=prompt.assistant, IMAGE=line, END=EOS)
    return "".join(f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in names.items()) + TEMPLATE
