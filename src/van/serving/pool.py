"""The pool of worker processes: it feeds them batches, restarts those that exit, and replaces all for a new model file.

No accepted request is lost with a worker. The requests of a batch whose worker exited are retried once, each in a batch
of its own, so that a request that crashes workers takes no others with it; after a second worker has exited it fails.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from van.errors import VanError
from van.serving.batcher import Batcher, CompletedRequest, PendingRequest
from van.serving.messages import InferenceResponse, ModelCard
from van.serving.metrics import Metrics
from van.serving.worker_process import WorkerExited, WorkerProcess

_MAX_ATTEMPTS = 2
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.5, 30.0
_T = TypeVar("_T")
_log = logging.getLogger("van.serving")


class WorkerPool:
    """Workers that all hold the same models.

    Args:
        batcher: source of the batches.
        metrics: metrics to update.
        workers: number of processes.
        threads, device: threads and device of each process.
        batch_timeout_s: time after which the worker of an unfinished batch is killed.
    """

    def __init__(
        self,
        batcher: Batcher,
        metrics: Metrics,
        *,
        workers: int,
        threads: int,
        device: str | None,
        batch_timeout_s: float,
    ) -> None:
        self._batcher = batcher
        self._metrics = metrics
        self._count = workers
        self._threads = threads
        self._device = device
        self._batch_timeout_s = batch_timeout_s
        self._executor = ThreadPoolExecutor(2 * workers + 2, thread_name_prefix="van-worker")
        self._sources: Mapping[str, str] = {}
        self._retire_events: dict[asyncio.Task[None], asyncio.Event] = {}
        self._ready: dict[int, WorkerProcess] = {}
        self.cards: dict[str, ModelCard] = {}

    @property
    def ready_count(self) -> int:
        """Return the number of workers that have loaded their models."""
        return len(self._ready)

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the workers that are ready."""
        return sorted(self._ready)

    async def load(self, sources: Mapping[str, str], versions: Mapping[str, str]) -> None:
        """Start workers with these files by served name, then stop the workers with the previous ones.

        Raises:
            VanError: a file cannot be loaded; the previous workers continue.
        """
        # one worker first: a damaged file is reported once, and needs no more memory than one worker
        started = [await self._start_worker(sources)]
        try:
            started += await asyncio.gather(*(self._start_worker(sources) for _ in range(1, self._count)))
        except VanError:
            await asyncio.gather(*(self._run_in_thread(worker.stop) for worker in started))
            raise
        self._sources = dict(sources)
        cards = started[0].cards
        self.cards = {name: dataclasses.replace(card, version=versions[name]) for name, card in cards.items()}
        previous = dict(self._retire_events)
        for worker in started:
            self._ready[worker.pid] = worker
            retire = asyncio.Event()
            task = asyncio.create_task(self._supervise(worker, retire))
            self._retire_events[task] = retire
        for retire in previous.values():
            retire.set()
        await asyncio.gather(*previous, return_exceptions=True)
        for task in previous:
            self._retire_events.pop(task, None)

    async def stop(self) -> None:
        """Stop every worker after its current batch."""
        for retire in self._retire_events.values():
            retire.set()
        await asyncio.gather(*self._retire_events, return_exceptions=True)
        self._executor.shutdown(wait=True)

    def kill(self) -> None:
        """Kill every worker and restart none; their requests go back to the batcher."""
        for retire in self._retire_events.values():
            retire.set()
        for worker in list(self._ready.values()):
            worker.kill()

    async def _start_worker(self, sources: Mapping[str, str]) -> WorkerProcess:
        return await self._run_in_thread(
            lambda: WorkerProcess.start(sources, device=self._device, threads=self._threads)
        )

    async def _run_in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _supervise(self, first: WorkerProcess, retire: asyncio.Event) -> None:
        """Feed a worker and its replacements until ``retire`` is set."""
        worker: WorkerProcess | None = first
        while worker is not None:
            self._ready[worker.pid] = worker
            self._metrics.workers.set(self.ready_count)
            pid = worker.pid
            reason = await self._feed(worker, retire)
            del self._ready[pid]
            self._metrics.workers.set(self.ready_count)
            if not reason or retire.is_set():
                await self._run_in_thread(worker.stop)
                return
            _log.error("worker exited, restarting", extra={"worker": pid, "reason": reason})
            self._metrics.worker_restarts.labels(reason).inc()
            await self._run_in_thread(worker.stop)
            worker = await self._restart(retire)

    async def _restart(self, retire: asyncio.Event) -> WorkerProcess | None:
        """Start a replacement, with retries; returns None when ``retire`` is set."""
        retry_s = _FIRST_RETRY_S
        while not retire.is_set():
            try:
                return await self._start_worker(self._sources)
            except VanError as error:
                _log.error("worker start failed", extra={"reason": str(error), "retry_in_s": retry_s})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(retire.wait(), retry_s)
            retry_s = min(2 * retry_s, _LONGEST_RETRY_S)
        return None

    async def _feed(self, worker: WorkerProcess, retire: asyncio.Event) -> str:
        """Run batches on a worker; returns ``""`` when ``retire`` is set, or the reason of its exit."""
        loop = asyncio.get_running_loop()
        exited = asyncio.Event()
        loop.add_reader(worker.sentinel, exited.set)
        stop_tasks = [asyncio.create_task(retire.wait()), asyncio.create_task(exited.wait())]
        try:
            while not retire.is_set():
                next_batch = asyncio.create_task(self._batcher.next_batch())
                await asyncio.wait([next_batch, *stop_tasks], return_when=asyncio.FIRST_COMPLETED)
                if not next_batch.done():
                    next_batch.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await next_batch
                    return "" if retire.is_set() else "exited"
                batch = next_batch.result()
                if exited.is_set():
                    self._batcher.requeue(batch)
                    return "exited"
                try:
                    await self._run_batch(worker, batch)
                except WorkerExited as error:
                    self._requeue_or_fail(batch)
                    return error.reason
            return ""
        finally:
            loop.remove_reader(worker.sentinel)
            for task in stop_tasks:
                task.cancel()

    async def _run_batch(self, worker: WorkerProcess, batch: Sequence[PendingRequest]) -> None:
        now = asyncio.get_running_loop().time()
        queue_times = [max(0.0, now - pending.queued_at) for pending in batch]
        requests = [pending.request for pending in batch]
        payloads = [pending.payload for pending in batch]
        transfer_s, responses = await self._run_in_thread(
            lambda: worker.run_batch(requests, payloads, timeout_s=self._batch_timeout_s)
        )
        self._metrics.batch_size.labels(requests[0].model).observe(len(batch))
        stage_seconds = self._metrics.stage_seconds
        stage_seconds.labels("transfer").observe(transfer_s)
        stage_seconds.labels("inference").observe(responses[0].inference_s)
        for pending, queue_s, response in zip(batch, queue_times, responses, strict=True):
            stage_seconds.labels("queue").observe(queue_s)
            if pending.is_active:
                pending.future.set_result(CompletedRequest(response, queue_s, transfer_s))

    def _requeue_or_fail(self, batch: Sequence[PendingRequest]) -> None:
        """Retry the requests of a worker that exited, or fail those that were retried before."""
        for pending in batch:
            pending.attempts += 1
            if pending.attempts < _MAX_ATTEMPTS:
                self._batcher.requeue_single(pending)
            elif pending.is_active:
                name = pending.request.name
                _log.error("request failed after two worker exits", extra={"image": name})
                error = f"{name}: {_MAX_ATTEMPTS} workers exited while they ran this image"
                response = InferenceResponse(error=error, error_kind="server")
                pending.future.set_result(CompletedRequest(response, 0.0, 0.0))
