"""Signal handling: on SIGTERM or Ctrl-C a run saves a checkpoint after the current update and stops."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator


class StopRequest:
    """A signal handler that records a request to stop, from this process or another one."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.signal_name = ""

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Record the signal; raise ``KeyboardInterrupt`` at the second Ctrl-C, without waiting for the update."""
        if self.signal_name and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(signal_number).name

    def should_stop(self) -> bool:
        """Return True in every process once any of them has received a signal."""
        if self._accelerator.num_processes == 1:
            return bool(self.signal_name)
        if self.signal_name:
            self._accelerator.set_trigger()
        return bool(self._accelerator.check_trigger())


@contextmanager
def stop_on_signals(accelerator: Accelerator) -> Generator[StopRequest, None, None]:
    """Yield a ``StopRequest`` that handles SIGTERM and SIGINT in the block, and restore the handlers after it.

    Outside the main thread, where Python allows no handlers, the signals are not handled.
    """
    request = StopRequest(accelerator)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
