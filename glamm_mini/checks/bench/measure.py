"""How benchmarks measure: two ways to compute one thing, taken in turns, and what is reported about them."""

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track


@dataclass(frozen=True)
class Setting:
    """Under what conditions a benchmark runs; `size` is a model's size, or None for the benchmark's own."""

    repeats: int
    threads: int
    device: torch.device
    dtype: torch.dtype
    size: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the report, with the device's name and torch's version."""
        gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if gpu else str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": self.threads,
            "repeats": self.repeats,
            "torch": torch.__version__,
        }


@dataclass
class Measured:
    """One measured thing: `ours` and, where there are two ways, `plain`, a value for each repeat; and how far apart the
    results were at most. Of times the ratio is plain / ours: how many times faster ours is."""

    unit: str
    ours: list[float]
    plain: list[float] = field(default_factory=list)
    difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Minimum and median of both ways, and the ratio of each."""
        out = {"unit": self.unit, "ours": _least_and_middle(self.ours)}
        if self.plain:
            out["plain"] = _least_and_middle(self.plain)
            out["ratio"] = {key: out["plain"][key] / out["ours"][key] for key in out["ours"]}
        if self.difference is not None:
            out["difference"] = self.difference
        return out


@dataclass
class Report:
    """All rows of one benchmark by name, the conditions, and remarks in words."""

    name: str
    setting: dict[str, Any]
    rows: dict[str, Measured] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """{name: {"setting": ..., "rows": {...}, "notes": [...]}}, ready for JSON."""
        rows = {name: row.as_dict() for name, row in self.rows.items()}
        return {self.name: {"setting": self.setting, "rows": rows, "notes": self.notes}}


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """How long a call takes, the device's own work included, and what it returns."""
    _wait(device)
    start = time.perf_counter()
    out = function()
    _wait(device)
    return time.perf_counter() - start, out


def repeated(what: str, function: Callable[[], Any], setting: Setting) -> tuple[list[float], Any]:
    """Seconds of each repeat, and the last result; call it once before: a first call is slow."""
    times = []
    for _ in _shown(what, setting.repeats):
        spent, out = seconds(function, setting.device)
        times.append(spent)
    return times, out


def paired(what: str, plain: Callable[[], Any], ours: Callable[[], Any], setting: Setting):
    """Both in turns, so that other work of the machine slows both; call each once before.

    Returns (seconds of plain, seconds of ours, result of plain, result of ours).
    """
    slow, fast = [], []
    for _ in _shown(what, setting.repeats):
        spent, first = seconds(plain, setting.device)
        slow.append(spent)
        spent, second = seconds(ours, setting.device)
        fast.append(spent)
    return slow, fast, first, second


def memory_of(function: Callable[[], Any], device: torch.device) -> float | None:
    """The most bytes that a call holds beyond those held before it; None where the system does not tell.

    On a CPU this is the whole process's memory, by Linux's own count. What earlier calls have freed is given back to
    the system first: memory that malloc keeps would be taken again without being counted.
    """
    try:
        before = _forget_peak(device)
        function()
        return max(0.0, peak_bytes(device) - before)
    except OSError:
        return None


def peak_bytes(device: torch.device) -> float:
    """The most bytes held since the last look by `memory_of`, or ever. Raises OSError where the system tells none."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _of_process("VmHWM")


def _forget_peak(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc has it, musl not
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # proc(5): sets the peak back to what is held now
    return _of_process("VmRSS")


def _of_process(name: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return 1024.0 * int(lines[name].split()[0])


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _shown(what, repeats):
    return track(range(repeats), f"bench {what}", console=Console(stderr=True), transient=True)


def _least_and_middle(values):
    return {"min": min(values), "median": statistics.median(values)}
