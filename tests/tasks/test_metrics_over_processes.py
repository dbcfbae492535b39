"""Two gloo processes under torchrun measure exactly what one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.processes import COUNT, OPTIONS, figures
from van.engine.distributed import started
from van.engine.loader import EvaluationOrder

SCRIPT = Path(__file__).with_name("processes.py")


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two found."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--master-addr", "127.0.0.1", "--master-port", str(port), str(SCRIPT), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr[-3000:]
    records = [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]
    assert [record["world"] for record in records] == [2, 2]
    return [record["found"] for record in records]


@pytest.mark.parametrize("name", list(OPTIONS))
def test_two_processes_find_exactly_what_one_does(name: str, by_two: list[dict[str, Any]]):
    """Not nearly: sums are exact, and the order of pictures is that of their names."""
    with started(device="cpu") as accelerator:
        alone = json.loads(json.dumps(figures(name, accelerator, count=COUNT)))
        padded = figures(name, accelerator, count=COUNT, twice=True)
    tickets = [ticket for batch in EvaluationOrder(COUNT, batch_size=2, rank=1, world=2) for ticket in batch]
    assert [ticket.valid for ticket in tickets] == [True, True, True, False]  # the set does pad
    assert alone["samples"] == COUNT - 1
    for found in by_two:
        assert found[f"{name} {COUNT}"] == alone
    assert padded["metrics"] != alone["metrics"]  # and counting the padding would show
    assert all(
        0 < value < 1 for key, value in alone["metrics"].items() if key in ("box_ap", "mask_ap", "mean_iou", "pq")
    )


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_process_that_has_nothing_but_padding_agrees(name: str, by_two: list[dict[str, Any]]):
    with started(device="cpu") as accelerator:
        alone = json.loads(json.dumps(figures(name, accelerator, count=1)))
    assert alone["samples"] == 1
    for found in by_two:
        assert found[f"{name} 1"] == alone
