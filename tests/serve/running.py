"""A real ``van serve`` process on a free port of this machine, and what a client does with it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

_START_S = 120


class Running:
    """The process; ``client`` speaks to it, ``lines`` are what it has logged."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "van", "serve", *map(str, arguments), "--port", "0"]
        inherited = {name: value for name, value in os.environ.items() if name != "VAN_API_KEY"}
        self.process = subprocess.Popen(
            command, env={**inherited, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, Any]] = []
        self.told: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = str(self.wait_for("loading")["url"])
        except BaseException:
            self.kill()
            raise
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    @property
    def workers(self) -> list[int]:
        """Process numbers of the workers as the system sees them now: children of the process that forks them."""
        return sorted(worker for child in _children(self.process.pid) for worker in _children(child))

    def wait_for(self, event: str, *, after: int = 0, timeout_s: float = _START_S) -> dict[str, Any]:
        """The first logged line of that event from line ``after`` on."""
        found = self.wait_until(lambda: next((x for x in self.lines[after:] if x["event"] == event), None), timeout_s)
        assert found is not None, (event, self.lines[after:], self.told)
        return found

    def wait_until(self, look: Callable[[], Any], timeout_s: float = _START_S) -> Any:
        """What ``look`` gives as soon as it gives something; its last answer when time or the process is over."""
        end = time.monotonic() + timeout_s
        while not (found := look()) and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.01)
        if self.process.poll() is not None:
            self._reader.join(10)
        return found or look()

    def metric(self, name: str) -> float:
        """The sum of a measure over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Ask it to stop; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout_s)
        self._reader.join(10)
        return status

    def kill(self) -> None:
        """End it at once, and what it has started; it can tidy nothing up."""
        started = _children(self.process.pid)
        self.process.kill()
        for child in started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Let go of a process that has ended: its pipes, and the connections to it."""
        self.process.wait(20)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if hasattr(self, "client"):
            self.client.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.told.append(line)


def _children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, of, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(of) == parent and state != "Z":
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def running(*arguments: object, **environment: str) -> Iterator[Running]:
    """A service that is ready, for as long as the block runs."""
    server = Running(*arguments, **environment)
    try:
        server.wait_for("serving")
        yield server
    finally:
        server.client.close()
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(20)
            except subprocess.TimeoutExpired:
                server.process.kill()
        server.close()
