"""The conversation template: turns to one text, and which characters of it are learned."""

from dataclasses import dataclass

from glamm_mini.model.config import PromptConfig
from glamm_mini.model.tokens import ADDED_TOKENS, BBOX, IM_END, IM_START, IMAGE

EOS = "</s>"


@dataclass
class Prompt:
    """A conversation as text.

    Attributes:
        text: the whole of it.
        supervised: (start, end) of every answer with its `</s>`, in characters.
        shared: length of the beginning that all conversations about one image have in common (to the image's end).
        begins: whether it is the beginning of a row, before which `<s>` stands.
    """

    text: str
    supervised: list[tuple[int, int]]
    shared: int = 0
    begins: bool = True


def render(prompt: PromptConfig, turns: list[tuple[str, str | None]], has_image: bool, begins: bool = True) -> Prompt:
    """Turns (question, answer) to a prompt; an answer of None, in the last turn only, ends it for generation.

    Official layout: system, blank, then per turn "USER: question ASSISTANT: answer</s>" with nothing in between.
    The line that introduces the image stands before the first question. begins: False for turns that follow others,
    without the system's words.
    """
    if not turns:
        raise ValueError("the conversation has no turn; give at least one (question, answer)")
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


def plain_words(text: str, keep: tuple[str, ...] = (BBOX,)) -> str:
    """Text as a user typed it, made harmless: a special token in it becomes ordinary characters.

    "[SEG]" turns into "[ SEG ]", which reads the same and encodes as words. `keep`: tokens a user may use.
    """
    for token in (*ADDED_TOKENS, IMAGE, EOS, "<s>", "<unk>"):
        if token not in keep:
            text = text.replace(token, f"{token[0]} {token[1:-1]} {token[-1]}")
    return text
