"""What clients, disks and files can do to a service: it refuses in words, forgets nothing that it took, and goes on."""

import base64
import contextlib
import json
import os
import random
import resource
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from explain.small import picture, write_small
from serve.conftest import png
from serve.damage import written
from serve.running import Running, running

CONTENT_TYPES = (b"image/png", b"application/json", b"multipart/form-data; boundary=x", b"text/plain", b"", b"\xff;;=")


@pytest.fixture
def unharmed(service) -> Iterator[Callable[[], httpx.Response]]:
    """A service that answers afterwards as before, holds nothing, and has complained of nothing."""

    def ask() -> httpx.Response:
        return service.client.post("/predict", content=png(), headers={"Content-Type": "image/png"})

    before, files = ask().json()["answers"][0]["classes"], open_files(service)
    lines, told = len(service.lines), len(service.told)
    yield ask
    assert ask().json()["answers"][0]["classes"] == before
    for held in ("van_requests_in_work", "van_accepted_pictures", "van_memory_bytes"):
        assert service.wait_until(lambda held=held: service.metric(held) == 0, 10), held
    assert service.wait_until(lambda: open_files(service) <= files + 2, 10), (files, open_files(service))
    errors = [line for line in service.lines[lines:] if line["level"] not in ("info", "warning") or "error" in line]
    assert errors == []
    assert service.told[told:] == []  # nothing but the service's own records, and nothing of what clients sent


def open_files(server: Running) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def connected(server: Running) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=15)


def sent(server: Running, raw: bytes, *, patience_s: float = 0.5) -> bytes:
    """What comes back when ``raw`` is sent; where that is nothing for a while, nothing more will be sent."""
    found = b""
    with connected(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(raw)
        if not select.select([connection], [], [], patience_s)[0]:
            connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65536):
            found += more
    return found


