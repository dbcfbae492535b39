"""The service behind the routes: which models there are, and the way of a picture from bytes to an answer."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from van.errors import PictureError, VanError
from van.serve import files
from van.serve.batcher import Answered, Batcher
from van.serve.budget import Budget
from van.serve.decoding import Decoder
from van.serve.folder import OwnFolder, remove_left_behind
from van.serve.measures import Measures
from van.serve.pool import Pool
from van.serve.questions import Kind, ModelCard, Question
from van.serve.refusals import Refused
from van.serve.settings import Settings

if TYPE_CHECKING:
    from van.preprocess import Preprocess

_log = logging.getLogger("van.serve")
_MOST_DRAWN_PX = 1 << 14
"""Of a picture's longer side, where the answer is a picture, too."""


class Outcome(NamedTuple):
    """What became of one picture: an answer with its times, or a refusal."""

    answer: Any
    refused: Refused | None
    decode_s: float = 0.0
    answered: Answered | None = None

    def timings(self) -> dict[str, float | int]:
        """In milliseconds, for the client."""
        if self.answered is None:
            return {}
        reply = self.answered.reply
        times = {"queue_ms": self.answered.queue_s, "network_ms": reply.seconds}
        return {**{name: round(1000 * seconds, 2) for name, seconds in times.items()}, "batch": reply.batch}

    @property
    def is_stale(self) -> bool:
        """Whether the worker sees pictures by another rule than the one that this picture was cropped by."""
        return self.answered is not None and self.answered.reply.fault == "stale"


