"""Two gloo processes under torchrun agree with one on the same global batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.tiny import OPTIONS, Squares, exact_settings, tensors, tiny_job
from van.checkpoint import load_checkpoint
from van.engine.distributed import started
from van.engine.evaluate import evaluate
from van.engine.fit import fit
from van.engine.run_folder import read_log
from van.errors import CheckpointError
from van.models.van import VAN
from van.tasks.classify import Classify

SCRIPT = Path(__file__).with_name("two_processes.py")

# float32 sums in another order, carried through ten updates of AdamW
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--master-addr", "127.0.0.1", "--master-port", str(port), str(SCRIPT), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def by_one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    fit(tiny_job(**exact_settings()), out)
    return out


@pytest.mark.parametrize("way", ["ddp", "accumulated", "fsdp2"])
@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_two_processes_train_the_network_that_one_does(by_one: Path, by_two: Path, way: str, name: str):
    """Weights, moving average and optimiser moments; copies, accumulated copies, and shards."""
    one, two = tensors(by_one / name), tensors(by_two / way / name)
    one = {key: tensor for key, tensor in one.items() if "generators" not in key}
    two = {key: tensor for key, tensor in two.items() if "generators" not in key}
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


def test_the_comparison_would_notice_a_process_that_saw_the_wrong_pictures(by_one: Path, tmp_path: Path):
    fit(tiny_job(**{**exact_settings(), "train_set": Squares(40, jitter=0.05)}), tmp_path / "run")
    one, other = tensors(by_one / "last.safetensors"), tensors(tmp_path / "run" / "last.safetensors")
    assert not torch.allclose(other["head.weight"], one["head.weight"], **CLOSE)


def test_an_evaluation_by_two_counts_every_sample_once(by_two: Path):
    """29 samples, one of them unreadable, in batches of 4: nothing is padded into the metrics."""
    found = json.loads((by_two / "evaluation.json").read_text())
    torch.manual_seed(3)
    model = VAN(num_classes=3, **OPTIONS)
    with started(device="cpu") as accelerator:
        task = Classify(("red", "green", "blue"))
        alone = evaluate(task, model, Squares(29, broken=(4,)), accelerator, batch_size=5)
    assert found["world"] == 2
    assert found["samples"] == alone.samples == 28
    assert found["unreadable"] == [["square-4", "is damaged"]] == [list(pair) for pair in alone.unreadable]
    assert found["confusion"] == alone.details["confusion"].tolist()
    assert np.sum(found["confusion"]) == 28
    assert found["metrics"] == pytest.approx(alone.metrics, abs=1e-6)


def test_what_two_processes_log_is_what_the_file_they_save_scores(by_two: Path):
    """Each process gathers batch statistics of its own; those of the first are saved and must be the ones measured."""
    log = [record for record in read_log(by_two / "random" / "log.jsonl") if record["kind"] == "eval"]
    best = max(log, key=lambda record: record["top1"])
    checkpoint = load_checkpoint(by_two / "random" / "best.safetensors")
    model = VAN(num_classes=3, **OPTIONS)
    model.load_state_dict(dict(checkpoint.state))
    with started(device="cpu") as accelerator:
        alone = evaluate(Classify(("red", "green", "blue")), model, Squares(13), accelerator)
    assert best["loss"] == pytest.approx(alone.metrics["loss"], abs=1e-5)


def test_the_random_generators_of_every_process_are_kept(by_two: Path):
    training = load_checkpoint(by_two / "random" / "last.safetensors", with_training=True).training
    first, second = training["generators/0/torch"], training["generators/1/torch"]
    assert not torch.equal(first, second)


def test_a_run_of_two_processes_is_not_resumed_by_one(by_two: Path):
    with pytest.raises(CheckpointError, match=r"saved by 2 processes, not 1.*--nproc-per-node 2"):
        fit(tiny_job(epochs=2), by_two / "random", resume=True)
