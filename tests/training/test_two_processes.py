"""Two gloo processes under torchrun compute the same weights and metrics as one process with the same batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from training.tiny import OPTIONS, Squares, exact_settings, tensors, tiny_run
from van.backbones.van import VAN
from van.checkpoint import load_checkpoint
from van.errors import CheckpointError
from van.tasks.classification import ClassificationTask
from van.training.distributed import accelerator_context
from van.training.evaluate import evaluate
from van.training.run_folder import read_log
from van.training.trainer import fit

SCRIPT = Path(__file__).with_name("two_processes.py")

# differences from the order of float32 sums, accumulated over ten updates of AdamW
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
    fit(tiny_run(**exact_settings()), out)
    return out


@pytest.mark.parametrize("variant", ["ddp", "accumulated", "fsdp2"])
@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors"])
def test_two_processes_train_the_same_weights_as_one(by_one: Path, by_two: Path, variant: str, name: str):
    """Compares weights, moving average and optimizer moments for DDP, DDP with accumulation, and FSDP2."""
    one, two = tensors(by_one / name), tensors(by_two / variant / name)
    one = {key: tensor for key, tensor in one.items() if "generators" not in key}
    two = {key: tensor for key, tensor in two.items() if "generators" not in key}
    assert one.keys() == two.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


def test_the_comparison_fails_for_different_training_images(by_one: Path, tmp_path: Path):
    fit(tiny_run(**{**exact_settings(), "train_dataset": Squares(40, jitter=0.05)}), tmp_path / "run")
    one, other = tensors(by_one / "last.safetensors"), tensors(tmp_path / "run" / "last.safetensors")
    assert not torch.allclose(other["head.weight"], one["head.weight"], **CLOSE)


def test_an_evaluation_by_two_processes_counts_every_sample_once(by_two: Path):
    """29 samples, one of them unreadable, in batches of 4: padding is in no metric."""
    distributed = json.loads((by_two / "evaluation.json").read_text())
    torch.manual_seed(3)
    model = VAN(num_classes=3, **OPTIONS)
    with accelerator_context(device="cpu") as accelerator:
        task = ClassificationTask(("red", "green", "blue"))
        single = evaluate(task, model, Squares(29, broken=(4,)), accelerator, batch_size=5)
    assert distributed["world_size"] == 2
    assert distributed["samples"] == single.samples == 28
    assert distributed["unreadable"] == [["square-4", "is damaged"]] == [list(pair) for pair in single.unreadable]
    assert distributed["confusion"] == single.details["confusion"].tolist()
    assert np.sum(distributed["confusion"]) == 28
    assert distributed["metrics"] == pytest.approx(single.metrics, abs=1e-6)


def test_the_logged_metrics_of_two_processes_are_those_of_the_saved_checkpoint(by_two: Path):
    """Each process has batch statistics of its own; those of the first are saved and must be evaluated."""
    log = [record for record in read_log(by_two / "random" / "log.jsonl") if record["kind"] == "eval"]
    best = max(log, key=lambda record: record["top1"])
    checkpoint = load_checkpoint(by_two / "random" / "best.safetensors")
    model = VAN(num_classes=3, **OPTIONS)
    model.load_state_dict(dict(checkpoint.state))
    with accelerator_context(device="cpu") as accelerator:
        single = evaluate(ClassificationTask(("red", "green", "blue")), model, Squares(13), accelerator)
    assert best["loss"] == pytest.approx(single.metrics["loss"], abs=1e-5)


def test_the_random_generators_of_every_process_are_saved(by_two: Path):
    training = load_checkpoint(by_two / "random" / "last.safetensors", with_training=True).training
    first, second = training["generators/0/torch"], training["generators/1/torch"]
    assert not torch.equal(first, second)


def test_a_run_of_two_processes_cannot_be_resumed_by_one(by_two: Path):
    with pytest.raises(CheckpointError, match=r"2 processes.*got 1.*--nproc-per-node 2"):
        fit(tiny_run(epochs=2), by_two / "random", resume=True)
