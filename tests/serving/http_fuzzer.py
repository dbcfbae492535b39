"""Fuzzing of a running server with damaged images and bodies, each image between valid ones.

Every response must be one that the API documents, the predictions of the valid images must be correct up to the
rounding of batches, and the server must be unaffected afterwards: ready, with the same workers and nothing reserved.
"""

import base64
import functools
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from serving.conftest import png
from serving.damage import case, delete_bytes, duplicate_bytes, flip_bits, insert_extreme, overwrite
from serving.fuzzing import AFTERWARDS, FuzzResult, status_bytes
from serving.server import ServerProcess

CLIENTS, CASES_PER_ROUND = 4, 50
BOUNDARY = "a-line-between"
_BODY_DAMAGES = (flip_bits, overwrite, delete_bytes, duplicate_bytes, insert_extreme)
_Expected = dict[int, dict[str, float]]


@functools.cache
def valid_image(index: int) -> bytes:
    """Return a valid image file."""
    return png(80 + index, 60 + index, index)


def fuzz_http(
    server: ServerProcess,
    *,
    seconds: float,
    seed: int,
    first: int = 0,
    on_progress: Callable[[str, bool], None] = lambda *_: None,
) -> FuzzResult:
    """Send cases from ``first`` on with several clients until the time is over, at least one round of them."""
    result, end, number = FuzzResult(), time.monotonic() + seconds, first
    expected = {index: _scores(_predict_valid(server, index).json()["predictions"][0]) for index in (0, 1)}
    workers, lines, plain_lines = server.workers, len(server.lines), len(server.plain_lines)
    with ThreadPoolExecutor(CLIENTS) as pool:
        while not result.cases or time.monotonic() < end:
            numbers = range(number, number + CASES_PER_ROUND)
            outcomes = pool.map(lambda one: _run_case(server, seed, one, expected), numbers)
            for one, (outcome, finding, seconds_taken) in zip(numbers, outcomes, strict=True):
                result.cases += 1
                result.outcomes[outcome] += 1
                result.slowest_s = max(result.slowest_s, round(seconds_taken, 2))
                result.findings += [(one, finding)] * bool(finding)
            number = numbers.stop
            result.memory.append(_memory_bytes(server))
            message = f"http: {result.cases} cases, {len(result.findings)} findings"
            on_progress(message, result.cases % 500 == 0)
    changes = _changes(server, expected, workers, lines, plain_lines)
    result.findings += [(AFTERWARDS, finding) for finding in changes]
    return result


def _changes(server: ServerProcess, expected: _Expected, workers: list[int], lines: int, plain_lines: int) -> list[str]:
    """Return how the server differs from before."""
    response = _predict_valid(server, 0)
    gauges = ("van_requests_in_progress", "van_images_in_progress", "van_memory_bytes")
    checks = {
        f"a valid image gets status {response.status_code}": response.status_code != 200,
        "the prediction of a valid image has changed": not _is_same(
            response.json().get("predictions", [{}])[0], expected[0]
        ),
        "it is not ready": server.client.get("/v2/health/ready").status_code != 200,
        f"its workers were {workers} and are {server.workers}": server.workers != workers,
        "a worker was restarted": server.metric("van_worker_restarts_total") != 0,
        **{
            f"{name} is not 0": not server.wait_until(lambda name=name: server.metric(name) == 0, 20) for name in gauges
        },
        f"it wrote {server.plain_lines[plain_lines:][:3]}": len(server.plain_lines) > plain_lines,
    }
    errors = [line for line in server.lines[lines:] if line["level"] not in ("info", "warning") or "error" in line]
    return [text for text, holds in checks.items() if holds] + [str(line)[:400] for line in errors[:5]]


def _memory_bytes(server: ServerProcess) -> dict[str, int]:
    return {
        "front": status_bytes(server.process.pid, "VmRSS"),
        "workers": sum(status_bytes(worker, "VmRSS") for worker in server.workers),
    }


def _run_case(server: ServerProcess, seed: int, number: int, expected: _Expected) -> tuple[str, str, float]:
    """Send a case; returns its outcome, the finding or ``""``, and the seconds."""
    chance, data, start = random.Random(f"http {seed} {number}"), case(seed, number)[1], time.monotonic()
    senders = (
        *(_send_among_valid, _send_among_valid, _send_among_valid, _send_in_json, _send_alone),
        *(_send_damaged_form, _send_damaged_json, _send_v2, _send_explain),
    )
    sender = chance.choice(senders)
    name = sender.__name__.removeprefix("_send_")
    try:
        response, finding = sender(server, data, chance, expected)
    except (httpx.HTTPError, KeyError, ValueError, TypeError, IndexError) as error:
        return "raised", f"{name}: {type(error).__name__}: {error}", time.monotonic() - start
    finding = finding or _check_documented(response)
    return f"{name} {response.status_code}", finding and f"{name}: {finding}", time.monotonic() - start


