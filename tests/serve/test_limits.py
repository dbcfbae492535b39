"""What one client may cost: too much, too slow or from elsewhere is refused at once, and the service goes on."""

import base64
import contextlib
import os
import select
import signal
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serve.conftest import png
from serve.running import Running


@pytest.fixture(autouse=True)
def still_answers(service) -> Iterator[None]:
    yield
    assert predict(service, png()).status_code == 200
    assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 0, 5)
    assert service.wait_until(lambda: service.metric("van_memory_bytes") == 0, 5)
    assert not service.told


def predict(service: Running, *pictures: bytes, **more) -> httpx.Response:
    return service.client.post("/predict", files=[("f", (f"{n}.png", data)) for n, data in enumerate(pictures)], **more)


@contextlib.contextmanager
def stopped_workers(service: Running) -> Iterator[None]:
    """Workers that take what they are given, and say nothing until the block ends."""
    workers = service.workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


def connected(service: Running) -> socket.socket:
    address = httpx.URL(service.url)
    return socket.create_connection((address.host, address.port or 80), timeout=20)


def sent(service: Running, *pieces: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """What comes back until the connection is closed, and after how many seconds."""
    with connected(service) as connection:
        start = time.monotonic()
        found = b""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65536):
                found += more
        return found, time.monotonic() - start


