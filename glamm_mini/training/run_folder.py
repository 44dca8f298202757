"""The folder of a run: free or ours before anything is written into it, and one training at a time.

Imports no torch, so that a command can refuse a folder before it starts up.
"""

import json
import math
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LAST, MANIFEST, SETTINGS = "last", "checkpoint.json", "settings.json"
LOCK = "run.lock"  # held while a training writes; it stays as the mark of a folder that a run has made

# Settings that a resumed run may change: they do not touch what is learned (sharding: beyond the last digits) ...
FREE_ON_RESUME = frozenset(
    "save_every validate_every log_every workers threads tensorboard cpu shard "
    "gradient_checkpointing timeout_minutes".split()
)
# ... and these, as long as their product stays: the same samples make up each step.
SAMPLES_PER_STEP = ("batch_size", "accumulation", "processes")

_LOCKED_BYTE = 1 << 20  # behind the words in the file: Windows lets nobody read what is locked
_holders: dict[str, int] = {}  # real path -> thread: the system's locks do not tell threads apart


def check_free(out: Path | str, resume: bool) -> None:
    """Raises ValueError if a run cannot begin in `out`, which may be missing: for a file in its place, for files that
    no run has made, and for a run if it is not to be resumed."""
    out = Path(out)
    if out.is_file():
        raise ValueError(f"{out} is a file; a run needs a folder: choose another name")
    held = sorted(path.name for path in out.glob("[!.]*"))
    if held and not (out / LOCK).exists():
        names = ", ".join(held[:3])
        raise ValueError(f"{out} holds {names}, which no training of ours has written: choose a new or an empty folder")
    if any((out / LAST).glob("*")) and not resume:
        step = "unknown"
        with suppress(ValueError):
            step = read_manifest(out)["step"]
        raise ValueError(
            f"{out} already holds a run, saved at step {step}. "
            "Resume it (resume=True, --resume), choose another folder, or delete this one"
        )


def first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started; there may be no other."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def claimed(out: Path | str, resume: bool) -> Iterator[None]:
    """Inside, no other training can write into `out`, which is made if it is missing; may be nested in one thread.

    The operating system holds the lock, which ends with the process. Where a file system has none, a note says so.
    Raises ValueError: another training writes into the folder (it says which), or what `check_free` refuses.
    """
    out = Path(out)
    check_free(out, resume)  # before anything is written
    made = not out.exists()
    key, me = os.path.realpath(out), threading.get_ident()
    if _holders.get(key) == me:
        yield
        return
    if _holders.setdefault(key, me) != me:
        raise ValueError(_busy(out, f"process {os.getpid()}, another thread"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / LOCK, "a+", encoding="utf-8", errors="replace") as lock:  # closing it ends the lock
            try:
                if not lock_alone(lock):
                    lock.seek(0)
                    raise ValueError(_busy(out, lock.read().strip()))
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                lock.flush()
                check_free(out, resume)  # again: another run may have come and gone in between
                yield
            finally:
                if made and sorted(path.name for path in out.iterdir()) == [LOCK]:
                    with suppress(OSError):
                        shutil.rmtree(out)  # an error came before the run began
    finally:
        del _holders[key]


def check_same_run(out: Path, wanted: dict[str, Any]) -> None:
    """Compares what a run is (settings, processes, number of samples, data) with what `out` says that it was. Raises
    ValueError if something differs that changes what is learned; the text names each with both values."""
    path = out / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot resume: {path} cannot be read ({error})") from None
    wanted = json.loads(json.dumps(wanted))  # tuples as lists
    products = {math.prod(int(run.get(name, 1)) for name in SAMPLES_PER_STEP) for run in (stored, wanted)}
    free = FREE_ON_RESUME.union(SAMPLES_PER_STEP if len(products) == 1 else ())
    names = sorted((stored.keys() | wanted.keys()) - free)
    differing = [
        f"{name} was {stored.get(name)!r}, now {wanted.get(name)!r}"
        for name in names
        if stored.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"cannot resume {out} as another run: {'; '.join(differing)}. "
            "Resume it as it began, with the same settings and data, or start anew in another folder"
        )


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of `out/last`. Raises ValueError for a file that is missing, cut short or unreadable."""
    folder = out / LAST
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = manifest["files"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(damaged(folder, f"{MANIFEST} cannot be read ({error})")) from None
    for name, size in sizes.items():
        if not (folder / name).exists() or (folder / name).stat().st_size != size:
            raise ValueError(damaged(folder, f"{name} is missing or does not have its {size} bytes"))
    return manifest


def damaged(folder: Path, what: str) -> str:
    """What an error says of a checkpoint that cannot be used."""
    return (
        f"the checkpoint {folder} is damaged: {what}. It was changed or cut short after it was saved (an incomplete "
        "copy?): copy it again in full, or delete the folder and train anew"
    )


def lock_alone(file: IO) -> bool:
    """Lock an open file against other processes, until this one closes it (under any handle); False where another one
    holds it. Where a file system has no locks, a note says so, and the file counts as free."""
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # Of a process, not of a file handle: workers that prepare batches outlive a killed run for a while.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        print(f"{file.name} cannot be locked ({error}): let no second process write there meanwhile", file=sys.stderr)
    return True


def _busy(out: Path, who: str) -> str:
    return f"another training writes into {out} ({who or 'it has just begun'}): wait for it, or choose another folder"
