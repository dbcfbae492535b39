"""Limits on one client: too large, too slow or foreign requests are rejected at once, and the server continues."""

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

from serving.conftest import png
from serving.server import ServerProcess


@pytest.fixture(autouse=True)
def still_serves(service) -> Iterator[None]:
    yield
    assert predict(service, png()).status_code == 200
    assert service.wait_until(lambda: service.metric("van_images_in_progress") == 0, 5)
    assert service.wait_until(lambda: service.metric("van_memory_bytes") == 0, 5)
    assert not service.plain_lines


def predict(service: ServerProcess, *images: bytes, **more) -> httpx.Response:
    return service.client.post(
        "/predict", files=[("images", (f"{n}.png", data)) for n, data in enumerate(images)], **more
    )


@contextlib.contextmanager
def stopped_workers(service: ServerProcess) -> Iterator[None]:
    """Suspend the workers until the end of the block: they receive requests and do not respond."""
    workers = service.workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


def connect(service: ServerProcess) -> socket.socket:
    address = httpx.URL(service.url)
    return socket.create_connection((address.host, address.port or 80), timeout=20)


def send_raw(service: ServerProcess, *pieces: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """Send bytes; returns what was received until the connection was closed, and the seconds until then."""
    with connect(service) as connection:
        start = time.monotonic()
        received = b""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_s)
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65536):
                received += more
        return received, time.monotonic() - start