def head(service: Running, *lines: str) -> bytes:
    host = httpx.URL(service.url).netloc.decode()
    return "\r\n".join(["POST /predict HTTP/1.1", f"Host: {host}", "Content-Type: image/png", *lines, "", ""]).encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A small PNG file that says it is large, and is: rows of nothing compress well."""
    rows = zlib.compress(bytes((1 + width) * min(height, 3000)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_body_too_large_is_refused_by_its_announced_length_and_read_no_further(service):
    answer = service.client.post("/predict", content=bytes(3 << 20), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    found, _ = sent(service, head(service, f"Content-Length: {1 << 40}", "Connection: close"))
    assert b" 413 " in found.partition(b"\r\n")[0]


def test_strips_are_answered_and_not_drawn_on(service):
    strip = png((1 << 14) + 1, 1)
    assert predict(service, strip).status_code == 200
    for path, more in (("/predict", {}), ("/explain", {}), ("/explain", {"data": {"kind": "lka"}})):
        files = [("f", ("strip.png", strip))]
        refused = service.client.post(path, files=files, headers={"Accept": "image/png"}, **more)
        assert refused.status_code == 413, refused.text
        assert "strip.png is 16385x1, too long to be drawn on" in refused.json()["error"]["message"]


def test_a_body_that_grows_without_announcement_is_cut_off(service):
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)

    answer = service.client.post("/predict", content=pieces(), headers={"Content-Type": "image/png"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("size", [(30_000, 30_000), (1001, 1000)])
def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(service, size):
    start = time.monotonic()
    answer = predict(service, bomb(*size))
    assert time.monotonic() - start < 5
    assert answer.status_code == (413 if size[0] == 1001 else 422)
    assert "pixels" in answer.json()["error"]["message"] or "large" in answer.json()["error"]["message"]
    assert predict(service, bomb(1000, 1000)).status_code == 200  # it is the pixels, not the file


def test_too_many_pictures_are_refused_in_every_form(service):
    encoded = base64.b64encode(png()).decode()
    for answer in (
        predict(service, *[png()] * 61),
        service.client.post("/predict", json={"pictures": [encoded] * 61}),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_pictures")
    inputs = [{"name": "pictures", "datatype": "BYTES", "shape": [61], "data": [encoded] * 61}]
    assert service.client.post("/v2/models/small/infer", json={"inputs": inputs}).status_code == 413
    assert predict(service, *[png()] * 60).status_code == 200


def test_a_long_url_is_refused(service):
    answer = service.client.get("/models", params={"a": "x" * 2100})
    assert (answer.status_code, answer.json()["error"]["code"]) == (414, "url_too_long")


def test_a_head_that_does_not_come_ends_the_connection(service):
    begun = [[b""], [b"GET /models HTTP/1.1\r\nHost: "], [b"GET ", *b"/abcd".split(b"b"), b"e", b"f", b"g"]]
    with ThreadPoolExecutor(3) as pool:
        for found, seconds in pool.map(lambda pieces: sent(service, *pieces, pause_s=0.5), begun):
            assert found == b""
            assert 1 < seconds < 10
    assert 'reason="slow_head"' in service.client.get("/metrics").text


def test_a_body_that_comes_too_slowly_is_given_up(service):
    start = head(service, "Content-Length: 1000")
    with ThreadPoolExecutor(2) as pool:
        silent = pool.submit(sent, service, start, b"x")
        dripping = pool.submit(sent, service, start, *[b"x"] * 9, pause_s=0.4)
    found, seconds = silent.result()
    assert b" 408 " in found.partition(b"\r\n")[0]
    assert b"slow_body" in found
    assert seconds < 10
    assert dripping.result()[1] < 15
    lines = service.client.get("/metrics").text.splitlines()
    assert any(
        line.startswith('van_rejected_total{reason="slow_body"}') and float(line.split()[-1]) >= 2 for line in lines
    )


def test_connections_above_their_number_are_closed_at_once(service):
    with contextlib.ExitStack() as held:
        connections = [held.enter_context(connected(service)) for _ in range(100)]
        time.sleep(0.5)
        closed, _, _ = select.select(connections, [], [], 0)
        assert 20 <= len(closed) < 60
    assert 'reason="too_many_connections"' in service.client.get("/metrics").text


def test_a_full_queue_refuses_at_once_and_loses_nothing_that_it_has_accepted(service):
    with ThreadPoolExecutor(1) as pool:
        with stopped_workers(service):
            accepted = pool.submit(predict, service, *[png(seed=seed) for seed in range(60)])
            assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 60, 10)
            start = time.monotonic()
            refused = predict(service, *[png()] * 5)
            assert time.monotonic() - start < 2
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
        answer = accepted.result(60)
    assert answer.status_code == 200
    assert len(answer.json()["answers"]) == 60


def test_memory_for_pictures_is_bounded_over_all_requests(service):
    """Each takes 21 of 24 MB while it is read, and 3 until it is answered where the network sees the whole of it."""
    large = bomb(1000, 1000)
    with ThreadPoolExecutor(1) as pool:
        with stopped_workers(service):
            accepted = pool.submit(predict, service, large, large, params={"model": "things"})
            assert service.wait_until(lambda: service.metric("van_memory_bytes") == pytest.approx(6e6, rel=0.02), 10)
            refused = predict(service, large)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "memory_full")
        assert accepted.result(60).status_code == 200
    assert predict(service, *[large] * 12).status_code == 200


def test_a_client_that_leaves_takes_its_waiting_request_with_it(service):
    before = service.metric("van_batch_size_sum"), service.metric("van_clients_gone_total")
    body = png()
    with contextlib.ExitStack() as held:
        with stopped_workers(service):
            first = held.enter_context(connected(service))
            first.sendall(head(service, f"Content-Length: {len(body)}") + body)
            assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 1, 10)
            assert service.wait_until(lambda: service.metric("van_queue_depth") == 0, 10)  # the worker has it
            second = held.enter_context(connected(service))
            second.sendall(head(service, f"Content-Length: {len(body)}") + body)
            assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 2, 10)
            second.close()
            assert service.wait_until(lambda: service.metric("van_clients_gone_total") == before[1] + 1, 10)
            assert service.metric("van_accepted_pictures") == 1
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
    assert service.metric("van_batch_size_sum") == before[0] + 1


def test_pages_of_other_sites_and_other_names_for_this_machine_are_refused(service):
    for headers in ({"Host": "rebound.example"}, {"Origin": "https://other.example"}, {"Origin": "null"}):
        answer = predict(service, png(), headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    port = httpx.URL(service.url).port
    assert predict(service, png(), headers={"Origin": service.url}).status_code == 200
    assert service.client.get("/models", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_what_is_no_http_is_refused(service):
    found, _ = sent(service, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 400")
    found, _ = sent(service, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000)
    assert not found or found.startswith(b"HTTP/1.1 4")
