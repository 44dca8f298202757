"""GLaMM in small: a model that answers in words and pixels, as a library you can read and a course you can run.

    import glamm_mini

    glamm = glamm_mini.load("tiny")
    answer = glamm.describe("picture.png")
    answer.save("answer.png")

The public names below are imported when first used, so that `import glamm_mini` itself takes no time.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glamm_mini.assistant.answer import Chat, GroundedAnswer, GroundedPhrase
    from glamm_mini.assistant.assistant import Assistant, load
    from glamm_mini.assistant.requests import Request
    from glamm_mini.model.config import GlammConfig
    from glamm_mini.model.glamm import GlammForConditionalGeneration
    from glamm_mini.processing.processor import GlammProcessor

__version__ = "0.1.0"

_HOMES = {
    "load": "glamm_mini.assistant.assistant",
    "Assistant": "glamm_mini.assistant.assistant",
    "Chat": "glamm_mini.assistant.answer",
    "GroundedAnswer": "glamm_mini.assistant.answer",
    "GroundedPhrase": "glamm_mini.assistant.answer",
    "Request": "glamm_mini.assistant.requests",
    "GlammConfig": "glamm_mini.model.config",
    "GlammForConditionalGeneration": "glamm_mini.model.glamm",
    "GlammProcessor": "glamm_mini.processing.processor",
}

__all__ = [
    "Assistant", "Chat", "GlammConfig", "GlammForConditionalGeneration", "GlammProcessor", "GroundedAnswer",
    "GroundedPhrase", "Request", "__version__", "load",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"glamm_mini has no name {name!r}; it offers {', '.join(sorted(_HOMES))}")
    globals()[name] = value = resolve_name(f"{_HOMES[name]}:{name}")
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
