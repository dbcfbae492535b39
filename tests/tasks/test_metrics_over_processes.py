"""Two gloo processes, with the environment that torchrun sets, compute exactly the metrics of one process."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.processes import COUNT, OPTIONS, evaluate_task
from van.training.distributed import accelerator_context
from van.training.loader import EvalBatchSampler

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of the two processes."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(out)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "CUDA_VISIBLE_DEVICES": ""},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = [(process.communicate(timeout=200)[1], process.returncode) for process in processes]
    assert [code for _, code in ended] == [0, 0], ended
    records = [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
    assert [record["world_size"] for record in records] == [2, 2]
    return [record["results"] for record in records]


def test_two_processes_compute_exactly_the_metrics_of_one(subtests, by_two):
    """Exactly: sums are exact, and images are sorted by name."""
    for name in list(OPTIONS):
        with subtests.test(name=str(name)):
            with accelerator_context(device="cpu") as accelerator:
                single = json.loads(json.dumps(evaluate_task(name, accelerator, count=COUNT)))
                padded = evaluate_task(name, accelerator, count=COUNT, twice=True)
            refs = [ref for batch in EvalBatchSampler(COUNT, batch_size=2, rank=1, world_size=2) for ref in batch]
            assert [ref.valid for ref in refs] == [True, True, True, False]  # the second process has padding
            assert single["samples"] == COUNT - 1
            for results in by_two:
                assert results[f"{name} {COUNT}"] == single
            assert padded["metrics"] != single["metrics"]  # negative control: counting the padding changes the metrics
            assert all(
                0 < value < 1
                for key, value in single["metrics"].items()
                if key in ("box_ap", "mask_ap", "mean_iou", "pq")
            )


def test_a_process_with_padding_only_returns_the_same_metrics(subtests, by_two):
    for name in list(OPTIONS):
        with subtests.test(name=str(name)):
            with accelerator_context(device="cpu") as accelerator:
                single = json.loads(json.dumps(evaluate_task(name, accelerator, count=1)))
            assert single["samples"] == 1
            for results in by_two:
                assert results[f"{name} 1"] == single
