"""Under load every prediction is correct and no request fails; overload is rejected at once without slowing others."""

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

from explain.small_models import image, write_small
from serving.conftest import png
from serving.server import ServerProcess, running_server
from van.checkpoint import Checkpoint
from van.model import Model
from van.ops import enable_memory_reuse
from van.predict import Predictor
from van.preprocess import CenterCropPreprocess

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "load.py"
_spec = importlib.util.spec_from_file_location("load", SCRIPT)
load: Any = importlib.util.module_from_spec(_spec)
sys.modules["load"] = load  # dataclasses need their module
_spec.loader.exec_module(load)

IMAGES = [png(60 + 10 * number, 80, seed=number) for number in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_small(tmp_path_factory.mktemp("load") / "small.safetensors", image_size=64)


@pytest.fixture(scope="module")
def small_queue(model) -> Iterator[ServerProcess]:
    """Run a server with a queue of eight images."""
    with running_server(model, "--max-queue", 8, "--threads", 1, OMP_NUM_THREADS="1") as server:
        yield server


def make_generator(server: ServerProcess) -> Any:
    host, port = server.url.removeprefix("http://").split(":")
    target = load.Target(host=host, port=int(port))
    return load.LoadGenerator(target, IMAGES, asyncio.run(load.predict_unloaded(target, IMAGES)))


def test_a_closed_loop_is_predicted_correctly_in_batches(small_queue):
    generator = make_generator(small_queue)
    before = small_queue.metric("van_batch_size_count"), small_queue.metric("van_batch_size_sum")
    result = asyncio.run(generator.run_closed_loop(connections=8, seconds=1.5))
    assert (result.incorrect, result.failed, result.rejected_s) == (0, 0, [])
    assert len(result.latencies_s) > 20
    batches = small_queue.metric("van_batch_size_count") - before[0]
    images = small_queue.metric("van_batch_size_sum") - before[1]
    assert images == result.sent
    assert images / batches > 2


def test_overload_is_rejected_at_once_without_slowing_accepted_requests(small_queue):
    """Send four times as many images at once as the queue takes."""
    generator = make_generator(small_queue)
    normal = asyncio.run(generator.run_closed_loop(connections=8, seconds=1.0))
    result = asyncio.run(generator.run_closed_loop(connections=32, seconds=2.0))
    assert (result.incorrect, result.failed) == (0, 0)
    assert len(result.rejected_s) > 20
    assert result.throughput > 0.5 * normal.throughput
    p50, normal_p50 = load.percentile(result.latencies_s, 0.5), load.percentile(normal.latencies_s, 0.5)
    assert p50 < 3 * normal_p50 + 0.05
    assert load.percentile(result.rejected_s, 0.5) < p50
    assert small_queue.metric("van_images_in_progress") == 0


def test_an_open_loop_sends_at_its_rate(small_queue):
    result = asyncio.run(make_generator(small_queue).run_open_loop(rate=20, seconds=1.5))
    assert (result.incorrect, result.failed) == (0, 0)
    assert 15 <= result.sent <= 50
    assert len(result.latencies_s) + len(result.rejected_s) == result.sent


def test_the_generator_counts_incorrect_predictions_and_failures(small_queue):
    """Negative control: other predictions than expected are incorrect; an invalid image and a missing server fail."""
    generator = make_generator(small_queue)
    generator._expected = generator._expected[1:] + generator._expected[:1]
    result = asyncio.run(generator.run_closed_loop(connections=2, seconds=0.3))
    assert result.incorrect == result.sent > 0
    assert result.throughput == 0
    target = generator._target
    invalid = load.LoadGenerator(target, [b"no image"], [{}])
    assert asyncio.run(invalid.run_open_loop(rate=30, seconds=0.2)).failed > 0
    nowhere = load.LoadGenerator(load.Target(host="127.0.0.1", port=9), [b"x"], [{}])
    assert asyncio.run(nowhere.run_open_loop(rate=30, seconds=0.2)).failed > 0


def test_predictions_are_the_same_up_to_rounding():
    def prediction(**scores):
        indices = {"a": 0, "b": 1}
        return {"classes": [{"label": k, "score": p, "index": indices[k]} for k, p in scores.items()]}

    one, other = prediction(a=0.5, b=0.4999), prediction(b=0.4999, a=0.5001)
    assert load.is_same(other | {"timings": {"batch_size": 2}, "image": "x"}, one)
    assert not load.is_same({"classes": one["classes"][:1]}, one)
    assert not load.is_same({"classes": [{**one["classes"][0], "score": 0.6}, one["classes"][1]]}, one)
    box = {"detections": [{"label": "a", "index": 0, "score": 0.9, "box": [1.0, 2.0, 30.0, 40.0]}]}
    assert load.is_same(
        {"detections": [{"label": "a", "index": 0, "score": 0.9001, "box": [1.0, 2.0, 30.2, 40.0]}]}, box
    )
    assert not load.is_same(
        {"detections": [{"label": "a", "index": 0, "score": 0.9, "box": [1.0, 2.0, 31.0, 40.0]}]}, box
    )
    assert not load.is_same({"detections": []}, box)


def test_percentiles_are_measured_values():
    values = [float(number) for number in range(100, 0, -1)]
    assert [load.percentile(values, fraction) for fraction in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert load.percentile([3.0], 0.5) == 3.0


def test_the_command_prints_its_result_and_fails_if_a_request_fails(small_queue, tmp_path):
    (tmp_path / "cat.png").write_bytes(IMAGES[0])
    (tmp_path / "none.png").write_text("no image")
    command = [sys.executable, SCRIPT, small_queue.url, "--seconds", "0.5", "--warmup-s", "0.1", "--connections", "4"]
    done = subprocess.run([*command, tmp_path / "cat.png"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["incorrect"], result["failed"]) == (0, 0)
    assert result["images_per_s"] == pytest.approx(result["correct"] / 0.5)
    failed = subprocess.run([*command, tmp_path / "none.png"], capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "422" in failed.stderr


def documented_curl_commands() -> list[list[str]]:
    page = (ROOT / "docs" / "serving.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", page, flags=re.S | re.M)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_curl_commands_of_the_documentation_work(small_queue, tmp_path):
    for number, name in enumerate(("cat.jpg", "tree.jpg")):
        image(80, 60, number).save(tmp_path / name)
    commands = documented_curl_commands()
    assert len(commands) >= 7
    for command in commands:
        local = [word.replace("http://127.0.0.1:8000", small_queue.url) for word in command]
        done = subprocess.run([*local, "--fail-with-body", "-sS"], cwd=tmp_path, capture_output=True, timeout=60)
        assert done.returncode == 0, (command, done.stdout[:300], done.stderr)
    pngs = list(tmp_path.glob("*.png"))
    assert len(pngs) >= 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pngs)


def model_throughput(path: Path, *, threads: int = 0, batch_size: int = 16, seconds: float = 4.0) -> float:
    """Return images/s of the model alone, in full batches that are in memory; 0 selects all threads."""
    enable_memory_reuse()  # as every worker does; without it the model takes twice as long
    default = torch.get_num_threads()
    torch.set_num_threads(threads or default)
    try:
        return _measure_model(path, batch_size, seconds)
    finally:
        torch.set_num_threads(default)


def _measure_model(path: Path, batch_size: int, seconds: float) -> float:
    predictor = Predictor(Model.load(path), device="cpu")
    assert isinstance(predictor.preprocess, CenterCropPreprocess)
    side = predictor.preprocess.image_size
    batch = torch.rand(batch_size, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        predictor._network(batch)
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            predictor._network(batch)
            done += batch_size
    return done / (time.perf_counter() - start)


def write_full_size(path: Path, name: str) -> Path:
    """Write a model of full size with 1000 classes and random weights; returns ``path``."""
    torch.manual_seed(0)
    class_names = tuple(f"class {number}" for number in range(1000))
    state = timm.create_model(name).state_dict()
    Checkpoint(
        task="classify",
        model=name,
        class_names=class_names,
        preprocess=CenterCropPreprocess(image_size=224),
        state=state,
    ).save(path)
    return path


def jpeg_files() -> list[bytes]:
    """Return JPEG files of 500x375, a common size on the web."""
    files = []
    for seed in range(8):
        written = io.BytesIO()
        image(500, 375, seed).save(written, format="jpeg", quality=90)
        files.append(written.getvalue())
    return files


def run_saturated(path: Path, *flags: object) -> Any:
    """Return the load result of a server of that model with 32 connections."""
    files = jpeg_files()
    with running_server(path, *flags) as server:
        host, port = server.url.removeprefix("http://").split(":")
        target = load.Target(host=host, port=int(port))
        generator = load.LoadGenerator(target, files, asyncio.run(load.predict_unloaded(target, files)))
        return asyncio.run(generator.run_closed_loop(connections=32, seconds=20, warmup_s=3))


@pytest.mark.slow
def test_a_saturated_server_has_nine_tenths_of_the_throughput_of_its_model(tmp_path):
    """Both use all cores, which the server shares with the load generator."""
    path = write_full_size(tmp_path / "b2.safetensors", "van_b2")
    maximum = model_throughput(path)
    result = run_saturated(path)
    assert (result.incorrect, result.failed, result.rejected_s) == (0, 0, [])
    assert result.throughput >= 0.9 * maximum, (result.to_dict(), maximum)


@pytest.mark.slow
def test_a_saturated_server_of_a_small_model_on_one_core_does_so_as_well(tmp_path):
    """The model takes 13 ms per image here, so that overhead of the worker would show."""
    path = write_full_size(tmp_path / "b0.safetensors", "van_b0")
    maximum = model_throughput(path, threads=1)
    result = run_saturated(path, "--threads", 1)
    assert (result.incorrect, result.failed, result.rejected_s) == (0, 0, [])
    assert result.throughput >= 0.9 * maximum, (result.to_dict(), maximum)
