"""SIGTERM, which schedulers send before they kill."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from reid_fast.errors import Stopped


class Stop:
    """Whether the run has been asked to end.

    Between steps there is nothing to save: what a run has done since its last checkpoint, it does again. There the
    signal ends it at once. While steps are taken it is only noted, for the loop to save first.
    """

    def __init__(self) -> None:
        self.signal = 0  # once it has been asked
        self._noting = False

    @contextmanager
    def listening(self, grace: float | None = None) -> Iterator[None]:
        """Inside, SIGTERM means that.

        Args:
            grace: seconds after which the process ends however it stands, for it may wait for another one that is gone.
        """
        if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
            yield
            return
        before = signal.signal(signal.SIGTERM, self._asked)
        with _deadline(grace):
            try:
                yield
            finally:
                signal.signal(signal.SIGTERM, before)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, it is only noted.

        Raises:
            Stopped: it was, and nothing inside has dealt with it.
        """
        self._noting = True
        try:
            yield
        finally:
            self._noting = False
        if self.signal:
            raise Stopped(self.signal)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        asked_before, self.signal = self.signal, number
        if not (self._noting or asked_before):  # a second signal must not cut the saving that the first one has begun
            raise Stopped(number)


@contextmanager
def _deadline(grace: float | None) -> Iterator[None]:
    """Inside, the process ends `grace` seconds after SIGTERM, even where Python is waiting for a library.

    Python's handlers run between its instructions, but the number of a signal is written to the wake-up socket at once.
    """
    if grace is None:
        yield
        return
    written, read = socket.socketpair()
    written.setblocking(False)
    over = threading.Event()

    def watch() -> None:
        while received := read.recv(1):
            if received[0] == signal.SIGTERM and not over.wait(grace):
                os._exit(128 + signal.SIGTERM)

    before = signal.set_wakeup_fd(written.fileno())
    threading.Thread(target=watch, name="deadline", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        written.close()
