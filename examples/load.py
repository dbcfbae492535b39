"""How many pictures a running service answers in a second, how soon, and whether each answer is right.

    python examples/load.py http://127.0.0.1:8000 cat.jpg dog.jpg --connections 16 --seconds 10
    python examples/load.py http://127.0.0.1:8000 cat.jpg --rate 50 --seconds 10

Without ``--rate`` the loop is closed: every connection sends its next picture when the last is answered, which shows
what the service can do at most. With it pictures arrive at random moments, so many a second, whether or not earlier
ones are answered, and an answer's time counts from the moment of arrival: what visitors meet.

Every picture is first asked about alone; an answer under load that says otherwise is wrong, one that does not come is
lost. Refusals (429 and 503) are counted apart, and by how soon they come. Needs nothing but Python.
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

REFUSALS = (429, 503)
TOLERANCE = 0.002
"""Of probabilities and scores: a batch is summed in another order than a picture alone."""
TOLERANCE_PX = 0.5
IDLE_S = 2.0
"""A connection that was not used for so long is opened anew."""
PAUSE_S = 0.05
"""Of a visitor who was refused; the others go on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """Where pictures go: ``path`` with its query; ``key`` where one is wanted."""

    host: str
    port: int
    path: str = "/predict"
    key: str = ""

    def request(self, picture: bytes) -> bytes:
        """Head and body."""
        key = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        head = f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{key}"
        return f"{head}Content-Type: image/*\r\nContent-Length: {len(picture)}\r\n\r\n".encode() + picture


@dataclasses.dataclass(kw_only=True)
class Load:
    """What came of it; seconds until each right answer in ``answered_s``, until each refusal in ``refused_s``."""

    seconds: float = 0.0
    sent: int = 0
    wrong: int = 0
    lost: int = 0
    answered_s: list[float] = dataclasses.field(default_factory=list)
    refused_s: list[float] = dataclasses.field(default_factory=list)
    troubles: list[str] = dataclasses.field(default_factory=list)

    @property
    def rate(self) -> float:
        """Right answers in a second."""
        return len(self.answered_s) / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, times in milliseconds."""
        plain: dict[str, Any] = {key: getattr(self, key) for key in ("seconds", "sent", "wrong", "lost")}
        plain |= {"answered": len(self.answered_s), "refused": len(self.refused_s), "answers_per_second": self.rate}
        for name, taken in (("answered", self.answered_s), ("refused", self.refused_s)):
            plain |= {f"{name}_p{share}_ms": 1000 * percentile(taken, share / 100) for share in (50, 99) if taken}
        return plain | {"troubles": self.troubles[:5]}


def percentile(values: Sequence[float], share: float) -> float:
    """The least of the values that at least ``share`` of them do not exceed."""
    return sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]


class Connection:
    """One that stays open between requests, and is opened again where the service has closed it."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._used = 0.0

    async def ask(self, request: bytes, *, timeout_s: float = 60) -> tuple[int, bytes]:
        """Status and body of the answer.

        Raises:
            OSError, EOFError, TimeoutError: there is none.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(request)
        except BaseException:
            self.close()
            raise

    async def _ask(self, request: bytes) -> tuple[int, bytes]:
        if time.perf_counter() - self._used > IDLE_S:  # the service may be closing it at this very moment
            self.close()
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._target.host, self._target.port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.splitlines()[1:] if ": " in line)
        body = await reader.readexactly(int(fields["content-length"]))
        self._used = time.perf_counter()
        if fields.get("connection") == "close":
            self.close()
        return int(head.split(" ", 2)[1]), body

    def close(self) -> None:
        """The next request opens it again."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def same(answer: Any, expected: Any) -> bool:
    """Whether two answers say the same, but for rounding; timings and names do not count."""
    if isinstance(expected, dict):
        names = expected.keys() - {"timings", "picture", "mask", "area"}
        return isinstance(answer, dict) and all(name in answer and same(answer[name], expected[name]) for name in names)
    if isinstance(expected, list):
        return len(answer) == len(expected) and all(map(same, *map(_in_order, (answer, expected))))
    if isinstance(expected, float):
        return abs(answer - expected) <= (TOLERANCE if abs(expected) <= 1 else TOLERANCE_PX)
    return answer == expected


def _in_order(values: list[Any]) -> list[Any]:
    """Classes by number: of two that are all but equal either may come first."""
    is_ranked = all(isinstance(value, dict) and "probability" in value for value in values)
    return sorted(values, key=lambda value: value["index"]) if is_ranked else values