def request(body: bytes, kind: bytes, *, host: str, path: bytes = b"/predict", more: bytes = b"") -> bytes:
    head = b"POST " + path + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: close\r\n" + more
    return head + b"Content-Type: " + kind + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def pictures_of_every_format() -> list[bytes]:
    import io

    found = []
    for kind in ("png", "jpeg", "webp", "gif", "tiff", "bmp", "ppm"):
        written = io.BytesIO()
        picture(40, 30).save(written, format=kind)
        found.append(written.getvalue())
    return found


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Cut off, with bytes changed, doubled or left out."""
    made = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = chance.randrange(len(made) + 1)
        match chance.randrange(5):
            case 0:
                del made[place:]
            case 1:
                made[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 2:
                made[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                del made[place : place + chance.randrange(1, 50)]
            case _:
                made[place:place] = made[: chance.randrange(200)]
    return bytes(made)


def form(data: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\n'
    return head + data + b'\r\n--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n2\r\n--x--\r\n'


def malformed(number: int, host: str, files: list[bytes]) -> bytes:
    """A request that follows from its number; most are wrong in some way, some by luck are not."""
    chance = random.Random(number)
    file = chance.choice(files)
    tensor = {"name": "input", "shape": [1, 3, 64, 64], "datatype": "FP32", "data": [0.5] * 12}
    texts = [
        json.dumps({"pictures": [base64.b64encode(file).decode()], "top": 2}).encode(),
        json.dumps({"pictures": [{"name": "a", "data": base64.b64encode(file).decode()}]}).encode(),
        json.dumps({"inputs": [tensor]}).encode(),
        b"[" * chance.randrange(1, 100_000),
        b'{"a":' * chance.randrange(1, 50_000),
        json.dumps(
            {"pictures": [chance.choice([None, 1, [], {}, "", "file:///etc/passwd", "\ud800", 1e308])]}
        ).encode(),
        b'{"pictures": [], "top": 1e999, "top": NaN, "model": "\x00"}',
    ]
    path = chance.choice(
        [b"/predict", b"/explain", b"/v2/models/small/infer", b"/predict?top=%00", b"/explain?kind=lka"]
    )
    whole = lambda body, kind: request(body, kind, host=host, path=path)  # noqa: E731
    match chance.randrange(9):
        case 0:
            return whole(damaged(file, chance), b"image/png")
        case 1:
            return whole(damaged(form(file), chance), b"multipart/form-data; boundary=x")
        case 2:
            return whole(damaged(chance.choice(texts), chance), b"application/json")
        case 3:
            return whole(chance.choice(texts), b"application/json")
        case 4:
            return whole(chance.randbytes(chance.randrange(2000)), chance.choice(CONTENT_TYPES))
        case 5:  # the head itself
            return damaged(whole(file, b"image/png"), chance)
        case 6:
            more = chance.choice(
                [b"Transfer-Encoding: chunked\r\n", b"Content-Length: -1\r\n", b"Content-Length: 9e9\r\n"]
            )
            return request(file, b"image/png", host=host, path=path, more=more)
        case 7:
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (file[:100], file[100:]))
            head = b"POST /predict HTTP/1.1\r\nHost: " + host.encode() + b"\r\nTransfer-Encoding: chunked\r\n"
            return damaged(head + b"Content-Type: image/png\r\n\r\n" + chunks + b"0\r\n\r\n", chance)
        case _:
            return chance.randbytes(chance.randrange(1, 3000))


def test_a_thousand_malformed_requests_are_refused_in_words(service, unharmed):
    files, host = pictures_of_every_format(), urlsplit(service.url).netloc
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda number: sent(service, malformed(number, host, files)), range(1000)))
    seen: dict[int, int] = {}
    for number, answer in enumerate(answers):
        if answer:
            status = int(answer.split(b" ", 2)[1])
            seen[status] = seen.get(status, 0) + 1
            assert status < 500 or status == 503, (number, answer[:500])
            assert b"Traceback" not in answer, number
    assert sum(seen.values()) > 700, seen
    assert {200, 400, 415, 422} <= seen.keys(), seen


def test_clients_that_vanish_while_they_send_leave_nothing_behind(service, unharmed):
    host = urlsplit(service.url).netloc
    whole = request(b"x" * 300_000, b"image/png", host=host)

    def vanish(number: int) -> None:
        with connected(service) as connection:
            connection.sendall(whole[: random.Random(number).randrange(20, len(whole))])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(vanish, range(150)))
    assert unharmed().status_code == 200


def test_a_hundred_slow_clients_keep_nobody_waiting_and_are_let_go(service, unharmed):
    """Each sends a letter of its head now and then; the service gives a head one second."""
    slow = [connected(service) for _ in range(100)]
    start, times = time.monotonic(), []
    for letter in b"POST /predict HTTP/1.1\r\nX-A: b":
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.send(bytes([letter]))
        asked = time.monotonic()
        assert unharmed().status_code == 200
        times.append(time.monotonic() - asked)
        if time.monotonic() - start > 2.5:
            break
    for connection in slow:
        connection.settimeout(0.1)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1000) == b""  # closed, not waiting
        connection.close()
    assert sorted(times)[len(times) // 2] < 1.0


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Iterator[tuple[Running, Path, Path]]:
    """A service of this file alone, its model and its temporary folder; it soon sees new files."""
    folder = tmp_path_factory.mktemp("faults")
    model = write_small(folder / "small.safetensors", size_px=64)
    temporary = folder / "temporary"
    temporary.mkdir()
    with running(model, "--watch-s", 0.25, OMP_NUM_THREADS="1", TMPDIR=str(temporary)) as server:
        yield server, model, temporary


def used(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def swap_in(model: Path, fresh: Path) -> None:
    shutil.copyfile(fresh, f"{fresh}.new")
    Path(f"{fresh}.new").replace(model)


@pytest.mark.slow
def test_a_full_disk_costs_neither_an_answer_nor_the_model(own, tmp_path):
    """The process may write no file longer than 1000 bytes, for a while; a new model waits until it may."""
    server, model, temporary = own
    fresh = write_small(tmp_path / "fresh.safetensors", size_px=64, seed=7)
    before, there, files = len(server.lines), used(temporary), server.client.get("/models").json()
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        swap_in(model, fresh)
        server.wait_for("a new model file is refused", after=before, timeout_s=20)
        time.sleep(1.0)
        body = {"file": ("a.png", png(700, 700))}  # more than is kept in memory by most
        assert server.client.post("/predict", files=body).status_code == 200
        assert server.client.get("/models").json()["models"] == files["models"]
        assert used(temporary) == there  # no half copies
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    told = len(server.lines)
    os.utime(model)
    server.wait_for("a new model file is served", after=told, timeout_s=60)
    assert len(used(temporary)) == len(there)
    assert server.told == []


@pytest.mark.slow
def test_a_log_that_cannot_be_written_costs_nothing(small_file, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "van", "serve", str(small_file), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "VAN_API_KEY"}
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, stderr=full, stdout=full, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 100
            while time.monotonic() < end and process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/v2/health/ready", trust_env=False).status_code == 200:
                        break
                time.sleep(0.1)
            for _ in range(20):
                answer = httpx.post(f"{url}/predict", files={"f": ("a.png", png())}, trust_env=False)
                assert answer.status_code == 200
            assert httpx.post(f"{url}/predict", content=b"x", trust_env=False).status_code == 415
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def broken_files(whole: bytes, chance: random.Random) -> dict[str, bytes]:
    """Checkpoints that are none any more."""
    length = struct.unpack("<Q", whole[:8])[0]
    flipped = bytearray(whole)
    flipped[8 + length + 4 * chance.randrange(100)] ^= 0xFF
    return {
        "empty": b"",
        "zeros": bytes(len(whole)),
        "half a header": whole[: 8 + length // 2],
        "half of the weights": whole[: 8 + length + (len(whole) - 8 - length) // 2],
        "a header of 2^60 bytes": struct.pack("<Q", 1 << 60) + whole[8:],
        "a header that is no JSON": whole[:8] + b"x" * length + whole[8 + length :],
        "a bit of the weights": bytes(flipped),
        "noise": chance.randbytes(5000),
        "a page": b"<html>404</html>",
    }


@pytest.mark.slow
def test_no_broken_file_takes_the_place_of_a_good_one(own):
    """But for a changed weight: nothing in a checkpoint tells it, and it loads."""
    server, model, temporary = own
    whole, there = model.read_bytes(), len(used(temporary))
    for name, content in broken_files(whole, random.Random(0)).items():
        told, version = len(server.lines), server.client.get("/models").json()["models"][0]["version"]
        fresh = model.with_name("fresh")
        fresh.write_bytes(content)
        fresh.replace(model)
        if name != "a bit of the weights":
            refused = server.wait_for("a new model file is refused", after=told, timeout_s=60)
            assert refused["reason"], name
            assert server.client.get("/models").json()["models"][0]["version"] == version, name
        else:
            server.wait_for("a new model file is served", after=told, timeout_s=60)
        assert server.client.post("/predict", files={"f": ("a.png", png())}).status_code == 200, name
        assert len(used(temporary)) == there, name
    assert server.told == []


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_thousands_of_requests(own):
    """Good, malformed and broken-off requests in turn; the first half fills the allocators' pools."""
    server, _, _ = own
    files, host = pictures_of_every_format(), urlsplit(server.url).netloc
    body = request(png(400, 300), b"image/png", host=host)
    sizes: list[list[int]] = []

    def ask(number: int) -> None:
        if number % 10 == 0:
            sent(server, malformed(number, host, files))
        elif number % 10 == 1:
            with connected(server) as connection:
                connection.sendall(body[: len(body) // 2])
        else:
            assert sent(server, body, patience_s=30).startswith(b"HTTP/1.1 200"), number

    with ThreadPoolExecutor(8) as pool:
        for turn in range(8):
            list(pool.map(ask, range(300 * turn, 300 * (turn + 1))))
            sizes.append([rss_bytes(pid) for pid in (server.process.pid, *server.workers)])
    growth = [last - middle for middle, last in zip(sizes[3], sizes[-1], strict=True)]
    assert max(growth) < 12 << 20, sizes


def test_a_file_that_pillow_would_log_of_is_refused_and_the_service_s_log_is_silent(service, unharmed):
    """40,000 colours a pixel; twice, as the first must not take away what keeps the second one silent."""
    plain = written(picture(9, 9), "TIFF")
    file = plain.replace(struct.pack("<HHI", 277, 3, 1) + b"\3\0", struct.pack("<HHIH", 277, 3, 1, 40_000))
    assert file != plain
    lines = len(service.lines)
    asked = [service.client.post("/predict", files={"f": ("a", content)}) for content in (file, file)]
    assert [answer.status_code for answer in asked] == [422, 422]
    service.wait_until(lambda: len(service.lines) >= lines + 2, 10)
    assert [line["event"] for line in service.lines[lines:]] == ["request"] * 2


UNSAYABLE = ("POST /predict", "POST /explain", "POST /v2/models/{name}/infer")
"""Their bodies hold pictures: whether a file is one, and a model knows an option, is more than a schema can say."""


def checked_into(statuses: list[int], label: str) -> Callable[[Any], None]:
    """Ask, and let schemathesis look at the answer by all of its checks, but that what fits the schema is answered."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    def check(case: Any) -> None:
        if case.path_parameters and len(statuses) % 2:
            case.path_parameters = {"name": "small"}
        excluded = [positive_data_acceptance] if label in UNSAYABLE else []
        statuses.append(case.call_and_validate(timeout=30, excluded_checks=excluded).status_code)

    return check


@pytest.mark.parametrize("examples", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_the_schema_tells_the_truth(service, examples):
    """schemathesis makes right and wrong requests of the schema; every answer is of a kind that the schema names."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    unhurried = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    few = settings(max_examples=examples, phases=[Phase.explicit, Phase.generate], **unhurried)
    seen: dict[str, list[int]] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        check = checked_into(seen.setdefault(operation.label, []), operation.label)
        seed(0)(few(given(case=operation.as_strategy())(check)))()
    assert len(seen.keys() - set(UNSAYABLE)) == len(seen) - 3 >= 6
    assert all(status < 500 for statuses in seen.values() for status in statuses), seen
    assert all(200 in statuses for label, statuses in seen.items() if label not in UNSAYABLE), seen
    assert sum(map(len, seen.values())) > 3 * examples
