"""A worker process as the front end sees it. The methods block and are called in threads.

Workers are forked from a process that has imported everything, loaded nothing and runs a single thread: a worker that
exited is replaced in the time that loading its models takes, without the seconds of importing PyTorch.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Self

from van.errors import VanError
from van.serving.messages import InferenceRequest, InferenceResponse, ModelCard
from van.serving.worker import run_worker

_PRELOADED = [
    "van.serving.model_runner",
    *(f"van.tasks.{task}" for task in ("classify", "detect", "segment")),
    "pytorch_grad_cam",
]
"""Modules that are slow to import; a package that is not installed is skipped."""


class WorkerExited(Exception):
    """A worker process exited, or was killed after a timeout; ``reason`` is ``exited`` or ``timeout``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerProcess:
    """A process that holds the models; created by ``start``."""

    def __init__(self, process: multiprocessing.process.BaseProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self.cards: dict[str, ModelCard] = {}

    @classmethod
    def start(cls, sources: Mapping[str, str], *, device: str | None, threads: int, timeout_s: float = 600) -> Self:
        """Start a process and wait until it has loaded ``sources``.

        Raises:
            VanError: a model cannot be loaded, or the process exited meanwhile.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        # without it, NumPy's BLAS would start threads in the process that forks; PyTorch has its own
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        own_end, worker_end = context.Pipe()
        process = context.Process(target=run_worker, args=(worker_end, dict(sources), device, threads), daemon=True)
        process.start()
        worker_end.close()  # or the exit of the process would not close the pipe
        worker = cls(process, own_end)
        try:
            if not own_end.poll(timeout_s):
                worker.kill()
                worker.stop()
                raise VanError(f"a worker did not load its models within {timeout_s:g} s")
            status, content = own_end.recv()
        except (EOFError, OSError) as error:
            process.join(5)
            raise VanError(f"a worker exited while it loaded the models (exit status {process.exitcode})") from error
        if status != "ready":
            worker.stop()
            raise VanError(content)
        worker.cards = content
        return worker

    @property
    def sentinel(self) -> int:
        """Return a file descriptor that becomes readable when the process exits."""
        return self._process.sentinel

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid or 0

    def run_batch(
        self, requests: Sequence[InferenceRequest], payloads: Sequence[bytes], *, timeout_s: float
    ) -> tuple[float, list[InferenceResponse]]:
        """Run a batch; returns the seconds that sending the images took, and a response to each request.

        Raises:
            WorkerExited: the process exited, or was killed as it did not respond in time.
        """
        try:
            start = time.perf_counter()
            self._pipe.send(list(requests))
            for payload in payloads:
                self._pipe.send_bytes(payload)
            transfer_s = time.perf_counter() - start
            if not wait([self._pipe], timeout_s):
                self.kill()
                raise WorkerExited("timeout")
            return transfer_s, self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerExited("exited") from error

    def stop(self, timeout_s: float = 5.0) -> None:
        """Close the pipe, so that the process exits; kill it after ``timeout_s``."""
        self._pipe.close()
        self._process.join(timeout_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def kill(self) -> None:
        """Kill the process; a running ``run_batch`` raises, and ``stop`` must still be called."""
        self._process.kill()
