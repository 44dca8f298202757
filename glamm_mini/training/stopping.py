"""Ctrl-C and SIGTERM as a request: the running step ends, the state is saved, and the user learns how to go on."""

import signal
import sys
import threading
from types import FrameType


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped on request; its state is saved and its text says how to resume."""


class StopRequest:
    """Context in which the first Ctrl-C or SIGTERM only sets `asked`; a second Ctrl-C interrupts at once.

    Outside the main thread, where Python allows no handlers, it changes nothing.
    """

    def __init__(self, announce: bool = True) -> None:
        self.asked = False
        self.announce = announce
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt("training stopped at once; the last checkpoint is kept")
        self.asked = True
        if self.announce:
            print("\nstopping after this step and saving (Ctrl-C again stops at once)", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