def _check_documented(response: httpx.Response) -> str:
    """Return how a response violates the documentation of the API, or ``""``."""
    if response.status_code == 200:
        return ""
    if not 400 <= response.status_code < 500:
        return f"{response.status_code} {response.text[:300]}"
    error = response.json()["error"]
    message = error if isinstance(error, str) else error["message"] if error["code"] and error["request_id"] else ""
    return "" if isinstance(message, str) and 0 < len(message) < 1000 else f"the error is {response.text[:300]}"


def _predict_valid(server: ServerProcess, index: int) -> httpx.Response:
    return server.client.post("/predict", content=valid_image(index), headers={"Content-Type": "image/png"})


def _scores(prediction: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in prediction["classes"]}


def _is_same(prediction: dict[str, Any], expected: dict[str, float]) -> bool:
    if "classes" not in prediction:
        return False
    scores = _scores(prediction)
    return scores.keys() == expected.keys() and all(abs(scores[label] - expected[label]) < 2e-5 for label in expected)


def _check_among_valid(response: httpx.Response, expected: _Expected) -> str:
    """Check the predictions of a valid, a damaged and another valid image; returns the finding or ``""``."""
    if response.status_code != 200:
        return f"the whole request failed: {response.text[:300]}"
    first, middle, last = response.json()["predictions"]
    if not (_is_same(first, expected[0]) and _is_same(last, expected[1])):
        return f"the valid images beside it have the predictions {str((first, last))[:300]}"
    known = middle["error"]["code"] in ("invalid_image", "too_many_pixels") if "error" in middle else middle["classes"]
    return "" if known else f"its prediction is {str(middle)[:300]}"


def _send_among_valid(
    server: ServerProcess, data: bytes, _: random.Random, expected: _Expected
) -> tuple[httpx.Response, str]:
    contents = (valid_image(0), data, valid_image(1))
    files = [("images", (f"{index}.png", content)) for index, content in enumerate(contents)]
    response = server.client.post("/predict", files=files)
    return response, _check_among_valid(response, expected)


def _send_in_json(
    server: ServerProcess, data: bytes, _: random.Random, expected: _Expected
) -> tuple[httpx.Response, str]:
    images = [base64.b64encode(content).decode() for content in (valid_image(0), data, valid_image(1))]
    response = server.client.post("/predict", json={"images": images})
    return response, _check_among_valid(response, expected)


def _send_alone(server: ServerProcess, data: bytes, chance: random.Random, _: _Expected) -> tuple[httpx.Response, str]:
    media_type = chance.choice(("image/png", "image/jpeg", "application/octet-stream"))
    accept = {"Accept": "image/png"} if chance.random() < 0.3 else {}
    return server.client.post("/predict", content=data, headers={"Content-Type": media_type, **accept}), ""


def _send_explain(
    server: ServerProcess, data: bytes, chance: random.Random, _: _Expected
) -> tuple[httpx.Response, str]:
    query = chance.choice(("", "?kind=lka", "?top=2"))
    return server.client.post(f"/explain{query}", content=data, headers={"Content-Type": "image/png"}), ""


def _send_damaged_form(
    server: ServerProcess, data: bytes, chance: random.Random, _: _Expected
) -> tuple[httpx.Response, str]:
    head = 'Content-Disposition: form-data; name="images"; filename="{}.png"\r\nContent-Type: image/png\r\n\r\n'
    parts = [head.format(index).encode() + content for index, content in enumerate((valid_image(0), data))]
    line = f"--{BOUNDARY}".encode()
    body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"
    for _ in range(chance.choice((1, 3))):
        body = chance.choice(_BODY_DAMAGES)(body, chance)
    media_types = (
        f"multipart/form-data; boundary={BOUNDARY}",
        "multipart/form-data",
        'multipart/form-data; boundary="',
    )
    return server.client.post("/predict", content=body, headers={"Content-Type": chance.choice(media_types)}), ""


def _send_damaged_json(
    server: ServerProcess, data: bytes, chance: random.Random, _: _Expected
) -> tuple[httpx.Response, str]:
    text = base64.b64encode(data[:50_000]).decode()
    images = [text, {"name": "a", "data": f"data:image/png;base64,{text}"}]
    body = json.dumps({"images": images, "top": 2}).encode()
    for _ in range(chance.choice((1, 3))):
        body = chance.choice(_BODY_DAMAGES)(body, chance)
    return server.client.post("/predict", content=body, headers={"Content-Type": "application/json"}), ""


def _send_v2(server: ServerProcess, data: bytes, chance: random.Random, _: _Expected) -> tuple[httpx.Response, str]:
    images = [base64.b64encode(content).decode() for content in (valid_image(0), data)]
    images_input = {"name": "images", "shape": [2], "datatype": "BYTES", "data": images}
    body = json.dumps({"inputs": [images_input]}).encode()
    if chance.random() < 0.5:
        body = chance.choice(_BODY_DAMAGES)(body, chance)
    return server.client.post("/v2/models/small/infer", content=body), ""
