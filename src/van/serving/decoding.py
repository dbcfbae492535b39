"""Decoding of image files to pixels in threads of the front end.

A classifier reads a small square from the center of an image: the front end crops it, where other cores are idle, and
sends only its pixels to the worker. Concurrent decoding is limited twice: by the number of threads, and by the memory
that all requests share. An image waits for a thread before any memory is reserved for it; while there is too little
memory it waits for the images that are being decoded, and is rejected if there are none.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from van.images import MAX_PIXELS, read_image
from van.serving.api_error import ApiError
from van.serving.image_probe import ImageHeader, read_image_header
from van.serving.quota import Quota
from van.serving.settings import Limits

if TYPE_CHECKING:
    from van.preprocess import CenterCropPreprocess

_T = TypeVar("_T")


class Pixels(NamedTuple):
    """Decoded RGB pixels: rows x columns x 3 bytes."""

    width: int
    height: int
    content: bytes


class Decoder:
    """A pool of decoding threads with a memory limit.

    Args:
        threads: number of images decoded at the same time.
        limits: limits on the pixels of an image and on memory.
        memory: memory quota of all requests.
    """

    def __init__(self, threads: int, *, limits: Limits, memory: Quota) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="van-decode")
        self._free_threads = asyncio.Semaphore(threads)
        self._limits = limits
        self._memory = memory
        self._decoding = 0
        self._finished = asyncio.Event()

    @contextlib.asynccontextmanager
    async def decode(self, data: bytes, name: str, crop: "CenterCropPreprocess | None") -> AsyncIterator[Pixels]:
        """Decode a file, cropped by ``crop`` if given; the memory of the pixels is released at the end of the block.

        Raises:
            ImageError: the file is not a readable image.
            ApiError: the image is too large, or there is not enough memory at the moment.
        """
        with contextlib.ExitStack() as resources:
            await self._free_threads.acquire()
            resources.callback(self._free_threads.release)
            header = await self._run_in_thread(lambda: read_image_header(data, name))
            self._check_size(header, len(data), name)
            while self._decoding and not self._memory.has(header.peak_bytes):
                await self._finished.wait()
            resources.enter_context(self._count_decoding())
            resources.enter_context(self._memory.reserve(header.peak_bytes))
            decoding = asyncio.ensure_future(self._run_in_thread(lambda: _decode(data, name, crop)))
            try:
                pixels = await asyncio.shield(decoding)
            except asyncio.CancelledError:  # a thread cannot be stopped; its memory is released when it has finished
                remaining = resources.pop_all()
                decoding.add_done_callback(lambda done: (done.cancelled() or done.exception(), remaining.close()))
                raise
        with self._memory.reserve(len(pixels.content)):
            yield pixels

    def stop(self) -> None:
        """Wait for the running threads and end them."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def _count_decoding(self) -> Iterator[None]:
        self._decoding += 1
        try:
            yield
        finally:
            self._decoding -= 1
            self._finished.set()
            self._finished = asyncio.Event()

    def _check_size(self, header: ImageHeader, file_bytes: int, name: str) -> None:
        pixels, max_pixels = header.width * header.height, min(self._limits.max_pixels, MAX_PIXELS)
        image = f"{name} ({header.width}x{header.height})"
        if pixels > max_pixels:
            message = f"{image}: expected at most {max_pixels:,} pixels, got {pixels:,}; make the image smaller"
            raise ApiError(413, "too_many_pixels", message)
        needed, available = header.peak_bytes + file_bytes, self._limits.max_memory_bytes
        if needed > available:
            message = (
                f"{image}: decoding needs {needed:,} bytes, expected at most {available:,}; make the image smaller"
            )
            raise ApiError(413, "image_too_large", message)

    async def _run_in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _decode(data: bytes, name: str, crop: "CenterCropPreprocess | None") -> Pixels:
    image = read_image(data, name=name, untrusted=True)
    if crop is not None:
        image = crop.crop(image)
    return Pixels(*image.size, image.tobytes())
