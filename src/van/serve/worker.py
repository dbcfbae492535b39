"""A worker process: holds the networks, reads questions from a pipe, writes replies into it.

It ends when the pipe closes, so that it never outlives the front, and leaves the signals of a terminal or a process
manager to the front, which lets it finish what is accepted.
"""

import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from van.serve.logs import log_to_stderr
from van.serve.questions import Question


def work(connection: Connection, sources: Mapping[str, str], device: str | None, threads: int) -> None:
    """Load ``sources`` (files by served name), say that they are ready, and answer until the pipe closes.

    Says ``("ready", cards)`` or ``("failed", message)``; then for each list of questions, followed by the bytes of
    each picture, a list of replies.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to_stderr()
    sys.stdout = sys.stderr  # nothing but the front's own output belongs there
    try:
        held = _load(sources, device, threads)
    except Exception as error:  # a damaged file may raise anything; the front says what is wrong with it
        connection.send(("failed", str(error) or type(error).__name__))
        return
    cards = {name: one.card for name, one in held.items()}
    try:
        connection.send(("ready", cards))
        while True:
            questions: list[Question] = connection.recv()
            payloads = [connection.recv_bytes() for _ in questions]
            connection.send(held[questions[0].model].answer(questions, payloads))
    except (EOFError, ConnectionError):  # the front has closed the pipe, or is gone
        os._exit(0)  # to take the interpreter down in order takes seconds, and there is nothing to be kept


def _load(sources: Mapping[str, str], device: str | None, threads: int) -> dict[str, Any]:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import torch

    from van.ops import keep_freed_memory
    from van.serve.holding import Holding

    torch.set_num_threads(threads)
    keep_freed_memory()
    held = {name: Holding(name, source, device=device, threads=threads) for name, source in sources.items()}
    for one in held.values():
        one.warm_up()
    return held
