"""Damaged pictures and bodies sent to a running service, each picture between good neighbours.

Every answer must be one of the kinds that the service promises, the neighbours' right to the last digit that batches
leave alone, and the service afterwards as it was: ready, with the same workers, holding nothing, its memory flat.
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

from serve.conftest import png
from serve.damage import case, flip_bits, leave_out, put_extreme, say_twice, write_over
from serve.fuzzing import AFTERWARDS, Found, status_bytes
from serve.running import Running

CLIENTS, TURN = 4, 50
BOUNDARY = "a-line-between"
_BODY_DAMAGES = (flip_bits, write_over, leave_out, say_twice, put_extreme)


@functools.cache
def good(place: int) -> bytes:
    """A picture that can be read."""
    return png(80 + place, 60 + place, place)


def fuzz_http(
    server: Running, *, seconds: float, seed: int, first: int = 0, say: Callable[[str, bool], None] = lambda *_: None
) -> Found:
    """Cases from ``first`` on, by several clients at once, until the time is over; at least one turn of them."""
    found, end, number = Found(), time.monotonic() + seconds, first
    wanted = {place: _classes(_ask_good(server, place).json()["answers"][0]) for place in (0, 1)}
    workers, lines, told = server.workers, len(server.lines), len(server.told)
    with ThreadPoolExecutor(CLIENTS) as pool:
        while not found.cases or time.monotonic() < end:
            turn = range(number, number + TURN)
            for one, (outcome, wrong, taken_s) in zip(
                turn, pool.map(lambda one: _look_at(server, seed, one, wanted), turn), strict=True
            ):
                found.cases += 1
                found.outcomes[outcome] += 1
                found.slowest_s = max(found.slowest_s, round(taken_s, 2))
                found.findings += [(one, wrong)] * bool(wrong)
            number = turn.stop
            found.memory.append(_memory(server))
            say(f"http: {found.cases} cases, {len(found.findings)} findings", found.cases % 500 == 0)
    found.findings += [(AFTERWARDS, wrong) for wrong in _harmed(server, wanted, workers, lines, told)]
    return found


def _harmed(server: Running, wanted: dict[int, Any], workers: list[int], lines: int, told: int) -> list[str]:
    """What is not as it was before."""
    answer = _ask_good(server, 0)
    held = ("van_requests_in_work", "van_accepted_pictures", "van_memory_bytes")
    checks = {
        f"a good picture is answered by {answer.status_code}": answer.status_code != 200,
        "a good picture is answered otherwise": not _same(answer.json().get("answers", [{}])[0], wanted[0]),
        "it is not ready": server.client.get("/v2/health/ready").status_code != 200,
        f"its workers were {workers} and are {server.workers}": server.workers != workers,
        "a worker was replaced": server.metric("van_worker_restarts_total") != 0,
        **{f"{name} is not 0": not server.wait_until(lambda name=name: server.metric(name) == 0, 20) for name in held},
        f"it wrote {server.told[told:][:3]}": len(server.told) > told,
    }
    errors = [line for line in server.lines[lines:] if line["level"] not in ("info", "warning") or "error" in line]
    return [text for text, holds in checks.items() if holds] + [str(line)[:400] for line in errors[:5]]


def _memory(server: Running) -> dict[str, int]:
    return {
        "front": status_bytes(server.process.pid, "VmRSS"),
        "workers": sum(status_bytes(worker, "VmRSS") for worker in server.workers),
    }


def _look_at(server: Running, seed: int, number: int, wanted: dict[int, Any]) -> tuple[str, str, float]:
    """What became of a case, what is wrong with that, and seconds."""
    chance, data, start = random.Random(f"http {seed} {number}"), case(seed, number)[1], time.monotonic()
    way = chance.choice(
        (_beside, _beside, _beside, _in_json, _alone, _damaged_form, _damaged_json, _protocol, _explained)
    )
    try:
        answer, wrong = way(server, data, chance, wanted)
    except (httpx.HTTPError, KeyError, ValueError, TypeError, IndexError) as error:
        return "raised", f"{way.__name__}: {type(error).__name__}: {error}", time.monotonic() - start
    wrong = wrong or _promised(answer)
    return f"{way.__name__[1:]} {answer.status_code}", wrong and f"{way.__name__}: {wrong}", time.monotonic() - start


def _promised(answer: httpx.Response) -> str:
    """What is wrong with an answer of any route, or nothing."""
    if answer.status_code == 200:
        return ""
    if not 400 <= answer.status_code < 500:
        return f"{answer.status_code} {answer.text[:300]}"
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"] if error["code"] and error["request_id"] else ""
    return "" if isinstance(message, str) and 0 < len(message) < 1000 else f"the error is {answer.text[:300]}"


def _ask_good(server: Running, place: int) -> httpx.Response:
    return server.client.post("/predict", content=good(place), headers={"Content-Type": "image/png"})


def _classes(answer: dict[str, Any]) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in answer["classes"]}


def _same(answer: dict[str, Any], wanted: dict[str, float]) -> bool:
    if "classes" not in answer:
        return False
    seen = _classes(answer)
    return seen.keys() == wanted.keys() and all(abs(seen[label] - wanted[label]) < 2e-5 for label in wanted)


def _neighbours(answer: httpx.Response, wanted: dict[int, Any]) -> str:
    """Of good, damaged, good: whether the good ones are answered rightly, and the other one somehow."""
    if answer.status_code != 200:
        return f"the whole request was refused: {answer.text[:300]}"
    first, middle, last = answer.json()["answers"]
    if not (_same(first, wanted[0]) and _same(last, wanted[1])):
        return f"a good picture beside it is answered by {str((first, last))[:300]}"
    known = middle["error"]["code"] in ("unreadable", "too_many_pixels") if "error" in middle else middle["classes"]
    return "" if known else f"it is answered by {str(middle)[:300]}"


def _beside(server: Running, data: bytes, _: random.Random, wanted: dict[int, Any]) -> tuple[httpx.Response, str]:
    files = [("f", (f"{place}.png", content)) for place, content in enumerate((good(0), data, good(1)))]
    answer = server.client.post("/predict", files=files)
    return answer, _neighbours(answer, wanted)


def _in_json(server: Running, data: bytes, _: random.Random, wanted: dict[int, Any]) -> tuple[httpx.Response, str]:
    pictures = [base64.b64encode(content).decode() for content in (good(0), data, good(1))]
    answer = server.client.post("/predict", json={"pictures": pictures})
    return answer, _neighbours(answer, wanted)


def _alone(server: Running, data: bytes, chance: random.Random, _: dict[int, Any]) -> tuple[httpx.Response, str]:
    kind = chance.choice(("image/png", "image/jpeg", "application/octet-stream"))
    drawn = {"Accept": "image/png"} if chance.random() < 0.3 else {}
    return server.client.post("/predict", content=data, headers={"Content-Type": kind, **drawn}), ""


def _explained(server: Running, data: bytes, chance: random.Random, _: dict[int, Any]) -> tuple[httpx.Response, str]:
    query = chance.choice(("", "?kind=lka", "?top=2"))
    return server.client.post(f"/explain{query}", content=data, headers={"Content-Type": "image/png"}), ""


def _damaged_form(server: Running, data: bytes, chance: random.Random, _: dict[int, Any]) -> tuple[httpx.Response, str]:
    head = 'Content-Disposition: form-data; name="f"; filename="{}.png"\r\nContent-Type: image/png\r\n\r\n'
    parts = [head.format(place).encode() + content for place, content in enumerate((good(0), data))]
    line = f"--{BOUNDARY}".encode()
    body = b"".join(line + b"\r\n" + part + b"\r\n" for part in parts) + line + b"--\r\n"
    for _ in range(chance.choice((1, 3))):
        body = chance.choice(_BODY_DAMAGES)(body, chance)
    kind = chance.choice(
        (f"multipart/form-data; boundary={BOUNDARY}", "multipart/form-data", 'multipart/form-data; boundary="')
    )
    return server.client.post("/predict", content=body, headers={"Content-Type": kind}), ""


def _damaged_json(server: Running, data: bytes, chance: random.Random, _: dict[int, Any]) -> tuple[httpx.Response, str]:
    text = base64.b64encode(data[:50_000]).decode()
    pictures = [text, {"name": "a", "data": f"data:image/png;base64,{text}"}]
    body = json.dumps({"pictures": pictures, "top": 2}).encode()
    for _ in range(chance.choice((1, 3))):
        body = chance.choice(_BODY_DAMAGES)(body, chance)
    return server.client.post("/predict", content=body, headers={"Content-Type": "application/json"}), ""


def _protocol(server: Running, data: bytes, chance: random.Random, _: dict[int, Any]) -> tuple[httpx.Response, str]:
    pictures = [base64.b64encode(content).decode() for content in (good(0), data)]
    asked = {"name": "pictures", "shape": [2], "datatype": "BYTES", "data": pictures}
    body = json.dumps({"inputs": [asked]}).encode()
    if chance.random() < 0.5:
        body = chance.choice(_BODY_DAMAGES)(body, chance)
    return server.client.post("/v2/models/small/infer", content=body), ""
