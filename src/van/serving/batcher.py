"""Dynamic batching: queues of inference requests, and the batches formed from them.

A batch holds requests of one kind for one model. It is due when it is full, or when its first request has waited
``max_wait_s``; among several due batches the one whose first request has waited longest goes first, so that no queue
starves. All of this runs in the event loop of the front end.
"""

import asyncio
import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from van.serving.messages import InferenceRequest, InferenceResponse


class CompletedRequest(NamedTuple):
    """A response, with the seconds that its request was queued and that its batch took to reach the worker."""

    response: InferenceResponse
    queue_s: float
    transfer_s: float


@dataclasses.dataclass(eq=False)
class PendingRequest:
    """A queued request and the future of its response; ``attempts`` counts the workers that exited while running it."""

    request: InferenceRequest
    payload: bytes
    future: "asyncio.Future[CompletedRequest]"
    queued_at: float = dataclasses.field(default_factory=time.monotonic)
    attempts: int = 0

    @property
    def is_active(self) -> bool:
        """Return whether a client still waits for the response."""
        return not self.future.done()


class Batcher:
    """The request queues of all models.

    Args:
        max_batch: returns the largest batch size for a request.
        max_wait_s: longest time that the first request of a batch waits for further requests.
        on_depth: called with the model and its queue depth whenever that changes.
    """

    def __init__(
        self,
        max_batch: Callable[[InferenceRequest], int],
        *,
        max_wait_s: float,
        on_depth: Callable[[str, int], None] = lambda model, depth: None,
    ) -> None:
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._on_depth = on_depth
        self._queues: dict[tuple[object, ...], deque[PendingRequest]] = {}
        self._singles: deque[PendingRequest] = deque()
        self._waiters: set[asyncio.Future[None]] = set()

    def put(self, request: InferenceRequest, payload: bytes) -> "asyncio.Future[CompletedRequest]":
        """Queue a request; cancel the returned future to withdraw it."""
        pending = PendingRequest(request, payload, asyncio.get_running_loop().create_future())
        self._queues.setdefault(_batch_key(request), deque()).append(pending)
        self._notify(request.model)
        return pending.future

    def requeue(self, batch: Sequence[PendingRequest]) -> None:
        """Put a batch that no worker has received back at the front of its queue, in its order."""
        for pending in reversed(batch):
            self._queues.setdefault(_batch_key(pending.request), deque()).appendleft(pending)
        self._notify(batch[0].request.model)

    def requeue_single(self, pending: PendingRequest) -> None:
        """Put back a request whose worker exited: it goes next, in a batch of its own."""
        self._singles.append(pending)
        self._notify(pending.request.model)

    async def next_batch(self) -> list[PendingRequest]:
        """Wait until a batch is due and return it; a cancelled call takes no requests."""
        while True:
            batch, due_s = self._take_due(time.monotonic())
            if batch:
                self._notify(batch[0].request.model)
                return batch
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                async with asyncio.timeout(due_s):
                    await waiter
            except TimeoutError:
                continue
            finally:
                self._waiters.discard(waiter)

    def depth(self, model: str) -> int:
        """Return the number of queued requests for a model."""
        queued = sum(len(queue) for key, queue in self._queues.items() if key[0] == model)
        return queued + sum(pending.request.model == model for pending in self._singles)

    def fail_all(self, error: Exception) -> None:
        """Fail every queued request with ``error``."""
        for queue in [*self._queues.values(), self._singles]:
            for pending in queue:
                if pending.is_active:
                    pending.future.set_exception(error)
            queue.clear()

    def _take_due(self, now: float) -> tuple[list[PendingRequest], float | None]:
        """Return a due batch, or an empty one and the seconds until one is due (None if no request is queued)."""
        while self._singles:
            pending = self._singles.popleft()
            if pending.is_active:
                return [pending], None
        oldest: deque[PendingRequest] | None = None
        soonest: float | None = None
        for key, queue in list(self._queues.items()):
            while queue and not queue[0].is_active:
                queue.popleft()
            if not queue:
                del self._queues[key]
                continue
            remaining = self._max_wait_s - (now - queue[0].queued_at)
            if len(queue) >= self._max_batch(queue[0].request) or remaining <= 0:
                oldest = queue if oldest is None or queue[0].queued_at < oldest[0].queued_at else oldest
            else:
                soonest = remaining if soonest is None else min(soonest, remaining)
        if oldest is None:
            return [], soonest
        return self._pop_batch(oldest), None

    def _pop_batch(self, queue: deque[PendingRequest]) -> list[PendingRequest]:
        size = self._max_batch(queue[0].request)
        batch: list[PendingRequest] = []
        while queue and len(batch) < size:
            pending = queue.popleft()
            if pending.is_active:
                batch.append(pending)
        return batch

    def _notify(self, model: str) -> None:
        self._on_depth(model, self.depth(model))
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _batch_key(request: InferenceRequest) -> tuple[object, ...]:
    """Return what the requests of one batch share; tensors and crops of one batch also share their size."""
    size = (request.width, request.height) if request.kind in ("crop", "tensor") else ()
    return (request.model, request.kind, *size)