class Generator:
    """Sends ``pictures`` in turn, and holds each answer against what is expected of it."""

    def __init__(self, target: Target, pictures: Sequence[bytes], expected: Sequence[Any]) -> None:
        self._target = target
        self._requests = [target.request(picture) for picture in pictures]
        self._expected = expected
        self._free: list[Connection] = []

    async def closed(self, *, connections: int, seconds: float, warm_s: float = 0.0) -> Load:
        """Each of so many connections sends its next picture when the last is answered.

        What is answered within the first ``warm_s`` does not count, but is looked at.
        """
        load = Load()
        start = time.perf_counter() + warm_s
        end = start + seconds

        async def visit(number: int) -> None:
            while time.perf_counter() < end:
                await self._ask(number, time.perf_counter(), load, counts=lambda now: start <= now <= end)
                number += connections

        await asyncio.gather(*(visit(number) for number in range(connections)))
        self._close()
        return dataclasses.replace(load, seconds=seconds)

    async def open(self, *, rate: float, seconds: float, seed: int = 0) -> Load:
        """Pictures arrive at random moments, ``rate`` a second, whatever has become of those before."""
        load, chance = Load(), random.Random(seed)
        start = arrival = time.perf_counter()
        visits = []
        while (arrival := arrival + chance.expovariate(rate)) < start + seconds:
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            visits.append(asyncio.create_task(self._ask(len(visits), arrival, load)))
        await asyncio.gather(*visits)
        self._close()
        return dataclasses.replace(load, seconds=time.perf_counter() - start)

    async def _ask(
        self, number: int, since: float, load: Load, counts: Callable[[float], bool] = lambda now: True
    ) -> None:
        place = number % len(self._requests)
        connection = self._free.pop() if self._free else Connection(self._target)
        load.sent += 1
        try:
            status, body = await connection.ask(self._requests[place])
        except (OSError, EOFError, TimeoutError, ValueError, KeyError) as error:
            load.lost += 1
            load.troubles.append(f"{type(error).__name__}: {error}")
            return
        self._free.append(connection)
        now = time.perf_counter()
        if status in REFUSALS:
            load.refused_s.append(now - since)
            await asyncio.sleep(PAUSE_S)
        elif status != 200:
            load.lost += 1
            load.troubles.append(f"status {status}: {body[:200].decode(errors='replace')}")
        else:
            if not same(json.loads(body)["answers"][0], self._expected[place]):
                load.wrong += 1
            elif counts(now):
                load.answered_s.append(now - since)

    def _close(self) -> None:
        for connection in self._free:
            connection.close()
        self._free.clear()


async def ask_alone(target: Target, pictures: Sequence[bytes]) -> list[Any]:
    """What the service says of each picture when it has nothing else to do."""
    connection = Connection(target)
    answers = []
    for picture in pictures:
        status, body = await connection.ask(target.request(picture))
        if status != 200:
            sys.exit(f"load: status {status}: {body.decode(errors='replace')[:500]}")
        answers.append(json.loads(body)["answers"][0])
    connection.close()
    return answers


def main() -> int:
    """Run it; 1 if an answer was wrong or lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the service")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--model", default="", help="the served name; the first one if left out")
    parser.add_argument("--connections", type=int, default=16, help="of the closed loop")
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second: an open loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warm-s", type=float, default=2.0, help="of the closed loop, not counted")
    parser.add_argument("--key-file", type=Path, help="holds the API key")
    asked = parser.parse_args()
    url = urlsplit(asked.url)
    target = Target(
        host=url.hostname or "127.0.0.1",
        port=url.port or 80,
        path=f"{url.path.rstrip('/')}/predict" + (f"?model={asked.model}" if asked.model else ""),
        key=asked.key_file.read_text().strip() if asked.key_file else "",
    )
    pictures = [path.read_bytes() for path in asked.pictures]

    async def run() -> Load:
        generator = Generator(target, pictures, await ask_alone(target, pictures))
        if asked.rate:
            return await generator.open(rate=asked.rate, seconds=asked.seconds)
        return await generator.closed(connections=asked.connections, seconds=asked.seconds, warm_s=asked.warm_s)

    load = asyncio.run(run())
    print(json.dumps(load.to_dict(), indent=2))
    return 1 if load.wrong or load.lost else 0


if __name__ == "__main__":
    sys.exit(main())