class Service:
    """Models, their workers, and the bounds of both.

    Args:
        settings: what it was told.
        sources: the models, the first one for requests that name none.
    """

    def __init__(self, settings: Settings, sources: Sequence[files.Source]) -> None:
        self.settings = settings
        self.measures = Measures()
        self.state: Literal["starting", "ready", "stopping"] = "starting"
        self._sources = {source.name: source for source in sources}
        self._copies: dict[str, files.Copy] = {}
        self._refused_prints: dict[str, tuple[files.Print, ...]] = {}
        self._told: dict[str, str] = {}
        for left in remove_left_behind():
            _log.warning("copies that a killed service left were deleted", extra={"folder": str(left)})
        self._folder = OwnFolder()
        limits = settings.limits
        self.memory = Budget(
            limits.memory_bytes, code="memory_full", what="the memory for pictures", on_change=self.measures.memory.set
        )
        self._accepted = {
            name: Budget(
                limits.queue,
                code="queue_full",
                what=f"the queue of {name}",
                on_change=self.measures.accepted.labels(name).set,
            )
            for name in self._sources
        }
        self._batcher = Batcher(
            self._max_batch,
            max_wait_s=settings.max_wait_s,
            on_depth=lambda name, depth: self.measures.queue_depth.labels(name).set(depth),
        )
        self.pool = Pool(
            self._batcher,
            self.measures,
            workers=settings.workers,
            threads=settings.worker_threads,
            device=settings.device,
            patience_s=2 * limits.timeout_s,
        )
        self._decoder = Decoder(len(os.sched_getaffinity(0)), limits=limits, memory=self.memory)
        self._rules: dict[str, Preprocess] = {}
        self._loading = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        """Whether it answers at this moment."""
        return self.state == "ready" and self.pool.ready > 0

    @property
    def cards(self) -> dict[str, ModelCard]:
        """Of the models that are served now."""
        return self.pool.cards

    @property
    def default(self) -> str:
        """The model for requests that name none."""
        return next(iter(self._sources))

    def card(self, name: object = None) -> ModelCard:
        """Of one model, the default if None.

        Raises:
            Refused: there is no such model.
        """
        wanted = self.default if name is None else name
        if not isinstance(wanted, str) or wanted not in self.cards:
            raise Refused(
                404, "no_such_model", f"there is no model {str(wanted)[:60]!r}; served: {', '.join(self.cards)}"
            )
        return self.cards[wanted]

    async def start(self) -> None:
        """Load everything.

        Raises:
            VanError: a model cannot be loaded.
        """
        for name, source in self._sources.items():
            self._copies[name] = await asyncio.to_thread(files.copy, source, self._folder.path)
        await self._load(self._copies)
        self.state = "ready"

    async def stop(self) -> None:
        """End the workers and delete what was copied."""
        self.state = "stopping"
        await self.pool.stop()
        self._decoder.stop()
        self._folder.remove()

    async def give_up(self) -> None:
        """End the workers and refuse everything that waits: the time to finish is over."""
        self.pool.kill()
        await self.pool.stop()
        self._batcher.fail_all(
            Refused(503, "stopping", "the service stopped before this was answered", retry_after_s=5)
        )

    async def watch(self) -> None:
        """Look after changed model files, for ever."""
        while self.settings.watch_s:
            await asyncio.sleep(self.settings.watch_s)
            for name, source in self._sources.items():
                if source.path is None:
                    continue
                prints = files.prints_of(source.path)
                if prints and prints not in (self._copies[name].prints, self._refused_prints.get(name)):
                    try:
                        await self.reload(name)
                    except Exception:  # a full disk, say; the old file goes on serving, and is looked after again
                        _log.exception("a new model file could not be looked at", extra={"model": name})

    async def reload(self, name: str) -> str:
        """Load a model's file anew beside the old one, and go over to it; returns what is wrong with it, or nothing.

        What is accepted meanwhile is answered by the old one.
        """
        source = self._sources[name]
        async with self._loading:
            fresh: files.Copy | None = None
            try:
                fresh = await asyncio.to_thread(files.copy, source, self._folder.path)
                await self._load({**self._copies, name: fresh})
            except VanError as error:
                self._refused_prints[name] = () if fresh is None else fresh.prints
                self.measures.reloads.labels(name, "refused").inc()
                if self._told.get(name) != str(error):  # what cannot be copied is tried again and again
                    _log.error("a new model file is refused", extra={"model": name, "reason": str(error)})
                self._told[name] = str(error)
                if fresh is not None:
                    files.discard(fresh)
                return str(error)
            self._told.pop(name, None)
            old, self._copies[name] = self._copies[name], fresh
            files.discard(old)
            self.measures.reloads.labels(name, "loaded").inc()
            _log.info("a new model file is served", extra={"model": name, "version": fresh.version})
            return ""

    async def ask(
        self, kind: Kind, card: ModelCard, pictures: Sequence[tuple[str, bytes]], options: Mapping[str, Any]
    ) -> list[Outcome]:
        """An outcome for each picture, in their order; files are given as (name, contents).

        Raises:
            Refused: the queue has no room for all of them.
        """
        with self._accepted[card.name].taken(len(pictures)):
            return await _all([self._outcome(kind, card, name, data, options) for name, data in pictures])

    async def ask_tensors(
        self, card: ModelCard, tensors: Sequence[bytes], size: tuple[int, int], options: Mapping[str, Any]
    ) -> list[Outcome]:
        """The same of pictures as the network reads them: 3 x rows x columns float32, of one size (rows, columns).

        Raises:
            Refused: the queue has no room for all of them.
        """

        async def one(place: int, data: bytes) -> Outcome:
            rows, columns = size
            question = Question(
                kind="tensor", model=card.name, name=f"picture {place}", width=columns, height=rows, options=options
            )
            return await self._answered(question, data, 0.0)

        with self._accepted[card.name].taken(len(tensors)):
            return await _all([one(place, data) for place, data in enumerate(tensors)])

    async def _outcome(
        self, kind: Kind, card: ModelCard, name: str, data: bytes, options: Mapping[str, Any]
    ) -> Outcome:
        rule = self._rules.get(card.name) if kind == "predict" and not options.get("png") else None
        outcome = await self._looked_at(kind, card, name, data, options, rule)
        if outcome.is_stale:  # another file has taken the model's name, and sees pictures by another rule
            outcome = await self._looked_at(kind, card, name, data, options, None)
        return outcome

    async def _looked_at(
        self,
        kind: Kind,
        card: ModelCard,
        name: str,
        data: bytes,
        options: Mapping[str, Any],
        rule: "Preprocess | None",
    ) -> Outcome:
        """Ask about a picture: with a ``rule`` about what it leaves of it, else about the whole."""
        start = time.perf_counter()
        try:
            async with self._decoder.pixels(data, name, rule) as pixels:
                seconds = time.perf_counter() - start
                self.measures.stage.labels("decode").observe(seconds)
                if kind == "lka" or options.get("png"):
                    _want_drawable(name, pixels.width, pixels.height)
                question = Question(
                    kind=kind if rule is None else "crop",
                    model=card.name,
                    name=name,
                    width=pixels.width,
                    height=pixels.height,
                    options=options,
                    rule=rule.to_dict() if rule is not None else {},
                )
                return await self._answered(question, pixels.content, seconds)
        except PictureError as error:
            return Outcome(None, Refused(422, "unreadable", str(error)), time.perf_counter() - start)
        except Refused as refused:
            return Outcome(None, refused, time.perf_counter() - start)

    async def _answered(self, question: Question, payload: bytes, decode_s: float) -> Outcome:
        try:
            answered = await self._batcher.put(question, payload)
        except Refused as refused:  # the service gave up
            return Outcome(None, refused, decode_s)
        reply = answered.reply
        if not reply.error:
            return Outcome(reply.answer, None, decode_s, answered)
        kinds = {"asked": (422, "wrong_option"), "picture": (422, "unreadable")}
        status, code = kinds.get(reply.fault, (500, "network_failed"))
        return Outcome(None, Refused(status, code, reply.error), decode_s, answered)

    def _max_batch(self, question: Question) -> int:
        if question.kind in ("explain", "lka"):
            return 1
        card = self.cards.get(question.model)
        return self.settings.max_batch or (16 if card is not None and card.task == "classify" else 1)

    async def _load(self, copies: Mapping[str, files.Copy]) -> None:
        versions = {name: copied.version for name, copied in copies.items()}
        await self.pool.load({name: copied.place for name, copied in copies.items()}, versions)
        self._rules = await asyncio.to_thread(_rules_of, list(self.cards.values()))


def _rules_of(cards: Sequence[ModelCard]) -> "dict[str, Preprocess]":
    """How those that classify see pictures, by name."""
    from van.preprocess import Preprocess  # not before a model is there: what it builds on takes a while

    return {card.name: Preprocess.from_dict(card.preprocess) for card in cards if card.task == "classify"}


async def _all(calls: Sequence[Any]) -> list[Any]:
    """What each of them returns; when one raises or the caller is cancelled, the others are."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


def _want_drawable(name: str, width: int, height: int) -> None:
    """Refuse to draw over a strip, whose drawing would take a worker half a minute.

    Raises:
        Refused: one side is far too long.
    """
    longer = max(width, height)
    if longer > _MOST_DRAWN_PX:
        told = f"{name} is {width}x{height}, too long to be drawn on; wanted sides of at most {_MOST_DRAWN_PX:,} pixels"
        raise Refused(413, "too_long", told)
