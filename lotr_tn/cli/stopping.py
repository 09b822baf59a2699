"""A command that is stopped by a signal clears away what it had begun, and says what is so."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lotr_tn.errors import listed
from lotr_tn.files.writing import in_place, noted

SIGNALS = {
    getattr(signal, name): words
    for name, words in (("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP"))
    if hasattr(signal, name)
}


class Stopped(BaseException):
    """A signal asked the program to end."""

    def __init__(self, number: int, written: list[Path]) -> None:
        what = "nothing was changed"
        if written:
            what = f"{listed(list(map(str, written)))} was written all the same"
        super().__init__(f"stopped by {SIGNALS[signal.Signals(number)]}; {what}")
        self.status = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Signals that end a program raise `Stopped`, so that files are cleared away on the way out.

    A signal that is ignored, as nohup has it, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if not received:  # clearing away is not stopped by the next
            received.append(number)
            raise _Received

    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    with noted() as targets:
        try:
            for number in heard:
                signal.signal(number, stop)
            yield
        except _Received:
            written = [target.path for target in targets if in_place(target)]
            raise Stopped(received[0], written) from None
        finally:
            for number in heard:
                signal.signal(number, before[number])


class _Received(BaseException):
    pass
