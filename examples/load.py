"""Load test of a running server: throughput, latency, and whether every prediction is correct.

    python examples/load.py http://127.0.0.1:8000 cat.jpg dog.jpg --connections 16 --seconds 10
    python examples/load.py http://127.0.0.1:8000 cat.jpg --rate 50 --seconds 10

Without ``--rate`` the load is a closed loop: every connection sends its next image when it has the response to the
previous one, which measures the maximum throughput. With ``--rate`` it is an open loop: images arrive at random times
at that rate, whether or not earlier ones are finished, and latency counts from the arrival, as for real clients.

Every image is first predicted without other load. A prediction under load that differs is incorrect; a request without
a prediction has failed. Rejections (429 and 503) are counted separately, with their latency. Needs Python only.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REJECTIONS = (429, 503)
SCORE_TOLERANCE = 0.002
"""Tolerance of scores: the sums of a batch are rounded differently from those of a single image."""
BOX_TOLERANCE_PX = 0.5
IDLE_S = 2.0
"""A connection that was idle for longer is opened again."""
RETRY_S = 0.05
"""Pause of a client after a rejection."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """The URL to send images to: ``path`` includes the query; ``key`` is the API key or empty."""

    host: str
    port: int
    path: str = "/predict"
    key: str = ""

    def make_request(self, image: bytes) -> bytes:
        """Return the headers and body of a request."""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{key}"
        return f"{head}Content-Type: image/*\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image


@dataclasses.dataclass(kw_only=True)
class LoadResult:
    """The result of a load test, with the latencies of correct predictions and of rejections in seconds."""

    seconds: float = 0.0
    sent: int = 0
    incorrect: int = 0
    failed: int = 0
    latencies_s: list[float] = dataclasses.field(default_factory=list)
    rejected_s: list[float] = dataclasses.field(default_factory=list)
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def throughput(self) -> float:
        """Return correct predictions per second."""
        return len(self.latencies_s) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, with times in milliseconds."""
        fields: dict[str, Any] = {key: getattr(self, key) for key in ("seconds", "sent", "incorrect", "failed")}
        fields |= {"correct": len(self.latencies_s), "rejected": len(self.rejected_s), "images_per_s": self.throughput}
        for name, times in (("latency", self.latencies_s), ("rejected", self.rejected_s)):
            fields |= {
                f"{name}_p{percent}_ms": 1000 * percentile(times, percent / 100) for percent in (50, 99) if times
            }
        return fields | {"errors": self.errors[:5]}


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the smallest value that at least ``fraction`` of the values do not exceed."""
    return sorted(values)[max(0, -int(-fraction * len(values) // 1) - 1)]


class Connection:
    """A connection that stays open between requests, and is opened again if the server has closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._last_used = 0.0

    async def send(self, request: bytes, *, timeout_s: float = 60) -> tuple[int, bytes]:
        """Send a request; returns the status and body of the response.

        Raises:
            OSError, EOFError, TimeoutError: there is no response.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._send(request)
        except BaseException:
            self.close()
            raise

    async def _send(self, request: bytes) -> tuple[int, bytes]:
        if time.perf_counter() - self._last_used > IDLE_S:  # the server may be closing it at this moment
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._target.host, self._target.port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        headers = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        self._last_used = time.perf_counter()
        if headers.get("connection") == "close":
            self.close()
        return int(head.split(" ", 2)[1]), body

    def close(self) -> None:
        """Close the connection; the next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def is_same(prediction: Any, expected: Any) -> bool:
    """Return whether two predictions are the same up to rounding; timings, names and masks are not compared."""
    if isinstance(expected, dict):
        keys = expected.keys() - {"timings", "image", "mask", "area"}
        return isinstance(prediction, dict) and all(
            key in prediction and is_same(prediction[key], expected[key]) for key in keys
        )
    if isinstance(expected, list):
        return len(prediction) == len(expected) and all(map(is_same, *map(_sort_classes, (prediction, expected))))
    if isinstance(expected, float):
        return abs(prediction - expected) <= (SCORE_TOLERANCE if abs(expected) <= 1 else BOX_TOLERANCE_PX)
    return prediction == expected


def _sort_classes(values: list[Any]) -> list[Any]:
    """Sort class scores by index, as the order of nearly equal scores may change; other lists keep their order."""
    is_ranked = all(isinstance(value, dict) and value.keys() == {"label", "score", "index"} for value in values)
    return sorted(values, key=lambda value: value["index"]) if is_ranked else values