def head(service: ServerProcess, *lines: str) -> bytes:
    host = httpx.URL(service.url).netloc.decode()
    return "\r\n".join(["POST /predict HTTP/1.1", f"Host: {host}", "Content-Type: image/png", *lines, "", ""]).encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file of a large image: empty rows compress well."""
    rows = zlib.compress(bytes((1 + width) * min(height, 3000)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_too_large_body_is_rejected_by_its_content_length(service):
    response = service.client.post("/predict", content=bytes(3 << 20), headers={"Content-Type": "image/png"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    received, _ = send_raw(service, head(service, f"Content-Length: {1 << 40}", "Connection: close"))
    assert b" 413 " in received.partition(b"\r\n")[0]


def test_very_long_images_are_predicted_and_not_drawn_on(service):
    strip = png((1 << 14) + 1, 1)
    assert predict(service, strip).status_code == 200
    for path, more in (("/predict", {}), ("/explain", {}), ("/explain", {"data": {"kind": "lka"}})):
        files = [("image", ("strip.png", strip))]
        rejected = service.client.post(path, files=files, headers={"Accept": "image/png"}, **more)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (413, "image_too_long"), rejected.text
        assert "strip.png: " in rejected.json()["error"]["message"]
        assert "16385x1" in rejected.json()["error"]["message"]


def test_a_too_large_body_without_content_length_is_rejected(service):
    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 16)

    response = service.client.post("/predict", content=pieces(), headers={"Content-Type": "image/png"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("size", [(30_000, 30_000), (1001, 1000)])
def test_an_image_with_too_many_pixels_is_rejected_before_decoding(service, size):
    start = time.monotonic()
    response = predict(service, bomb(*size))
    assert time.monotonic() - start < 5
    assert response.status_code == (413 if size[0] == 1001 else 422)
    assert "pixels" in response.json()["error"]["message"] or "large" in response.json()["error"]["message"]
    assert predict(service, bomb(1000, 1000)).status_code == 200  # the pixels count, not the bytes of the file


def test_too_many_images_are_rejected_in_every_form(service):
    encoded = base64.b64encode(png()).decode()
    for response in (
        predict(service, *[png()] * 61),
        service.client.post("/predict", json={"images": [encoded] * 61}),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_many_images")
    inputs = [{"name": "images", "datatype": "BYTES", "shape": [61], "data": [encoded] * 61}]
    assert service.client.post("/v2/models/small/infer", json={"inputs": inputs}).status_code == 413
    assert predict(service, *[png()] * 60).status_code == 200


def test_a_long_url_is_rejected(service):
    response = service.client.get("/models", params={"a": "x" * 2100})
    assert (response.status_code, response.json()["error"]["code"]) == (414, "url_too_long")


def test_incomplete_headers_close_the_connection(service):
    incomplete = [[b""], [b"GET /models HTTP/1.1\r\nHost: "], [b"GET ", *b"/abcd".split(b"b"), b"e", b"f", b"g"]]
    with ThreadPoolExecutor(3) as pool:
        for received, seconds in pool.map(lambda pieces: send_raw(service, *pieces, pause_s=0.5), incomplete):
            assert received == b""
            assert 1 < seconds < 10
    assert 'reason="header_timeout"' in service.client.get("/metrics").text


def test_a_slow_body_is_rejected(service):
    start = head(service, "Content-Length: 1000")
    with ThreadPoolExecutor(2) as pool:
        silent = pool.submit(send_raw, service, start, b"x")
        dripping = pool.submit(send_raw, service, start, *[b"x"] * 9, pause_s=0.4)
    received, seconds = silent.result()
    assert b" 408 " in received.partition(b"\r\n")[0]
    assert b"body_timeout" in received
    assert seconds < 10
    assert dripping.result()[1] < 15
    lines = service.client.get("/metrics").text.splitlines()
    assert any(
        line.startswith('van_requests_rejected_total{reason="body_timeout"}') and float(line.split()[-1]) >= 2
        for line in lines
    )


def test_connections_above_the_limit_are_closed_at_once(service):
    with contextlib.ExitStack() as connections_open:
        connections = [connections_open.enter_context(connect(service)) for _ in range(100)]
        time.sleep(0.5)
        closed, _, _ = select.select(connections, [], [], 0)
        assert 20 <= len(closed) < 60
    assert 'reason="too_many_connections"' in service.client.get("/metrics").text


def test_a_full_queue_rejects_at_once_and_loses_no_accepted_image(service):
    with ThreadPoolExecutor(1) as pool:
        with stopped_workers(service):
            accepted = pool.submit(predict, service, *[png(seed=seed) for seed in range(60)])
            assert service.wait_until(lambda: service.metric("van_images_in_progress") == 60, 10)
            start = time.monotonic()
            rejected = predict(service, *[png()] * 5)
            assert time.monotonic() - start < 2
            assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "queue_full")
            assert int(rejected.headers["retry-after"]) >= 1
        response = accepted.result(60)
    assert response.status_code == 200
    assert len(response.json()["predictions"]) == 60


def test_memory_is_limited_over_all_requests(service):
    """Each image takes 21 of 24 MB while it is decoded, and 3 until its response if the model gets the whole image."""
    large = bomb(1000, 1000)
    with ThreadPoolExecutor(1) as pool:
        with stopped_workers(service):
            accepted = pool.submit(predict, service, large, large, params={"model": "detector"})
            assert service.wait_until(lambda: service.metric("van_memory_bytes") == pytest.approx(6e6, rel=0.02), 10)
            rejected = predict(service, large)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "memory_full")
        assert accepted.result(60).status_code == 200
    assert predict(service, *[large] * 12).status_code == 200


def test_a_client_that_disconnects_withdraws_its_queued_request(service):
    before = service.metric("van_batch_size_sum"), service.metric("van_client_disconnects_total")
    body = png()
    with contextlib.ExitStack() as connections_open:
        with stopped_workers(service):
            first = connections_open.enter_context(connect(service))
            first.sendall(head(service, f"Content-Length: {len(body)}") + body)
            assert service.wait_until(lambda: service.metric("van_images_in_progress") == 1, 10)
            assert service.wait_until(lambda: service.metric("van_queue_depth") == 0, 10)  # it is with the worker
            second = connections_open.enter_context(connect(service))
            second.sendall(head(service, f"Content-Length: {len(body)}") + body)
            assert service.wait_until(lambda: service.metric("van_images_in_progress") == 2, 10)
            second.close()
            assert service.wait_until(lambda: service.metric("van_client_disconnects_total") == before[1] + 1, 10)
            assert service.metric("van_images_in_progress") == 1
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
    assert service.metric("van_batch_size_sum") == before[0] + 1


def test_other_origins_and_other_host_names_are_rejected(service):
    for headers in ({"Host": "rebound.example"}, {"Origin": "https://other.example"}, {"Origin": "null"}):
        response = predict(service, png(), headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    port = httpx.URL(service.url).port
    assert predict(service, png(), headers={"Origin": service.url}).status_code == 200
    assert service.client.get("/models", headers={"Host": f"localhost:{port}"}).status_code == 200


def test_anything_but_http_is_rejected(service):
    received, _ = send_raw(service, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    received, _ = send_raw(service, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 40_000)
    assert not received or received.startswith(b"HTTP/1.1 4")
