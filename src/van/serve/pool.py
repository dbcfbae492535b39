"""The worker processes together: each is given batches, replaced when it ends, and retired when a model file changes.

No accepted question is lost with a worker. The questions of a batch whose worker ended are asked once more, each
alone, so that one that ends workers takes no others with it; when it has ended a second one it is refused.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from van.errors import VanError
from van.serve.batcher import Answered, Batcher, Waiting
from van.serve.measures import Measures
from van.serve.process import WorkerDied, WorkerProcess
from van.serve.questions import ModelCard, Reply

_MOST_DEATHS = 2
_LONGEST_PAUSE_S = 30.0
_T = TypeVar("_T")
_log = logging.getLogger("van.serve")


class Pool:
    """Workers that all hold the same models.

    Args:
        batcher: where they take their work.
        measures: what is counted.
        workers: how many processes.
        threads, device: of each of them.
        patience_s: how long a batch may take before its worker is ended.
    """

    def __init__(
        self,
        batcher: Batcher,
        measures: Measures,
        *,
        workers: int,
        threads: int,
        device: str | None,
        patience_s: float,
    ) -> None:
        self._batcher = batcher
        self._measures = measures
        self._count = workers
        self._threads = threads
        self._device = device
        self._patience_s = patience_s
        self._executor = ThreadPoolExecutor(2 * workers + 2, thread_name_prefix="van-worker")
        self._sources: Mapping[str, str] = {}
        self._tasks: dict[asyncio.Task[None], asyncio.Event] = {}
        self._alive: dict[int, WorkerProcess] = {}
        self.cards: dict[str, ModelCard] = {}

    @property
    def ready(self) -> int:
        """How many workers have their models loaded."""
        return len(self._alive)

    @property
    def pids(self) -> list[int]:
        """Of the workers that are ready."""
        return sorted(self._alive)

    async def load(self, sources: Mapping[str, str], versions: Mapping[str, str]) -> None:
        """Start workers with these files by served name, then retire those with other ones.

        Raises:
            VanError: a file cannot be loaded; the workers that there were go on.
        """
        # the first alone: a file that is wrong should be told once, and need no more memory than one worker does
        fresh = [await self._start(sources)]
        try:
            fresh += await asyncio.gather(*(self._start(sources) for _ in range(1, self._count)))
        except VanError:
            await asyncio.gather(*(self._run(worker.stop) for worker in fresh))
            raise
        self._sources = dict(sources)
        self.cards = {name: dataclasses.replace(card, version=versions[name]) for name, card in fresh[0].cards.items()}
        old = dict(self._tasks)
        for worker in fresh:
            self._alive[worker.pid] = worker
            retired = asyncio.Event()
            task = asyncio.create_task(self._keep(worker, retired))
            self._tasks[task] = retired
        for retired in old.values():
            retired.set()
        await asyncio.gather(*old, return_exceptions=True)
        for task in old:
            self._tasks.pop(task, None)

    async def stop(self) -> None:
        """Let every worker finish its batch, and end it."""
        for retired in self._tasks.values():
            retired.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._executor.shutdown(wait=True)

    def kill(self) -> None:
        """End every worker at once, and replace none; what they had is with the batcher again."""
        for retired in self._tasks.values():
            retired.set()
        for worker in list(self._alive.values()):
            worker.kill()

    async def _start(self, sources: Mapping[str, str]) -> WorkerProcess:
        return await self._run(lambda: WorkerProcess.start(sources, device=self._device, threads=self._threads))

    async def _run(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _keep(self, first: WorkerProcess, retired: asyncio.Event) -> None:
        """One place in the pool: a worker, and its successors when it dies, until it is retired."""
        worker: WorkerProcess | None = first
        while worker is not None:
            self._alive[worker.pid] = worker
            self._measures.workers.set(self.ready)
            pid = worker.pid
            reason = await self._feed(worker, retired)
            del self._alive[pid]
            self._measures.workers.set(self.ready)
            if not reason or retired.is_set():
                await self._run(worker.stop)
                return
            _log.error("a worker ended and is replaced", extra={"worker": pid, "reason": reason})
            self._measures.restarts.labels(reason).inc()
            await self._run(worker.stop)
            worker = await self._successor(retired)

    async def _successor(self, retired: asyncio.Event) -> WorkerProcess | None:
        """Another worker, however long it takes; None if there is no more need of it."""
        pause_s = 0.5
        while not retired.is_set():
            try:
                return await self._start(self._sources)
            except VanError as error:
                _log.error("a worker could not be started", extra={"reason": str(error), "again_in_s": pause_s})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(retired.wait(), pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return None

    async def _feed(self, worker: WorkerProcess, retired: asyncio.Event) -> str:
        """Give a worker batches until it is retired (``""``) or has ended (why)."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        loop.add_reader(worker.sentinel, ended.set)
        leave = [asyncio.create_task(retired.wait()), asyncio.create_task(ended.wait())]
        try:
            while not retired.is_set():
                next_batch = asyncio.create_task(self._batcher.next_batch())
                await asyncio.wait([next_batch, *leave], return_when=asyncio.FIRST_COMPLETED)
                if not next_batch.done():
                    next_batch.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await next_batch
                    return "" if retired.is_set() else "died"
                batch = next_batch.result()
                if ended.is_set():
                    self._batcher.give_back(batch)
                    return "died"
                try:
                    await self._answer(worker, batch)
                except WorkerDied as death:
                    self._bury(batch)
                    return death.reason
            return ""
        finally:
            loop.remove_reader(worker.sentinel)
            for task in leave:
                task.cancel()

    async def _answer(self, worker: WorkerProcess, batch: Sequence[Waiting]) -> None:
        now = asyncio.get_running_loop().time()
        waited = [max(0.0, now - waiting.since) for waiting in batch]
        questions = [waiting.question for waiting in batch]
        payloads = [waiting.payload for waiting in batch]
        sent_s, replies = await self._run(lambda: worker.ask(questions, payloads, timeout_s=self._patience_s))
        model = questions[0].model
        self._measures.batch_size.labels(model).observe(len(batch))
        self._measures.stage.labels("send").observe(sent_s)
        self._measures.stage.labels("network").observe(replies[0].seconds)
        for waiting, queue_s, reply in zip(batch, waited, replies, strict=True):
            self._measures.stage.labels("queue").observe(queue_s)
            if waiting.is_wanted:
                waiting.answer.set_result(Answered(reply, queue_s, sent_s))

    def _bury(self, batch: Sequence[Waiting]) -> None:
        """What becomes of questions whose worker ended."""
        for waiting in batch:
            waiting.deaths += 1
            if waiting.deaths < _MOST_DEATHS:
                self._batcher.give_back_alone(waiting)
            elif waiting.is_wanted:
                name = waiting.question.name
                _log.error("a picture ended two workers", extra={"picture": name})
                refused = Reply(error=f"{name}: two workers ended while they looked at it", fault="ours")
                waiting.answer.set_result(Answered(refused, 0.0, 0.0))
