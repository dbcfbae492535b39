"""Under load every answer is right and none is lost; what is too much is refused at once, the rest keeps its time."""

import asyncio
import importlib.util
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from explain.small import picture, write_small
from serve.conftest import png
from serve.running import Running, running
from van.checkpoint import Checkpoint
from van.ops import keep_freed_memory
from van.predict import Predictor
from van.preprocess import Preprocess

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "load.py"
_spec = importlib.util.spec_from_file_location("load", SCRIPT)
load: Any = importlib.util.module_from_spec(_spec)
sys.modules["load"] = load  # dataclasses look their module up
_spec.loader.exec_module(load)

PICTURES = [png(60 + 10 * number, 80, seed=number) for number in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_small(tmp_path_factory.mktemp("load") / "small.safetensors", size_px=64)


@pytest.fixture(scope="module")
def narrow(model) -> Iterator[Running]:
    """A service whose queue takes eight."""
    with running(model, "--max-queue", 8, "--threads", 1, OMP_NUM_THREADS="1") as server:
        yield server


def generator_at(server: Running) -> Any:
    host, port = server.url.removeprefix("http://").split(":")
    target = load.Target(host=host, port=int(port))
    return load.Generator(target, PICTURES, asyncio.run(load.ask_alone(target, PICTURES)))


def test_a_closed_loop_is_answered_rightly_in_batches(narrow):
    generator = generator_at(narrow)
    before = narrow.metric("van_batch_size_count"), narrow.metric("van_batch_size_sum")
    seen = asyncio.run(generator.closed(connections=8, seconds=1.5))
    assert (seen.wrong, seen.lost, seen.refused_s) == (0, 0, [])
    assert len(seen.answered_s) > 20
    batches = narrow.metric("van_batch_size_count") - before[0]
    pictures = narrow.metric("van_batch_size_sum") - before[1]
    assert pictures == seen.sent
    assert pictures / batches > 2


def test_what_is_too_much_is_refused_at_once_and_the_rest_keeps_its_time(narrow):
    """Four times as many at once as the queue takes."""
    generator = generator_at(narrow)
    usual = asyncio.run(generator.closed(connections=8, seconds=1.0))
    seen = asyncio.run(generator.closed(connections=32, seconds=2.0))
    assert (seen.wrong, seen.lost) == (0, 0)
    assert len(seen.refused_s) > 20
    assert seen.rate > 0.5 * usual.rate
    p50, usual_p50 = load.percentile(seen.answered_s, 0.5), load.percentile(usual.answered_s, 0.5)
    assert p50 < 3 * usual_p50 + 0.05
    assert load.percentile(seen.refused_s, 0.5) < p50
    assert narrow.metric("van_accepted_pictures") == 0


def test_an_open_loop_counts_from_the_moment_of_arrival(narrow):
    seen = asyncio.run(generator_at(narrow).open(rate=20, seconds=1.5))
    assert (seen.wrong, seen.lost) == (0, 0)
    assert 15 <= seen.sent <= 50
    assert len(seen.answered_s) + len(seen.refused_s) == seen.sent


def test_the_generator_sees_what_is_wrong_and_what_is_lost(narrow):
    """The control: other answers than expected are wrong, a picture that is none and a service that is gone lose it."""
    generator = generator_at(narrow)
    generator._expected = generator._expected[1:] + generator._expected[:1]
    seen = asyncio.run(generator.closed(connections=2, seconds=0.3))
    assert seen.wrong == seen.sent > 0
    assert seen.rate == 0
    target = generator._target
    broken = load.Generator(target, [b"no picture"], [{}])
    assert asyncio.run(broken.open(rate=30, seconds=0.2)).lost > 0
    nowhere = load.Generator(load.Target(host="127.0.0.1", port=9), [b"x"], [{}])
    assert asyncio.run(nowhere.open(rate=30, seconds=0.2)).lost > 0


def test_answers_are_the_same_up_to_rounding():
    def answer(**probabilities):
        numbers = {"a": 0, "b": 1}
        return {"classes": [{"label": k, "probability": p, "index": numbers[k]} for k, p in probabilities.items()]}

    one, other = answer(a=0.5, b=0.4999), answer(b=0.4999, a=0.5001)
    assert load.same(other | {"timings": {"batch": 2}, "picture": "x"}, one)
    assert not load.same({"classes": one["classes"][:1]}, one)
    assert not load.same({"classes": [{**one["classes"][0], "probability": 0.6}, one["classes"][1]]}, one)
    box = {"things": [{"label": "a", "index": 0, "score": 0.9, "box": [1.0, 2.0, 30.0, 40.0]}]}
    assert load.same({"things": [{"label": "a", "index": 0, "score": 0.9001, "box": [1.0, 2.0, 30.2, 40.0]}]}, box)
    assert not load.same({"things": [{"label": "a", "index": 0, "score": 0.9, "box": [1.0, 2.0, 31.0, 40.0]}]}, box)
    assert not load.same({"things": []}, box)


def test_percentiles_are_values_that_were_seen():
    values = [float(number) for number in range(100, 0, -1)]
    assert [load.percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert load.percentile([3.0], 0.5) == 3.0


def test_the_command_says_what_it_saw_and_fails_where_something_was_lost(narrow, tmp_path):
    (tmp_path / "cat.png").write_bytes(PICTURES[0])
    (tmp_path / "none.png").write_text("no picture")
    words = [sys.executable, SCRIPT, narrow.url, "--seconds", "0.5", "--warm-s", "0.1", "--connections", "4"]
    done = subprocess.run([*words, tmp_path / "cat.png"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["wrong"], said["lost"]) == (0, 0)
    assert said["answers_per_second"] == pytest.approx(said["answered"] / 0.5)
    failed = subprocess.run([*words, tmp_path / "none.png"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "no picture" in failed.stderr


def asked_in_the_documentation() -> list[list[str]]:
    page = (ROOT / "docs" / "serving.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", page, flags=re.S | re.M)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_what_the_documentation_asks_is_answered(narrow, tmp_path):
    for number, name in enumerate(("cat.jpg", "tree.jpg")):
        picture(80, 60, number).save(tmp_path / name)
    asked = asked_in_the_documentation()
    assert len(asked) >= 7
    for words in asked:
        here = [word.replace("http://127.0.0.1:8000", narrow.url) for word in words]
        done = subprocess.run([*here, "--fail-with-body", "-sS"], cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout[:300], done.stderr)
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("why.png", "lka.png"))


def ceiling(path: Path, *, threads: int = 0, batch_size: int = 16, seconds: float = 4.0) -> float:
    """Pictures a second of the network alone, in whole batches that are ready in memory; all threads if 0."""
    keep_freed_memory()  # as every worker does: without it the network takes twice as long
    usual = torch.get_num_threads()
    torch.set_num_threads(threads or usual)
    try:
        return _measured_alone(path, batch_size, seconds)
    finally:
        torch.set_num_threads(usual)


def _measured_alone(path: Path, batch_size: int, seconds: float) -> float:
    predictor = Predictor.load(path, device="cpu")
    assert isinstance(predictor.preprocess, Preprocess)
    side = predictor.preprocess.size_px
    batch = torch.rand(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        predictor._network(batch)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            predictor._network(batch)
            done += batch_size
    return done / (time.perf_counter() - start)


def write_whole(path: Path, name: str) -> Path:
    """A network of its real size with 1000 classes and random weights; returns ``path``."""
    torch.manual_seed(0)
    labels = tuple(f"class {number}" for number in range(1000))
    state = timm.create_model(name).state_dict()
    Checkpoint(task="classify", model=name, labels=labels, preprocess=Preprocess(size_px=224), state=state).save(path)
    return path


def photographs() -> list[bytes]:
    """JPEG files of 500x375, as they come from the web."""
    files = []
    for seed in range(8):
        written = io.BytesIO()
        picture(500, 375, seed).save(written, format="jpeg", quality=90)
        files.append(written.getvalue())
    return files


def saturated(path: Path, *flags: object) -> Any:
    """What the generator saw of a service of that network with 32 connections."""
    files = photographs()
    with running(path, *flags) as server:
        host, port = server.url.removeprefix("http://").split(":")
        target = load.Target(host=host, port=int(port))
        generator = load.Generator(target, files, asyncio.run(load.ask_alone(target, files)))
        return asyncio.run(generator.closed(connections=32, seconds=20, warm_s=3))


@pytest.mark.slow
def test_at_saturation_the_service_gives_nine_tenths_of_what_its_network_can(tmp_path):
    """Both with all cores of this machine, which the service shares with who asks it."""
    path = write_whole(tmp_path / "b2.safetensors", "van_b2")
    most = ceiling(path)
    seen = saturated(path)
    assert (seen.wrong, seen.lost, seen.refused_s) == (0, 0, [])
    assert seen.rate >= 0.9 * most, (seen.to_dict(), most)


@pytest.mark.slow
def test_so_does_a_small_network_on_one_core_while_the_front_has_another(tmp_path):
    """A picture takes the network 13 ms here, so what the worker does beside it shows."""
    path = write_whole(tmp_path / "b0.safetensors", "van_b0")
    most = ceiling(path, threads=1)
    seen = saturated(path, "--threads", 1)
    assert (seen.wrong, seen.lost, seen.refused_s) == (0, 0, [])
    assert seen.rate >= 0.9 * most, (seen.to_dict(), most)
