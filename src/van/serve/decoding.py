"""From a picture's file to the pixels that a worker is sent, in threads of the front.

A network that classifies sees a small square from the middle of a picture: it is cut out here, where other cores are
idle, and only its pixels go through the pipe. What is decoded at the same moment is bounded twice: by the threads, and
by the memory that all requests share. A picture waits for a thread before any memory is taken for it; where there is
too little it waits for the end of what is being decoded, and is refused where that is nothing.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from van.pictures import MAX_PIXELS, read_picture
from van.serve.budget import Budget
from van.serve.headers import Head, read_head
from van.serve.refusals import Refused
from van.serve.settings import Limits

if TYPE_CHECKING:
    from van.preprocess import Preprocess

_T = TypeVar("_T")


class Pixels(NamedTuple):
    """RGB pixels, rows x columns x 3 bytes."""

    width: int
    height: int
    content: bytes


class Decoder:
    """Threads that decode, and what they may hold.

    Args:
        threads: pictures decoded at the same moment.
        limits: of pixels, and of the memory that ``memory`` gives.
        memory: of all requests together.
    """

    def __init__(self, threads: int, *, limits: Limits, memory: Budget) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="van-decode")
        self._free = asyncio.Semaphore(threads)
        self._limits = limits
        self._memory = memory
        self._busy = 0
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def pixels(self, data: bytes, name: str, rule: "Preprocess | None") -> AsyncIterator[Pixels]:
        """The pixels of a file, or by ``rule`` of what a network sees of it; their memory counts until the block ends.

        Raises:
            PictureError: it cannot be read.
            Refused: it is too large, or there is no memory for it at the moment.
        """
        with contextlib.ExitStack() as busy:
            await self._free.acquire()
            busy.callback(self._free.release)
            head = await self._in_thread(lambda: read_head(data, name))
            self._want_small(head, len(data), name)
            while self._busy and not self._memory.has(head.peak_bytes):
                await self._ended.wait()
            busy.enter_context(self._counted())
            busy.enter_context(self._memory.taken(head.peak_bytes))
            decoding = asyncio.ensure_future(self._in_thread(lambda: _decoded(data, name, rule)))
            try:
                pixels = await asyncio.shield(decoding)
            except asyncio.CancelledError:  # the thread goes on, and what it holds counts until it is done
                later = busy.pop_all()
                decoding.add_done_callback(lambda done: (done.cancelled() or done.exception(), later.close()))
                raise
        with self._memory.taken(len(pixels.content)):
            yield pixels

    def stop(self) -> None:
        """End the threads when they have done what they do."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            self._ended.set()
            self._ended = asyncio.Event()

    def _want_small(self, head: Head, file_bytes: int, name: str) -> None:
        pixels, most = head.width * head.height, min(self._limits.pixels, MAX_PIXELS)
        told = f"{name} is {head.width}x{head.height}, {pixels:,} pixels"
        if pixels > most:
            raise Refused(413, "too_many_pixels", f"{told}; wanted at most {most:,}, so make it smaller")
        needed, room = head.peak_bytes + file_bytes, self._limits.memory_bytes
        if needed > room:
            said = f"{told}, and takes {needed:,} bytes to be read; wanted at most {room:,}, so make it smaller"
            raise Refused(413, "too_much_memory", said)

    async def _in_thread(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _decoded(data: bytes, name: str, rule: "Preprocess | None") -> Pixels:
    picture = read_picture(data, name=name)
    if rule is not None:
        picture = rule.crop(picture)
    return Pixels(*picture.size, picture.tobytes())
