"""The conversation template once more, as the Jinja text that transformers' `apply_chat_template` renders."""

import json

from glamm_mini.model.config import PromptConfig
from glamm_mini.model.tokens import IM_END, IM_START, IMAGE
from glamm_mini.processing.prompts import EOS

TEMPLATE = """\
{%- macro words(message) -%}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro pictures(message) -%}
{%- if message.content is not string -%}
{%- for part in message.content if part.type == 'image' -%}i{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set given = messages[0].role == 'system' -%}
{%- set system = words(messages[0]) if given else SYSTEM -%}
{{- system + ' ' if system else '' -}}
{%- for message in (messages[1:] if given else messages) -%}
{%- set wanted = 'user' if loop.index is odd else 'assistant' -%}
{%- if message.role != wanted -%}
{{- raise_exception('the role is ' + message.role + '; expected user and assistant in turn') -}}
{%- endif -%}
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
    """Jinja text that renders messages as `prompts.render` renders turns: the same ids for the same conversation.

    Messages have role "user", "assistant" or, once at the beginning, "system" (in place of the prompt's own), and
    text or a list of parts of type "text" and "image" as content.
    """
    line = prompt.image_line.replace(IMAGE, IM_START + IMAGE + IM_END)
    names = dict(SYSTEM=prompt.system, USER=prompt.user, ASSISTANT=prompt.assistant, IMAGE=line, END=EOS)
    return "".join(f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in names.items()) + TEMPLATE
