"""What a notebook's training must reach: a band, stated on the page, checked whenever the page is run."""

import json
import os

RECORD = "GLAMM_BANDS"
"""Environment variable: a file to which every checked figure is added, one JSON line each (`make bands` sets it)."""


def band(name: str, value: float, low: float, high: float) -> str:
    """Assert that a figure lies in its band, ends included; returns a line that says so.

    Raises AssertionError outside the band (also for not-a-number), naming the figure and the band.
    """
    value = float(value)
    if os.environ.get(RECORD):
        with open(os.environ[RECORD], "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": value, "low": low, "high": high}) + "\n")
    assert low <= value <= high, f"{name} is {value:.3g}, outside of {low:g} to {high:g}: something is wrong here"
    return f"✓ {name}: {value:.3g}, between {low:g} and {high:g}"
