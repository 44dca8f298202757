"""The folder of a run: free or ours before anything is written into it, and one training at a time.

Imports no torch, so that a command can refuse a folder before it starts up.
"""

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from glamm_mini.training.settings import differing

LAST, MANIFEST, SETTINGS = "last", "checkpoint.json", "settings.json"
LOCK = "run.lock"
"""Held while a training writes; it stays when the run ends, as the mark of a folder that a run has made."""

_LOCKED_BYTE = 1 << 20  # behind the words in the file: Windows lets nobody read what is locked
_holders: dict[str, list[int]] = {}  # real path -> thread and depth: the system's locks do not tell threads apart
_guard = threading.Lock()


def check_free(out: Path | str, resume: bool) -> None:
    """Raises ValueError if a run cannot begin in `out`, which may be missing: for a file in its place, for files that
    no run has made, and for a run if it is not to be resumed."""
    out = Path(out)
    if out.is_file():
        raise ValueError(f"{out} is a file; a run needs a folder: choose another name")
    held = sorted(path.name for path in out.glob("[!.]*"))
    if held and not (out / LOCK).exists():
        raise ValueError(
            f"{out} holds {', '.join(held[:3])}{' ...' if len(held) > 3 else ''}, which no training of ours has "
            "written: choose a new or an empty folder"
        )
    if any((out / LAST).glob("*")) and not resume:
        raise ValueError(
            f"{out} already holds a run, saved at step {_saved_step(out)}. "
            "Resume it (resume=True, --resume), choose another folder, or delete this one"
        )


def first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started; there may be no other."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def claimed(out: Path | str, resume: bool) -> Iterator[None]:
    """Inside, no other training can write into `out`, which is made if it is missing; may be nested in one thread.

    The operating system holds the lock, so that it ends with the process, however that ends. Where a file system has
    no locks, a note says so.

    Raises ValueError: another training writes into the folder (it says which), or what `check_free` refuses.
    """
    out = Path(out)
    check_free(out, resume)  # before anything is written
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    key, me = os.path.realpath(out), threading.get_ident()
    with _guard:
        holder = _holders.setdefault(key, [me, 0])
        if holder[0] != me:
            raise ValueError(_busy(out, f"process {os.getpid()}, another thread"))
        holder[1] += 1
    handle = None
    try:
        if holder[1] == 1:
            handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
            _lock(handle, out)
            check_free(out, resume)  # again: another run may have come and gone in between
        yield
    finally:
        with _guard:
            holder[1] -= 1
            if not holder[1]:
                del _holders[key]
        if handle is not None:
            if made and sorted(path.name for path in out.iterdir()) == [LOCK]:
                with suppress(OSError):
                    shutil.rmtree(out)  # an error came before the run began
            os.close(handle)  # and with it the lock


def check_same_run(out: Path, wanted: dict[str, Any]) -> None:
    """Compares what a run is (settings, processes, number of samples, data) with what `out` says that it was.

    Raises ValueError: something differs that changes what is learned; the text names each with both values.
    """
    path = out / SETTINGS
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot resume: {path} cannot be read ({error})") from None
    names = differing(stored, wanted)
    if names:
        listed = "; ".join(f"{name} was {stored.get(name)!r}, now {wanted.get(name)!r}" for name in names)
        raise ValueError(
            f"cannot resume {out} as another run: {listed}. "
            "Resume it as it began, with the same settings and data, or start anew in another folder"
        )


def describe_run(out: Path, settings: dict[str, Any]) -> None:
    """Writes `out/settings.json` as a whole."""
    temporary = out / (SETTINGS + ".new")
    temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, out / SETTINGS)


def _lock(handle: int, out: Path) -> None:
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            # Of a process, not of a file handle: workers that prepare batches outlive a killed run for a while.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCKED_BYTE)
    except (BlockingIOError, PermissionError):
        os.lseek(handle, 0, os.SEEK_SET)
        raise ValueError(_busy(out, os.read(handle, 200).decode(errors="replace").strip())) from None
    except OSError as error:
        print(f"{out} cannot be locked ({error}): start no second training into it meanwhile", file=sys.stderr)
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def _busy(out: Path, who: str) -> str:
    return f"another training writes into {out} ({who or 'it has just begun'}): wait for it, or choose another folder"


def _saved_step(out: Path) -> Any:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((out / LAST / MANIFEST).read_text(encoding="utf-8"))["step"]
    return "unknown"
