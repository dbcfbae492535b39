"""The service behind the routes: the models, their workers, and the path of an image from bytes to a prediction."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from van.errors import ImageError, VanError
from van.serving import model_files
from van.serving.api_error import ApiError
from van.serving.batcher import Batcher, CompletedRequest
from van.serving.copy_folder import CopyFolder, delete_stale_folders
from van.serving.decoding import Decoder
from van.serving.messages import InferenceRequest, ModelCard, RequestKind
from van.serving.metrics import Metrics
from van.serving.pool import WorkerPool
from van.serving.quota import Quota
from van.serving.settings import Settings

if TYPE_CHECKING:
    from van.preprocess import CenterCropPreprocess

_log = logging.getLogger("van.serving")
_DEFAULT_CLASSIFY_BATCH = 16
_MAX_DRAWN_SIDE_PX = 1 << 14
"""Longest side of an image that is drawn on."""


class Outcome(NamedTuple):
    """The result of one image with its timings, or an error."""

    result: Any
    error: ApiError | None
    decode_s: float = 0.0
    completed: CompletedRequest | None = None

    def timings(self) -> dict[str, float | int]:
        """Return the times of the image in milliseconds, and the size of its batch."""
        if self.completed is None:
            return {}
        response = self.completed.response
        times = {"queue_ms": self.completed.queue_s, "inference_ms": response.inference_s}
        rounded = {name: round(1000 * seconds, 2) for name, seconds in times.items()}
        return {**rounded, "batch_size": response.batch_size}

    @property
    def is_stale_crop(self) -> bool:
        """Return whether the image was cropped for a model that has been replaced."""
        return self.completed is not None and self.completed.response.error_kind == "stale_crop"


class Service:
    """Models, their workers and the limits of both.

    Args:
        settings: settings of the server.
        sources: the models; the first one serves requests without a model name.
    """

    def __init__(self, settings: Settings, sources: Sequence[model_files.ModelSource]) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.state: Literal["starting", "ready", "stopping"] = "starting"
        self._sources = {source.name: source for source in sources}
        self._copies: dict[str, model_files.ModelCopy] = {}
        self._failed_fingerprints: dict[str, tuple[model_files.Fingerprint, ...]] = {}
        self._logged_failures: dict[str, str] = {}
        for folder in delete_stale_folders():
            _log.warning("deleted the model copies of a killed server", extra={"folder": str(folder)})
        self._folder = CopyFolder()
        limits = settings.limits
        self.memory = Quota(
            limits.max_memory_bytes,
            code="memory_full",
            resource="memory for images",
            on_change=self.metrics.memory_bytes.set,
        )
        self._queue_quotas = {
            name: Quota(
                limits.max_queue,
                code="queue_full",
                resource=f"queue of {name}",
                on_change=self.metrics.images_in_progress.labels(name).set,
            )
            for name in self._sources
        }
        self._batcher = Batcher(
            self._max_batch,
            max_wait_s=settings.max_wait_s,
            on_depth=lambda name, depth: self.metrics.queue_depth.labels(name).set(depth),
        )
        self.pool = WorkerPool(
            self._batcher,
            self.metrics,
            workers=settings.workers,
            threads=settings.worker_threads,
            device=settings.device,
            batch_timeout_s=2 * limits.timeout_s,
        )
        self._decoder = Decoder(len(os.sched_getaffinity(0)), limits=limits, memory=self.memory)
        self._crop_rules: dict[str, CenterCropPreprocess] = {}
        self._load_lock = asyncio.Lock()

    @property
    def is_ready(self) -> bool:
        """Return whether requests are served at the moment."""
        return self.state == "ready" and self.pool.ready_count > 0

    @property
    def cards(self) -> dict[str, ModelCard]:
        """Return the cards of the served models by name."""
        return self.pool.cards

    @property
    def default_model(self) -> str:
        """Return the name of the model for requests without a model name."""
        return next(iter(self._sources))

    def card(self, name: object = None) -> ModelCard:
        """Return the card of a model, of the default model if ``name`` is None.

        Raises:
            ApiError: 404, no model has that name.
        """
        model = self.default_model if name is None else name
        if not isinstance(model, str) or model not in self.cards:
            served = ", ".join(self.cards)
            raise ApiError(404, "model_not_found", f"unknown model {str(model)[:60]!r}; expected one of {served}")
        return self.cards[model]

    async def start(self) -> None:
        """Load all models.

        Raises:
            VanError: a model cannot be loaded.
        """
        for name, source in self._sources.items():
            self._copies[name] = await asyncio.to_thread(model_files.copy_model, source, self._folder.path)
        await self._load(self._copies)
        self.state = "ready"

    async def stop(self) -> None:
        """Stop the workers and delete the copies of the models."""
        self.state = "stopping"
        await self.pool.stop()
        self._decoder.stop()
        self._folder.remove()

    async def abort(self) -> None:
        """Kill the workers and fail all queued requests, as the shutdown timeout has expired."""
        self.pool.kill()
        await self.pool.stop()
        self._batcher.fail_all(
            ApiError(503, "shutting_down", "the server shut down before the request was finished", retry_after_s=5)
        )

    async def watch_model_files(self) -> None:
        """Reload changed model files, in an endless loop."""
        while self.settings.reload_interval_s:
            await asyncio.sleep(self.settings.reload_interval_s)
            for name, source in self._sources.items():
                if source.path is None:
                    continue
                fingerprints = model_files.fingerprint_files(source.path)
                known = (self._copies[name].fingerprints, self._failed_fingerprints.get(name))
                if fingerprints and fingerprints not in known:
                    try:
                        await self.reload_model(name)
                    except Exception:  # such as a full disk; the loaded model continues, and the next check tries again
                        _log.exception("model reload failed unexpectedly", extra={"model": name})

    async def reload_model(self, name: str) -> str:
        """Load the file of a model again and switch to it; returns an error message, or ``""``.

        Requests that were accepted before are run by the previous workers.
        """
        source = self._sources[name]
        async with self._load_lock:
            fresh: model_files.ModelCopy | None = None
            try:
                fresh = await asyncio.to_thread(model_files.copy_model, source, self._folder.path)
                await self._load({**self._copies, name: fresh})
            except VanError as error:
                self._failed_fingerprints[name] = () if fresh is None else fresh.fingerprints
                self.metrics.model_reloads.labels(name, "failed").inc()
                if self._logged_failures.get(name) != str(error):  # a file that cannot be copied is retried every time
                    _log.error("model reload failed", extra={"model": name, "reason": str(error)})
                self._logged_failures[name] = str(error)
                if fresh is not None:
                    model_files.delete_copy(fresh)
                return str(error)
            self._logged_failures.pop(name, None)
            previous, self._copies[name] = self._copies[name], fresh
            model_files.delete_copy(previous)
            self.metrics.model_reloads.labels(name, "loaded").inc()
            _log.info("model reloaded", extra={"model": name, "version": fresh.version})
            return ""

    async def infer(
        self, kind: RequestKind, card: ModelCard, images: Sequence[tuple[str, bytes]], options: Mapping[str, Any]
    ) -> list[Outcome]:
        """Run a model on image files, given as (name, content); returns an outcome for each, in the same order.

        Raises:
            ApiError: 429, the queue has no place for all of them.
        """
        with self._queue_quotas[card.name].reserve(len(images)):
            return await _gather([self._infer_image(kind, card, name, data, options) for name, data in images])

    async def infer_tensors(
        self, card: ModelCard, tensors: Sequence[bytes], size: tuple[int, int], options: Mapping[str, Any]
    ) -> list[Outcome]:
        """Run a model on preprocessed images: 3 x rows x columns float32 of one size (rows, columns).

        Raises:
            ApiError: 429, the queue has no place for all of them.
        """
        rows, columns = size

        async def infer_tensor(index: int, data: bytes) -> Outcome:
            request = InferenceRequest(
                kind="tensor", model=card.name, name=f"image {index}", width=columns, height=rows, options=options
            )
            return await self._run(request, data, 0.0)

        with self._queue_quotas[card.name].reserve(len(tensors)):
            return await _gather([infer_tensor(index, data) for index, data in enumerate(tensors)])

    async def _infer_image(
        self, kind: RequestKind, card: ModelCard, name: str, data: bytes, options: Mapping[str, Any]
    ) -> Outcome:
        crop = self._crop_rules.get(card.name) if kind == "predict" and not options.get("png") else None
        outcome = await self._decode_and_run(kind, card, name, data, options, crop)
        if outcome.is_stale_crop:  # the model was replaced by one with another preprocessing rule: send the whole image
            outcome = await self._decode_and_run(kind, card, name, data, options, None)
        return outcome

    async def _decode_and_run(
        self,
        kind: RequestKind,
        card: ModelCard,
        name: str,
        data: bytes,
        options: Mapping[str, Any],
        crop: "CenterCropPreprocess | None",
    ) -> Outcome:
        """Decode an image, crop it by ``crop`` if given, and run the model on it."""
        start = time.perf_counter()
        try:
            async with self._decoder.decode(data, name, crop) as pixels:
                decode_s = time.perf_counter() - start
                self.metrics.stage_seconds.labels("decode").observe(decode_s)
                if kind == "lka" or options.get("png"):
                    _check_drawable(name, pixels.width, pixels.height)
                request = InferenceRequest(
                    kind=kind if crop is None else "crop",
                    model=card.name,
                    name=name,
                    width=pixels.width,
                    height=pixels.height,
                    options=options,
                    preprocess=crop.to_dict() if crop is not None else {},
                )
                return await self._run(request, pixels.content, decode_s)
        except ImageError as error:
            return Outcome(None, ApiError(422, "invalid_image", str(error)), time.perf_counter() - start)
        except ApiError as error:
            return Outcome(None, error, time.perf_counter() - start)

    async def _run(self, request: InferenceRequest, payload: bytes, decode_s: float) -> Outcome:
        try:
            completed = await self._batcher.put(request, payload)
        except ApiError as error:  # the server shut down
            return Outcome(None, error, decode_s)
        response = completed.response
        if not response.error:
            return Outcome(response.result, None, decode_s, completed)
        client_errors = {"request": "invalid_parameter", "image": "invalid_image"}
        code = client_errors.get(response.error_kind, "inference_failed")
        status = 422 if response.error_kind in client_errors else 500
        return Outcome(None, ApiError(status, code, response.error), decode_s, completed)

    def _max_batch(self, request: InferenceRequest) -> int:
        if request.kind in ("cam", "lka"):
            return 1
        card = self.cards.get(request.model)
        is_classifier = card is not None and card.task == "classify"
        return self.settings.max_batch or (_DEFAULT_CLASSIFY_BATCH if is_classifier else 1)

    async def _load(self, copies: Mapping[str, model_files.ModelCopy]) -> None:
        versions = {name: copied.version for name, copied in copies.items()}
        await self.pool.load({name: copied.path for name, copied in copies.items()}, versions)
        self._crop_rules = await asyncio.to_thread(_crop_rules, list(self.cards.values()))


def _crop_rules(cards: Sequence[ModelCard]) -> "dict[str, CenterCropPreprocess]":
    """Return the crop of each classifier by name."""
    from van.preprocess import CenterCropPreprocess  # imported only when a model is loaded, as it takes a while

    return {card.name: CenterCropPreprocess.from_dict(card.preprocess) for card in cards if card.task == "classify"}


async def _gather(calls: Sequence[Any]) -> list[Any]:
    """Return the results of all calls; when one raises or the caller is cancelled, the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call) for call in calls]
    return [task.result() for task in tasks]


def _check_drawable(name: str, width: int, height: int) -> None:
    """Check that an image is not so long that drawing on it takes a worker half a minute.

    Raises:
        ApiError: 413, a side is too long.
    """
    if max(width, height) > _MAX_DRAWN_SIDE_PX:
        size = f"{width}x{height}"
        message = f"{name}: expected sides of at most {_MAX_DRAWN_SIDE_PX:,} pixels for a drawn prediction, got {size}"
        raise ApiError(413, "image_too_long", message)
