"""Faults of clients, disks and model files: the server responds with errors, releases everything, and continues."""

import base64
import contextlib
import io
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

from explain.small_models import image, write_small
from serving.conftest import png
from serving.damage import written
from serving.server import ServerProcess, running_server

CONTENT_TYPES = (b"image/png", b"application/json", b"multipart/form-data; boundary=x", b"text/plain", b"", b"\xff;;=")


@pytest.fixture
def unaffected(service) -> Iterator[Callable[[], httpx.Response]]:
    """Check that the server predicts the same afterwards, holds no resources, and has logged no error."""

    def predict() -> httpx.Response:
        return service.client.post("/predict", content=png(), headers={"Content-Type": "image/png"})

    before, files = predict().json()["predictions"][0]["classes"], open_files(service)
    lines, plain_lines = len(service.lines), len(service.plain_lines)
    yield predict
    assert predict().json()["predictions"][0]["classes"] == before
    for name in ("van_requests_in_progress", "van_images_in_progress", "van_memory_bytes"):
        assert service.wait_until(lambda name=name: service.metric(name) == 0, 10), name
    assert service.wait_until(lambda: open_files(service) <= files + 2, 10), (files, open_files(service))
    errors = [line for line in service.lines[lines:] if line["level"] not in ("info", "warning") or "error" in line]
    assert errors == []
    assert service.plain_lines[plain_lines:] == []  # nothing but JSON records, and nothing of what clients sent


def open_files(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def connect(server: ServerProcess) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=15)


def send_raw(server: ServerProcess, raw: bytes, *, wait_s: float = 0.5) -> bytes:
    """Send bytes and return what is received; after ``wait_s`` without a response, the sending side is closed."""
    received = b""
    with connect(server) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(raw)
        if not select.select([connection], [], [], wait_s)[0]:
            connection.shutdown(socket.SHUT_WR)
        while more := connection.recv(65536):
            received += more
    return received


def make_request(body: bytes, media_type: bytes, *, host: str, path: bytes = b"/predict", more: bytes = b"") -> bytes:
    head = b"POST " + path + b" HTTP/1.1\r\nHost: " + host.encode() + b"\r\nConnection: close\r\n" + more
    return head + b"Content-Type: " + media_type + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def image_files_of_every_format() -> list[bytes]:
    files = []
    for name in ("png", "jpeg", "webp", "gif", "tiff", "bmp", "ppm"):
        buffer = io.BytesIO()
        image(40, 30).save(buffer, format=name)
        files.append(buffer.getvalue())
    return files


def corrupt(data: bytes, chance: random.Random) -> bytes:
    """Truncate, change, insert, delete or duplicate bytes."""
    corrupted = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        place = chance.randrange(len(corrupted) + 1)
        match chance.randrange(5):
            case 0:
                del corrupted[place:]
            case 1:
                corrupted[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 2:
                corrupted[place : place + 1] = bytes([chance.randrange(256)])
            case 3:
                del corrupted[place : place + chance.randrange(1, 50)]
            case _:
                corrupted[place:place] = corrupted[: chance.randrange(200)]
    return bytes(corrupted)


def make_form(data: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    return head + data + b'\r\n--x\r\nContent-Disposition: form-data; name="top"\r\n\r\n2\r\n--x--\r\n'


def malformed_request(number: int, host: str, files: list[bytes]) -> bytes:
    """Return the request of a number; most are malformed in some way, a few are valid by chance."""
    chance = random.Random(number)
    file = chance.choice(files)
    tensor = {"name": "input", "shape": [1, 3, 64, 64], "datatype": "FP32", "data": [0.5] * 12}
    texts = [
        json.dumps({"images": [base64.b64encode(file).decode()], "top": 2}).encode(),
        json.dumps({"images": [{"name": "a", "data": base64.b64encode(file).decode()}]}).encode(),
        json.dumps({"inputs": [tensor]}).encode(),
        b"[" * chance.randrange(1, 100_000),
        b'{"a":' * chance.randrange(1, 50_000),
        json.dumps({"images": [chance.choice([None, 1, [], {}, "", "file:///etc/passwd", "\ud800", 1e308])]}).encode(),
        b'{"images": [], "top": 1e999, "top": NaN, "model": "\x00"}',
    ]
    path = chance.choice(
        [b"/predict", b"/explain", b"/v2/models/small/infer", b"/predict?top=%00", b"/explain?kind=lka"]
    )
    build = lambda body, media_type: make_request(body, media_type, host=host, path=path)  # noqa: E731
    match chance.randrange(9):
        case 0:
            return build(corrupt(file, chance), b"image/png")
        case 1:
            return build(corrupt(make_form(file), chance), b"multipart/form-data; boundary=x")
        case 2:
            return build(corrupt(chance.choice(texts), chance), b"application/json")
        case 3:
            return build(chance.choice(texts), b"application/json")
        case 4:
            return build(chance.randbytes(chance.randrange(2000)), chance.choice(CONTENT_TYPES))
        case 5:  # the head itself
            return corrupt(build(file, b"image/png"), chance)
        case 6:
            more = chance.choice(
                [b"Transfer-Encoding: chunked\r\n", b"Content-Length: -1\r\n", b"Content-Length: 9e9\r\n"]
            )
            return make_request(file, b"image/png", host=host, path=path, more=more)
        case 7:
            chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (file[:100], file[100:]))
            head = b"POST /predict HTTP/1.1\r\nHost: " + host.encode() + b"\r\nTransfer-Encoding: chunked\r\n"
            return corrupt(head + b"Content-Type: image/png\r\n\r\n" + chunks + b"0\r\n\r\n", chance)
        case _:
            return chance.randbytes(chance.randrange(1, 3000))


def test_a_thousand_malformed_requests_get_client_errors(service, unaffected):
    files, host = image_files_of_every_format(), urlsplit(service.url).netloc
    with ThreadPoolExecutor(32) as pool:
        responses = list(
            pool.map(lambda number: send_raw(service, malformed_request(number, host, files)), range(1000))
        )
    counts: dict[int, int] = {}
    for number, response in enumerate(responses):
        if response:
            status = int(response.split(b" ", 2)[1])
            counts[status] = counts.get(status, 0) + 1
            assert status < 500 or status == 503, (number, response[:500])
            assert b"Traceback" not in response, number
    assert sum(counts.values()) > 700, counts
    assert {200, 400, 415, 422} <= counts.keys(), counts


def test_clients_that_reset_the_connection_while_sending_leave_nothing_behind(service, unaffected):
    host = urlsplit(service.url).netloc
    whole = make_request(b"x" * 300_000, b"image/png", host=host)

    def reset(number: int) -> None:
        with connect(service) as connection:
            connection.sendall(whole[: random.Random(number).randrange(20, len(whole))])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(reset, range(150)))
    assert unaffected().status_code == 200


