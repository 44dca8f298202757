"""Options of a recipe itself, given as `--set NAME=VALUE` beside the settings of the trainer."""


def split(overrides: list[str], names: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """The overrides that set one of `names`, as a dict, and all others, for TrainSettings."""
    own = dict(o.split("=", 1) for o in overrides if o.split("=", 1)[0] in names and "=" in o)
    return own, [o for o in overrides if o.split("=", 1)[0] not in own]


def whole(own: dict[str, str], name: str, default: int) -> int:
    """The option as a whole number. Raises ValueError that names it for anything else."""
    text = own.get(name, str(default))
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; expected a whole number, 0 or more")
    return int(text)


def number(own: dict[str, str], name: str, default: float) -> float:
    """The option as a number. Raises ValueError that names it for anything else."""
    text = own.get(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; expected a number") from None


def truth(own: dict[str, str], name: str, default: bool) -> bool:
    """The option as true or false. Raises ValueError that names it for anything else."""
    text = own.get(name, str(default)).lower()
    if text not in ("true", "false"):
        raise ValueError(f"{name} is {text!r}; expected true or false")
    return text == "true"
