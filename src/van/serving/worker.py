"""The main function of a worker process: it holds the models, reads requests from a pipe and writes responses to it.

A worker exits when the pipe closes, so that it never outlives the front end. It ignores SIGINT and SIGTERM, which a
terminal or a process manager sends to all processes: the front end ends it after the accepted requests.
"""

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from van.serving.logs import log_to_stderr
from van.serving.messages import InferenceRequest


def run_worker(connection: Connection, sources: Mapping[str, str], device: str | None, threads: int) -> None:
    """Load ``sources`` (files by served name), then run requests until the pipe closes.

    Sends ``("ready", cards)`` or ``("failed", message)``; then receives a list of requests followed by the bytes of
    each image, and sends a list of responses, again and again.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to_stderr()
    sys.stdout = sys.stderr  # standard output belongs to the front end
    try:
        runners = _load_runners(sources, device, threads)
    except Exception as error:  # a damaged file may raise anything; the front end reports it
        connection.send(("failed", str(error) or type(error).__name__))
        return
    cards = {name: runner.card for name, runner in runners.items()}
    try:
        connection.send(("ready", cards))
        while True:
            requests: list[InferenceRequest] = connection.recv()
            payloads = [connection.recv_bytes() for _ in requests]
            connection.send(runners[requests[0].model].run(requests, payloads))
    except (EOFError, ConnectionError):  # the front end has closed the pipe or has exited
        os._exit(0)  # an orderly interpreter shutdown takes seconds, and there is nothing to save


def _load_runners(sources: Mapping[str, str], device: str | None, threads: int) -> dict[str, Any]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import torch

    from van.ops import enable_memory_reuse
    from van.serving.model_runner import ModelRunner

    torch.set_num_threads(threads)
    enable_memory_reuse()
    runners = {name: ModelRunner(name, source, device=device, threads=threads) for name, source in sources.items()}
    for runner in runners.values():
        runner.warm_up()
    return runners
