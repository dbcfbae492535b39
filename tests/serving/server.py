"""A real ``van serve`` process on a free port, and what a client and the operating system see of it."""

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

_START_TIMEOUT_S = 120


class ServerProcess:
    """The process; ``client`` sends requests to it, ``lines`` are its log records, ``plain_lines`` its other output."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        command = [sys.executable, "-m", "van", "serve", *map(str, arguments), "--port", "0"]
        inherited = {name: value for name, value in os.environ.items() if name != "VAN_API_KEY"}
        self.process = subprocess.Popen(
            command, env={**inherited, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[dict[str, Any]] = []
        self.plain_lines: list[str] = []
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()
        try:
            self.url = str(self.wait_for("loading")["url"])
        except BaseException:
            self.kill()
            raise
        self.client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    @property
    def workers(self) -> list[int]:
        """Return the process ids of the workers: the children of the process that forks them."""
        return sorted(worker for child in _child_pids(self.process.pid) for worker in _child_pids(child))

    def wait_for(self, event: str, *, after: int = 0, timeout_s: float = _START_TIMEOUT_S) -> dict[str, Any]:
        """Return the first log record with that event from line ``after`` on."""
        record = self.wait_until(
            lambda: next((line for line in self.lines[after:] if line["event"] == event), None), timeout_s
        )
        assert record, (event, self.lines[after:], self.plain_lines)
        return record

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = _START_TIMEOUT_S) -> Any:
        """Return the first true result of ``condition``, or its last one when time or the process is over."""
        end = time.monotonic() + timeout_s
        while not (result := condition()) and time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.01)
        if self.process.poll() is not None:
            self._reader.join(10)
        return result or condition()

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Send a stop signal; returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(timeout_s)
        self._reader.join(10)
        return status

    def kill(self) -> None:
        """Kill the process and its children without any cleanup."""
        children = _child_pids(self.process.pid)
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        """Close the pipes and connections of a process that has exited."""
        self.process.wait(20)
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        if hasattr(self, "client"):
            self.client.close()

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.plain_lines.append(line)


def _child_pids(parent: int) -> list[int]:
    children = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent_pid, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(parent_pid) == parent and state != "Z":
                children.append(int(folder.name))
    return children


@contextlib.contextmanager
def running_server(*arguments: object, **environment: str) -> Iterator[ServerProcess]:
    """Run a server, ready for requests, for the duration of the block."""
    server = ServerProcess(*arguments, **environment)
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
