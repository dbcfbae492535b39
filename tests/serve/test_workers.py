"""Workers that end, model files that change, and a service that is told to stop: nothing accepted is lost."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

import van
from explain.small import write_small
from serve.conftest import png
from serve.running import Running, running

KEY = "a-key-of-the-test-0123456789"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_small(tmp_path_factory.mktemp("lives") / "small.safetensors", size_px=64)


@pytest.fixture(scope="module")
def service(model) -> Iterator[Running]:
    flags = ["--watch-s", 0.2, "--allow-origin", "https://friend.example"]
    with running(model, *flags, OMP_NUM_THREADS="1", VAN_API_KEY=KEY) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        yield server


def probabilities(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    ranked = sorted(answer.json()["answers"][0]["classes"], key=lambda one: one["index"])
    return [one["probability"] for one in ranked]


def predict(service: Running, picture: bytes) -> httpx.Response:
    return service.client.post("/predict", content=picture, headers={"Content-Type": "image/png"})


def replace(target: Path, source: Path) -> None:
    """As a careful writer does it: whole, and at once."""
    beside = target.with_suffix(".new")
    shutil.copy(source, beside)
    beside.replace(target)


class Load:
    """Clients that ask the same pictures again and again; ``answers`` are theirs."""

    def __init__(self, service: Running, clients: int = 4) -> None:
        self.pictures = [png(60 + seed, 50, seed) for seed in range(4)]
        self.answers: list[tuple[int, httpx.Response]] = []
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._runs = [self._pool.submit(self._ask, service, n % 4) for n in range(clients)]

    def _ask(self, service: Running, place: int) -> None:
        while not self._over.is_set():
            self.answers.append((place, predict(service, self.pictures[place])))

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        for run in self._runs:
            run.result(120)
        self._pool.shutdown()


def test_the_log_names_the_workers(service):
    assert service.wait_for("serving")["workers"] == service.workers != []


def test_the_front_crops_pictures_without_the_packages_that_networks_need(service):
    """The worker is the control."""
    assert predict(service, png()).status_code == 200
    loaded = [Path(f"/proc/{pid}/maps").read_text() for pid in (service.process.pid, service.workers[0])]
    assert ["libtorch" in maps for maps in loaded] == [False, True]


def test_a_key_is_wanted_for_everything_but_health_and_the_page(service):
    with httpx.Client(base_url=service.url, trust_env=False) as stranger:
        for method, path in (
            ("GET", "/models"),
            ("POST", "/predict"),
            ("GET", "/metrics"),
            ("GET", "/v2"),
            ("GET", "/openapi.json"),
            ("GET", "/x"),
        ):
            answer = stranger.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/v2/health/live", "/v2/health/ready", "/"):
            assert stranger.get(path).status_code == 200
        for wrong in ({"Authorization": f"Bearer {KEY[:-1]}"}, {"Authorization": f"Basic {KEY}"}, {"X-API-Key": "kéy"}):
            assert stranger.get("/models", headers={k: v.encode() for k, v in wrong.items()}).status_code == 401
        assert stranger.get("/models", headers={"X-API-Key": KEY}).status_code == 200
    assert KEY not in str(service.lines) + str(service.told)
    assert KEY.encode() not in Path(f"/proc/{service.process.pid}/cmdline").read_bytes()


def test_a_site_that_was_named_may_ask_from_a_browser(service):
    asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    with httpx.Client(base_url=service.url, trust_env=False) as browser:
        before = browser.options("/predict", headers=asked)
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == "https://friend.example"
    answer = service.client.get("/models", headers={"Origin": "https://friend.example"})
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-origin" not in service.client.get("/models").headers


def test_a_worker_killed_under_load_is_replaced_and_nothing_is_lost(service, model):
    predictor = van.Predictor.load(model, device="cpu")
    [worker] = service.workers
    with Load(service) as load:
        assert service.wait_until(lambda: len(load.answers) > 8, 30)
        before = len(service.lines)
        os.kill(worker, signal.SIGKILL)
        assert service.wait_for("a worker ended and is replaced", after=before, timeout_s=5)["worker"] == worker
        already = len(load.answers)
        assert service.wait_until(lambda: len(load.answers) > already + 8, 60)
    assert [other] != [worker] if (other := service.workers[0]) else False
    assert {answer.status_code for _, answer in load.answers} == {200}
    own = [predictor(picture).probabilities for picture in load.pictures]
    for place, answer in load.answers:
        np.testing.assert_allclose(probabilities(answer), own[place], atol=2e-5)
    assert service.metric("van_worker_restarts_total") == 1
    assert service.metric("van_workers") == 1


def test_a_new_file_is_taken_up_under_load_and_a_broken_one_is_not(service, model, tmp_path):
    old = van.Predictor.load(model, device="cpu")
    fresh_file = write_small(tmp_path / "fresh.safetensors", size_px=64, seed=1)
    fresh = van.Predictor.load(fresh_file, device="cpu")
    version = service.client.get("/models").json()["models"][0]["version"]
    with Load(service, clients=2) as load:
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(model.read_bytes()[:5000])
        before = len(service.lines)
        replace(model, broken)
        refused = service.wait_for("a new model file is refused", after=before, timeout_s=60)
        assert refused["model"] == "small"
        assert str(probabilities(predict(service, png()))) != ""
        assert service.client.get("/models").json()["models"][0]["version"] == version
        told = len(service.lines)
        replace(model, fresh_file)
        service.wait_for("a new model file is served", after=told, timeout_s=60)
        already = len(load.answers)
        assert service.wait_until(lambda: len(load.answers) > already + 8, 60)
    assert {answer.status_code for _, answer in load.answers} == {200}
    by_old = [old(picture).probabilities for picture in load.pictures]
    by_new = [fresh(picture).probabilities for picture in load.pictures]
    assert not np.allclose(by_old, by_new, atol=1e-3)
    for place, answer in load.answers:
        found = probabilities(answer)
        assert np.allclose(found, by_old[place], atol=2e-5) or np.allclose(found, by_new[place], atol=2e-5)
    np.testing.assert_allclose(probabilities(load.answers[-1][1]), by_new[load.answers[-1][0]], atol=2e-5)
    assert service.client.get("/models").json()["models"][0]["version"] != version
    assert sum(line["event"] == "a new model file is refused" for line in service.lines) == 1  # told once, not for ever


def test_a_picture_cropped_for_a_network_that_was_replaced_is_answered_by_the_new_one(service, model, tmp_path):
    """It waits, cut to 64 pixels, while the only worker is stopped; the network that comes reads 48."""
    fresh_file = write_small(tmp_path / "fresh.safetensors", size_px=48, seed=2)
    [worker] = service.workers
    before = len(service.lines)
    os.kill(worker, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(2) as pool:
            held = pool.submit(predict, service, png(seed=1))
            assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 1, 10)
            assert service.wait_until(lambda: service.metric("van_queue_depth") == 0, 10)  # the worker has it
            waiting = pool.submit(predict, service, png(seed=2))
            assert service.wait_until(lambda: service.metric("van_queue_depth") == 1, 10)
            replace(model, fresh_file)
            found = probabilities(waiting.result(60))
            os.kill(worker, signal.SIGCONT)
            assert held.result(60).status_code == 200
    finally:
        with contextlib.suppress(ProcessLookupError):  # it is retired as soon as it has answered
            os.kill(worker, signal.SIGCONT)
    service.wait_for("a new model file is served", after=before, timeout_s=60)
    fresh = van.Predictor.load(fresh_file, device="cpu")
    np.testing.assert_allclose(found, fresh(png(seed=2)).probabilities, atol=2e-5)
    assert {line["status"] for line in service.lines[before:] if line.get("path") == "/predict"} == {200}


def test_a_stopping_service_answers_what_it_has_accepted_and_nothing_else(service):
    [worker] = service.workers
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(5) as pool:
        accepted = [pool.submit(predict, service, png(seed=seed)) for seed in range(5)]
        assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 5, 10)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("stopping", timeout_s=10)
        refused = predict(service, png())
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
        assert "retry-after" in refused.headers
        assert service.client.get("/v2/health/ready").status_code == 503
        assert service.client.get("/v2/health/live").status_code == 200
        os.kill(worker, signal.SIGCONT)
        assert {one.result(30).status_code for one in accepted} == {200}
    assert service.stop() == 0
    assert service.lines[-1]["unfinished"] == 0
    assert not Path(f"/proc/{worker}").exists()
    assert not service.told


def killed_one_after_the_other(service: Running, workers: list[int], names: list[str]) -> list[dict]:
    """The answers to three pictures of one batch whose workers are killed while they hold them."""
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(service.client.post, "/predict", files=[("f", (name, png())) for name in names])
        assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 3, 10)
        assert service.wait_until(lambda: service.metric("van_queue_depth") == 0, 10)
        for worker in workers:
            time.sleep(0.2)
            os.kill(worker, signal.SIGKILL)
        answer = asked.result(90)
    assert service.wait_until(lambda: service.metric("van_workers") == 2 and len(service.workers) == 2, 60)
    return answer.json()["answers"]


@pytest.mark.slow
def test_a_picture_that_ends_two_workers_is_refused_by_name_and_its_neighbours_are_answered(small_file):
    """The worker with the batch is killed, then the one that has its first picture alone; it is not known which is
    which, so both orders are tried: in the other one an idle worker goes first, and all three are answered."""
    refused: list[str] = []
    with running(small_file, "--workers", 2, "--max-wait-ms", 300, OMP_NUM_THREADS="1") as service:
        for attempt in range(6):
            workers = service.workers if attempt % 2 else service.workers[::-1]
            answers = killed_one_after_the_other(service, workers, ["first.png", "second.png", "third.png"])
            failed = [one for one in answers if "error" in one]
            assert len(failed) <= 1
            refused += [one["error"]["message"] for one in failed]
            assert all(one["classes"] for one in answers if one not in failed)
            if refused:
                break
        events = [line for line in service.lines if line["event"] == "a picture ended two workers"]
    assert refused == ["first.png: two workers ended while they looked at it"]
    assert len(events) == 1


@pytest.mark.slow
def test_a_worker_that_hangs_gives_504_and_is_replaced(small_file):
    with running(small_file, "--timeout-s", 3, OMP_NUM_THREADS="1") as service:
        os.kill(service.workers[0], signal.SIGSTOP)
        start = time.monotonic()
        answer = predict(service, png())
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert 2.5 < time.monotonic() - start < 6
        assert service.wait_for("a worker ended and is replaced", timeout_s=20)["reason"] == "hung"
        assert service.wait_until(lambda: service.metric("van_workers") == 1, 60)
        assert predict(service, png()).status_code == 200


@pytest.mark.slow
def test_what_is_not_finished_within_the_grace_is_told_and_gives_status_1(small_file):
    with running(small_file, "--grace-s", 1, OMP_NUM_THREADS="1") as service:
        os.kill(service.workers[0], signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(predict, service, png())
            assert service.wait_until(lambda: service.metric("van_accepted_pictures") == 1, 10)
            assert service.stop(signal.SIGINT, timeout_s=20) == 1
            assert asked.result(10).status_code == 503
        assert service.wait_for("stopped")["unfinished"] == 1


@pytest.mark.slow
def test_a_front_that_is_killed_leaves_no_worker_behind(small_file):
    with running(small_file, OMP_NUM_THREADS="1") as service:
        [worker] = service.workers
        service.process.kill()
        service.process.wait()
        end = time.monotonic() + 10
        while Path(f"/proc/{worker}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()
