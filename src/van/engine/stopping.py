"""SIGTERM and Ctrl-C ask a run to stop; it does so at the next update, after saving itself."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator


class StopRequest:
    """Whether a signal came, in this process or in one beside it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.signal_name = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: remember it, or stop at once at the second Ctrl-C."""
        if self.signal_name and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait for the update
        self.signal_name = signal.Signals(number).name

    def agreed(self) -> bool:
        """True in every process as soon as one of them was asked to stop."""
        if self._accelerator.num_processes == 1:
            return bool(self.signal_name)
        if self.signal_name:
            self._accelerator.set_trigger()
        return bool(self._accelerator.check_trigger())


@contextmanager
def stop_on_signals(accelerator: Accelerator) -> Generator[StopRequest, None, None]:
    """Within the block, turn SIGTERM and SIGINT into a request; outside the main thread signals stay as they are."""
    request = StopRequest(accelerator)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
