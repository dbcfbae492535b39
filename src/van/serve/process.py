"""The front's side of a worker process. Its methods block and are called in threads.

Workers are forked from a process that has imported everything, loaded nothing and runs a single thread: one that ended
is replaced in the time that it takes to load its models, without the seconds that importing PyTorch takes.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Self

from van.errors import VanError
from van.serve.questions import ModelCard, Question, Reply
from van.serve.worker import work

_IMPORTED = [
    "van.serve.holding",
    *(f"van.tasks.{task}" for task in ("classify", "detect", "segment")),
    "pytorch_grad_cam",
]
"""What is slow to import; a package that is not installed is passed over."""


class WorkerDied(Exception):
    """A worker process ended, or was ended because it did not answer in time; ``reason`` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class WorkerProcess:
    """A process that holds the networks; made by ``start``."""

    def __init__(self, process: multiprocessing.process.BaseProcess, pipe: Connection) -> None:
        self._process = process
        self._pipe = pipe
        self.cards: dict[str, ModelCard] = {}

    @classmethod
    def start(cls, sources: Mapping[str, str], *, device: str | None, threads: int, timeout_s: float = 600) -> Self:
        """A process with ``sources`` loaded.

        Raises:
            VanError: one of them cannot be loaded, or the process ended meanwhile.
        """
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # or NumPy's would start threads there; PyTorch has its own
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, dict(sources), device, threads), daemon=True)
        process.start()
        theirs.close()  # so that the process's end is seen at this one
        worker = cls(process, ours)
        try:
            if not ours.poll(timeout_s):
                worker.kill()
                worker.stop()
                raise VanError(f"a worker was not ready within {timeout_s:g} s")
            said, content = ours.recv()
        except (EOFError, OSError) as error:
            process.join(5)
            raise VanError(f"a worker ended while it loaded the models (exit status {process.exitcode})") from error
        if said != "ready":
            worker.stop()
            raise VanError(content)
        worker.cards = content
        return worker

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes readable when the process ends."""
        return self._process.sentinel

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid or 0

    def ask(
        self, questions: Sequence[Question], payloads: Sequence[bytes], *, timeout_s: float
    ) -> tuple[float, list[Reply]]:
        """Seconds that the pictures took through the pipe, and a reply to each question.

        Raises:
            WorkerDied: the process has ended, or did not answer in time and was ended.
        """
        try:
            start = time.perf_counter()
            self._pipe.send(list(questions))
            for payload in payloads:
                self._pipe.send_bytes(payload)
            sent = time.perf_counter() - start
            if not wait([self._pipe], timeout_s):
                self.kill()
                raise WorkerDied("hung")
            return sent, self._pipe.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied("died") from error

    def stop(self, grace_s: float = 5.0) -> None:
        """Close the pipe, upon which the process ends."""
        self._pipe.close()
        self._process.join(grace_s)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def kill(self) -> None:
        """End the process at once; whoever asks it at the moment is told, and ``stop`` is still to be called."""
        self._process.kill()
