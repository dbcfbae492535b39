"""Waiting questions, and how batches are made of them.

A batch holds questions of one kind about one model. It is due when it is full, or when its first question has waited
``max_wait_s``; of several that are due, the one whose first question has waited longest goes first, so that nothing
starves. Everything here runs in the front's event loop.
"""

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from van.serve.questions import Question, Reply


class Answered(NamedTuple):
    """A reply, with the seconds that its question waited and that its batch took on its way to the worker."""

    reply: Reply
    queue_s: float
    send_s: float


@dataclasses.dataclass(eq=False)
class Waiting:
    """A question in the queue; ``deaths`` counts the workers that ended while they had it."""

    question: Question
    payload: bytes
    answer: "asyncio.Future[Answered]"
    since: float = dataclasses.field(default_factory=time.monotonic)
    deaths: int = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.answer.done()


class Batcher:
    """The queues of all models.

    Args:
        max_batch: how many questions of a kind about a model go into one batch.
        max_wait_s: how long the first of them waits for the others.
        on_depth: told how many wait for a model whenever that changes.
    """

    def __init__(
        self,
        max_batch: Callable[[Question], int],
        *,
        max_wait_s: float,
        on_depth: Callable[[str, int], None] = lambda model, count: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._on_depth = on_depth
        self._queues: dict[tuple[object, ...], deque[Waiting]] = {}
        self._alone: deque[Waiting] = deque()
        self._sleepers: set[asyncio.Future[None]] = set()

    def put(self, question: Question, payload: bytes) -> "asyncio.Future[Answered]":
        """Queue a question; whoever cancels what is returned withdraws it."""
        waiting = Waiting(question, payload, asyncio.get_running_loop().create_future())
        self._queues.setdefault(_group(question), deque()).append(waiting)
        self._changed(question.model)
        return waiting.answer

    def give_back(self, batch: Sequence[Waiting]) -> None:
        """Take back the questions of a batch that nobody was asked: they are the next again, in their order."""
        for waiting in reversed(batch):
            self._queues.setdefault(_group(waiting.question), deque()).appendleft(waiting)
        self._changed(batch[0].question.model)

    def give_back_alone(self, waiting: Waiting) -> None:
        """Take back a question that may have ended a worker: it is asked next, and alone."""
        self._alone.append(waiting)
        self._changed(waiting.question.model)

    async def next_batch(self) -> list[Waiting]:
        """The next batch, when one is due; a cancelled call takes nothing."""
        while True:
            batch, due_s = self._take(time.monotonic())
            if batch:
                self._changed(batch[0].question.model)
                return batch
            sleeper = asyncio.get_running_loop().create_future()
            self._sleepers.add(sleeper)
            try:
                async with asyncio.timeout(due_s):
                    await sleeper
            except TimeoutError:
                continue
            finally:
                self._sleepers.discard(sleeper)

    def depth(self, model: str) -> int:
        """How many questions about a model wait."""
        queued = sum(len(queue) for group, queue in self._queues.items() if group[0] == model)
        return queued + sum(waiting.question.model == model for waiting in self._alone)

    def fail_all(self, error: Exception) -> None:
        """Refuse everything that waits."""
        for queue in [*self._queues.values(), self._alone]:
            for waiting in queue:
                if waiting.is_wanted:
                    waiting.answer.set_exception(error)
            queue.clear()

    def _take(self, now: float) -> tuple[list[Waiting], float | None]:
        """A batch that is due; or none, and in how many seconds one will be, None if nothing waits."""
        while self._alone:
            waiting = self._alone.popleft()
            if waiting.is_wanted:
                return [waiting], None
        best: deque[Waiting] | None = None
        soonest: float | None = None
        for group, queue in list(self._queues.items()):
            while queue and not queue[0].is_wanted:
                queue.popleft()
            if not queue:
                del self._queues[group]
                continue
            remaining = self._max_wait_s - (now - queue[0].since)
            if len(queue) >= self._max_batch(queue[0].question) or remaining <= 0:
                best = queue if best is None or queue[0].since < best[0].since else best
            else:
                soonest = remaining if soonest is None else min(soonest, remaining)
        if best is None:
            return [], soonest
        return self._pop(best), None

    def _pop(self, queue: deque[Waiting]) -> list[Waiting]:
        size = self._max_batch(queue[0].question)
        batch: list[Waiting] = []
        while queue and len(batch) < size:
            waiting = queue.popleft()
            if waiting.is_wanted:
                batch.append(waiting)
        return batch

    def _changed(self, model: str) -> None:
        self._on_depth(model, self.depth(model))
        for sleeper in self._sleepers:
            if not sleeper.done():
                sleeper.set_result(None)


def _group(question: Question) -> tuple[object, ...]:
    """What questions of one batch have in common; tensors and crops of one batch are of one size."""
    size = (question.width, question.height) if question.kind in ("crop", "tensor") else ()
    return (question.model, question.kind, *size)