def test_a_hundred_slow_clients_delay_nobody_and_are_disconnected(service, unaffected):
    """Each sends a byte of its headers now and then; the header timeout is two seconds."""
    slow = [connect(service) for _ in range(100)]
    start, times = time.monotonic(), []
    for letter in b"POST /predict HTTP/1.1\r\nX-A: b":
        for connection in slow:
            with contextlib.suppress(OSError):
                connection.send(bytes([letter]))
        sent_at = time.monotonic()
        assert unaffected().status_code == 200
        times.append(time.monotonic() - sent_at)
        if time.monotonic() - start > 2.5:
            break
    for connection in slow:
        connection.settimeout(0.1)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1000) == b""  # closed, not waiting
        connection.close()
    assert sorted(times)[len(times) // 2] < 1.0


@pytest.fixture(scope="module")
def own_server(tmp_path_factory) -> Iterator[tuple[ServerProcess, Path, Path]]:
    """Run a server of this file alone with a short reload interval; with its model and temporary folder."""
    folder = tmp_path_factory.mktemp("faults")
    model = write_small(folder / "small.safetensors", image_size=64)
    temporary = folder / "temporary"
    temporary.mkdir()
    with running_server(model, "--reload-interval-s", 0.25, OMP_NUM_THREADS="1", TMPDIR=str(temporary)) as server:
        yield server, model, temporary


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def swap_in(model: Path, fresh: Path) -> None:
    shutil.copyfile(fresh, f"{fresh}.new")
    Path(f"{fresh}.new").replace(model)


@pytest.mark.slow
def test_a_full_disk_affects_neither_predictions_nor_the_model(own_server, tmp_path):
    """The process can write at most 1000 bytes per file for a while; a new model is loaded as soon as it can write."""
    server, model, temporary = own_server
    fresh = write_small(tmp_path / "fresh.safetensors", image_size=64, seed=7)
    before, copies, models = len(server.lines), files_in(temporary), server.client.get("/models").json()
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        swap_in(model, fresh)
        server.wait_for("model reload failed", after=before, timeout_s=20)
        time.sleep(1.0)
        body = {"image": ("a.png", png(700, 700))}  # larger than what most servers keep in memory
        assert server.client.post("/predict", files=body).status_code == 200
        assert server.client.get("/models").json()["models"] == models["models"]
        assert files_in(temporary) == copies  # no partial copies
    finally:
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    logged = len(server.lines)
    os.utime(model)
    server.wait_for("model reloaded", after=logged, timeout_s=60)
    assert len(files_in(temporary)) == len(copies)
    assert server.plain_lines == []


@pytest.mark.slow
def test_a_log_that_cannot_be_written_affects_nothing(classifier_file, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "van", "serve", str(classifier_file), "--port", str(port)]
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
                response = httpx.post(f"{url}/predict", files={"image": ("a.png", png())}, trust_env=False)
                assert response.status_code == 200
            assert httpx.post(f"{url}/predict", content=b"x", trust_env=False).status_code == 415
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def damaged_checkpoints(whole: bytes, chance: random.Random) -> dict[str, bytes]:
    """Return damaged versions of a checkpoint by their damage."""
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
def test_a_damaged_file_never_replaces_a_loaded_model(own_server):
    """The exception is a changed weight: a checkpoint has no checksum, so that it loads."""
    server, model, temporary = own_server
    whole, copies = model.read_bytes(), len(files_in(temporary))
    for name, content in damaged_checkpoints(whole, random.Random(0)).items():
        logged, version = len(server.lines), server.client.get("/models").json()["models"][0]["version"]
        fresh = model.with_name("fresh")
        fresh.write_bytes(content)
        fresh.replace(model)
        if name != "a bit of the weights":
            failed = server.wait_for("model reload failed", after=logged, timeout_s=60)
            assert failed["reason"], name
            assert server.client.get("/models").json()["models"][0]["version"] == version, name
        else:
            server.wait_for("model reloaded", after=logged, timeout_s=60)
        assert server.client.post("/predict", files={"image": ("a.png", png())}).status_code == 200, name
        assert len(files_in(temporary)) == copies, name
    assert server.plain_lines == []


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_stays_flat_over_thousands_of_requests(own_server):
    """Valid, malformed and truncated requests in turn; the first half fills the pools of the allocators."""
    server, _, _ = own_server
    files, host = image_files_of_every_format(), urlsplit(server.url).netloc
    body = make_request(png(400, 300), b"image/png", host=host)
    sizes: list[list[int]] = []

    def send(number: int) -> None:
        if number % 10 == 0:
            send_raw(server, malformed_request(number, host, files))
        elif number % 10 == 1:
            with connect(server) as connection:
                connection.sendall(body[: len(body) // 2])
        else:
            assert send_raw(server, body, wait_s=30).startswith(b"HTTP/1.1 200"), number

    with ThreadPoolExecutor(8) as pool:
        for turn in range(8):
            list(pool.map(send, range(300 * turn, 300 * (turn + 1))))
            sizes.append([rss_bytes(pid) for pid in (server.process.pid, *server.workers)])
    growth = [last - middle for middle, last in zip(sizes[3], sizes[-1], strict=True)]
    assert max(growth) < 12 << 20, sizes


def test_a_file_that_pillow_logs_about_is_rejected_without_a_log_line(service, unaffected):
    """A TIFF of 40,000 channels; twice, as the first must not remove the log filter of the second."""
    plain = written(image(9, 9), "TIFF")
    file = plain.replace(struct.pack("<HHI", 277, 3, 1) + b"\3\0", struct.pack("<HHIH", 277, 3, 1, 40_000))
    assert file != plain
    lines = len(service.lines)
    responses = [service.client.post("/predict", files={"image": ("a", content)}) for content in (file, file)]
    assert [response.status_code for response in responses] == [422, 422]
    service.wait_until(lambda: len(service.lines) >= lines + 2, 10)
    assert [line["event"] for line in service.lines[lines:]] == ["request"] * 2


IMAGE_ROUTES = ("POST /predict", "POST /explain", "POST /v2/models/{name}/infer")
"""A schema cannot state whether a file is an image and whether a model supports an option."""


def make_check(statuses: list[int], label: str) -> Callable[[Any], None]:
    """Send a case and run all checks of schemathesis, but not that every request of the schema gets a 200."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    def check(case: Any) -> None:
        if case.path_parameters and len(statuses) % 2:
            case.path_parameters = {"name": "small"}
        excluded = [positive_data_acceptance] if label in IMAGE_ROUTES else []
        statuses.append(case.call_and_validate(timeout=30, excluded_checks=excluded).status_code)

    return check


@pytest.mark.parametrize("examples", [3, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_every_response_conforms_to_the_schema(service, examples):
    """schemathesis generates valid and invalid requests; every response has a status and form that the schema lists."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    options = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    limited = settings(max_examples=examples, phases=[Phase.explicit, Phase.generate], **options)
    seen: dict[str, list[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        check = make_check(seen.setdefault(operation.label, []), operation.label)
        seed(0)(limited(given(case=operation.as_strategy())(check)))()
    assert len(seen.keys() - set(IMAGE_ROUTES)) == len(seen) - 3 >= 6
    assert all(status < 500 for statuses in seen.values() for status in statuses), seen
    assert all(200 in statuses for label, statuses in seen.items() if label not in IMAGE_ROUTES), seen
    assert sum(map(len, seen.values())) > 3 * examples
