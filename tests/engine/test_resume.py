"""A run that was stopped in any way ends, once resumed, with the bits it would have had."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from engine.tiny import Squares, same_bits, tiny_job
from van.checkpoint import load_checkpoint
from van.engine.fit import fit
from van.engine.run_folder import read_log
from van.errors import Interrupted, RunExists, UsageError

SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(tiny_job(epochs=3), out)
    return out


def test_a_run_killed_at_random_moments_ends_bit_identical_to_one_that_was_not(tmp_path: Path):
    """Both in processes of their own; every kind of randomness is on, and saving happens in mid-epoch."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "killed"), "7"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 2, "the run was too quick to be killed"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(tiny_job(epochs=3), tmp_path / "whole")
    finally:
        torch.set_num_threads(before)
    for name in ("best.safetensors", "last.safetensors"):
        assert same_bits(tmp_path / "whole" / name, tmp_path / "killed" / name) == []
    logs = [read_log(tmp_path / run / "log.jsonl") for run in ("whole", "killed")]
    losses = [[(r["step"], r["loss"]) for r in log if r["kind"] in ("train", "eval")] for log in logs]
    assert losses[0] == losses[1]


def test_another_seed_gives_other_bits(tmp_path: Path, whole_run: Path):
    """The negative control of the comparison above."""
    fit(tiny_job(epochs=3, seed=1), tmp_path / "other")
    assert len(same_bits(whole_run / "last.safetensors", tmp_path / "other" / "last.safetensors")) > 50


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_in_mid_epoch_and_the_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, whole_run: Path, number: signal.Signals
):
    class Raising(Squares):
        reads = 0

        def __getitem__(self, index: int) -> dict:
            type(self).reads += 1
            if self.reads == 59:
                os.kill(os.getpid(), number)
            return super().__getitem__(index)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted, match=rf"stopped by {number.name} after update 8 of 15.*--resume"):
        fit(tiny_job(epochs=3, train_set=Raising(40, jitter=0.3)), tmp_path / "run")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").training_state["progress"]["update"] == 8
    fit(tiny_job(epochs=3), tmp_path / "run", resume=True)
    for name in ("best.safetensors", "last.safetensors"):
        assert same_bits(whole_run / name, tmp_path / "run" / name) == []


def test_a_run_can_be_resumed_with_workers_and_still_reads_the_same_samples(tmp_path: Path, whole_run: Path):
    fit(tiny_job(epochs=3, workers=1), tmp_path / "run")
    assert same_bits(whole_run / "last.safetensors", tmp_path / "run" / "last.safetensors") == []


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path):
    fit(tiny_job(), tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    log = (tmp_path / "run" / "log.jsonl").read_text()
    summary = fit(tiny_job(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "log.jsonl").read_text() == log
    assert summary.updates == 10


def test_resume_starts_afresh_where_nothing_was_saved_yet(tmp_path: Path, whole_run: Path):
    """A run may be killed before its first checkpoint, or before its folder exists."""
    fit(tiny_job(epochs=3), tmp_path / "run", resume=True)
    assert same_bits(whole_run / "last.safetensors", tmp_path / "run" / "last.safetensors") == []


def test_a_folder_that_holds_a_run_is_not_touched(tmp_path: Path):
    fit(tiny_job(epochs=1), tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(RunExists, match="--resume"):
        fit(tiny_job(epochs=1), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_resuming_with_other_settings_is_refused_and_names_them(tmp_path: Path):
    fit(tiny_job(epochs=1), tmp_path / "run")
    with pytest.raises(UsageError, match=r"lr was 0.003 and is now 0.5"):
        fit(tiny_job(epochs=1, lr=0.5), tmp_path / "run", resume=True)


def test_a_log_line_cut_off_by_a_crash_is_dropped(tmp_path: Path):
    fit(tiny_job(epochs=1), tmp_path / "run")
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"kind": "tra')
    fit(tiny_job(epochs=1), tmp_path / "run", resume=True)
    assert log.read_text() == whole
    assert all(json.loads(line) for line in log.read_text().splitlines())


def test_training_outside_the_main_thread_leaves_signals_alone(tmp_path: Path):
    thread = threading.Thread(target=fit, args=(tiny_job(epochs=1), tmp_path / "run"))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "best.safetensors").exists()
