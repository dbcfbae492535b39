"""A run that was stopped and resumed ends with the same bits as an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from training.tiny import Squares, differing_tensors, tiny_run
from van.checkpoint import load_checkpoint
from van.errors import Interrupted, RunExists, UsageError
from van.training.run_folder import read_log
from van.training.trainer import fit

SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(tiny_run(epochs=3), out)
    return out


def test_a_run_killed_at_random_moments_ends_bit_identical_to_an_uninterrupted_run(tmp_path: Path):
    """Every source of randomness is on, and checkpoints are written within epochs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "killed"), "7"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 2, "the run was too quick to be killed"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(tiny_run(epochs=3), tmp_path / "whole")
    finally:
        torch.set_num_threads(before)
    for name in ("best.safetensors", "last.safetensors"):
        assert differing_tensors(tmp_path / "whole" / name, tmp_path / "killed" / name) == []
    logs = [read_log(tmp_path / run / "log.jsonl") for run in ("whole", "killed")]
    losses = [[(r["step"], r["loss"]) for r in log if r["kind"] in ("train", "eval")] for log in logs]
    assert losses[0] == losses[1]


def test_another_seed_gives_different_bits(tmp_path: Path, uninterrupted: Path):
    """The negative control of the comparison above."""
    fit(tiny_run(epochs=3, seed=1), tmp_path / "other")
    assert len(differing_tensors(uninterrupted / "last.safetensors", tmp_path / "other" / "last.safetensors")) > 50


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_within_the_epoch_and_the_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, uninterrupted: Path, signal_number: signal.Signals
):
    class Signaling(Squares):
        reads = 0

        def __getitem__(self, index: int) -> dict:
            type(self).reads += 1
            if self.reads == 59:
                os.kill(os.getpid(), signal_number)
            return super().__getitem__(index)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match=rf"{signal_number.name} after update 8 of 15.*run.*--resume"):
        fit(tiny_run(epochs=3, train_dataset=Signaling(40, jitter=0.3)), tmp_path / "run")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").training_state["progress"]["update"] == 8
    fit(tiny_run(epochs=3), tmp_path / "run", resume=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert differing_tensors(uninterrupted / name, tmp_path / "run" / name) == []


def test_a_run_with_worker_processes_ends_with_the_same_bits(tmp_path: Path, uninterrupted: Path):
    fit(tiny_run(epochs=3, workers=1), tmp_path / "run")
    assert differing_tensors(uninterrupted / "last.safetensors", tmp_path / "run" / "last.safetensors") == []


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path):
    fit(tiny_run(), tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    summary = fit(tiny_run(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    assert summary.updates == 10


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path, uninterrupted: Path):
    """A run may be killed before its first checkpoint, or before its folder exists."""
    fit(tiny_run(epochs=3), tmp_path / "run", resume=True)
    assert differing_tensors(uninterrupted / "last.safetensors", tmp_path / "run" / "last.safetensors") == []


def test_an_existing_run_is_not_overwritten(tmp_path: Path):
    fit(tiny_run(epochs=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunExists, match="--resume"):
        fit(tiny_run(epochs=1), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_resuming_with_different_settings_names_both_values(tmp_path: Path):
    fit(tiny_run(epochs=1), tmp_path / "run")
    with pytest.raises(UsageError, match=r"--resume.*lr.*0\.003.*0\.5"):
        fit(tiny_run(epochs=1, lr=0.5), tmp_path / "run", resume=True)


def test_an_incomplete_log_line_is_dropped_on_resume(tmp_path: Path):
    fit(tiny_run(epochs=1), tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"kind": "tra')
    fit(tiny_run(epochs=1), tmp_path / "run", resume=True)
    assert log.read_text() == whole
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_training_runs_outside_the_main_thread(tmp_path: Path):
    thread = threading.Thread(target=fit, args=(tiny_run(epochs=1), tmp_path / "run"))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "best.safetensors").exists()