class LoadGenerator:
    """Sends ``images`` in turn and compares each prediction with the expected one."""

    def __init__(self, target: Target, images: Sequence[bytes], expected: Sequence[Any]) -> None:
        self._target = target
        self._requests = [target.make_request(image) for image in images]
        self._expected = expected
        self._idle: list[Connection] = []

    async def run_closed_loop(self, *, connections: int, seconds: float, warmup_s: float = 0.0) -> LoadResult:
        """Send the next image of each connection when its previous one is finished.

        Predictions within the first ``warmup_s`` are checked, but not counted.
        """
        result = LoadResult()
        start = time.perf_counter() + warmup_s
        end = start + seconds

        async def run_client(number: int) -> None:
            while time.perf_counter() < end:
                await self._send(number, time.perf_counter(), result, counts=lambda now: start <= now <= end)
                number += connections

        await asyncio.gather(*(run_client(number) for number in range(connections)))
        self._close()
        return dataclasses.replace(result, seconds=seconds)

    async def run_open_loop(self, *, rate: float, seconds: float, seed: int = 0) -> LoadResult:
        """Send images at random times, ``rate`` per second, whether or not earlier ones are finished."""
        result, chance = LoadResult(), random.Random(seed)
        start = arrival = time.perf_counter()
        tasks = []
        while (arrival := arrival + chance.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(self._send(len(tasks), arrival, result)))
        await asyncio.gather(*tasks)
        self._close()
        return dataclasses.replace(result, seconds=time.perf_counter() - start)

    async def _send(
        self, number: int, arrival: float, result: LoadResult, counts: Callable[[float], bool] = lambda now: True
    ) -> None:
        index = number % len(self._requests)
        connection = self._idle.pop() if self._idle else Connection(self._target)
        result.sent += 1
        try:
            status, body = await connection.send(self._requests[index])
        except (OSError, EOFError, TimeoutError, ValueError, KeyError) as error:
            result.failed += 1
            result.errors.append(f"{type(error).__name__}: {error}")
            return
        self._idle.append(connection)
        now = time.perf_counter()
        if status in REJECTIONS:
            result.rejected_s.append(now - arrival)
            await asyncio.sleep(RETRY_S)
        elif status != 200:
            result.failed += 1
            result.errors.append(f"status {status}: {body[:200].decode(errors='replace')}")
        elif not is_same(json.loads(body)["predictions"][0], self._expected[index]):
            result.incorrect += 1
        elif counts(now):
            result.latencies_s.append(now - arrival)

    def _close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()


async def predict_unloaded(target: Target, images: Sequence[bytes]) -> list[Any]:
    """Return the predictions of the images, sent one after the other."""
    connection = Connection(target)
    predictions = []
    for image in images:
        status, body = await connection.send(target.make_request(image))
        if status != 200:
            sys.exit(f"load: expected status 200, got {status}: {body.decode(errors='replace')[:500]}")
        predictions.append(json.loads(body)["predictions"][0])
    connection.close()
    return predictions


def main() -> int:
    """Run a load test; returns 1 if a prediction was incorrect or a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="URL of the server")
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--model", default="", help="served model; the first one by default")
    parser.add_argument("--connections", type=int, default=16, help="connections of the closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="images per second of an open loop")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration")
    parser.add_argument("--warmup-s", type=float, default=2.0, help="time before the closed loop is counted")
    parser.add_argument("--key-file", type=Path, help="file with the API key")
    arguments = parser.parse_args()
    url = urlsplit(arguments.url)
    target = Target(
        host=url.hostname or "127.0.0.1",
        port=url.port or 80,
        path=f"{url.path.rstrip('/')}/predict" + (f"?model={arguments.model}" if arguments.model else ""),
        key=arguments.key_file.read_text().strip() if arguments.key_file else "",
    )
    images = [path.read_bytes() for path in arguments.images]

    async def run() -> LoadResult:
        generator = LoadGenerator(target, images, await predict_unloaded(target, images))
        if arguments.rate:
            return await generator.run_open_loop(rate=arguments.rate, seconds=arguments.seconds)
        return await generator.run_closed_loop(
            connections=arguments.connections, seconds=arguments.seconds, warmup_s=arguments.warmup_s
        )

    result = asyncio.run(run())
    print(json.dumps(result.to_dict(), indent=2))
    return 1 if result.incorrect or result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
