"""Session benchmark: sessions are compared with PyTorch before timing, and noise is reported."""

import csv
import json
import subprocess
import sys
import time

import pytest
import torch

from van.bench import sessions
from van.bench.sessions import SESSIONS, BenchmarkConfig, Row, format_table, measure
from van.cli.main import main
from van.errors import MissingExtra, UsageError

QUICK = BenchmarkConfig(threads=1, rounds=2, image_size=64, wait_s=0)
VALUES = {"p50_ms": 5.0, "p99_ms": 7.5, "images_per_s": 200.0, "peak_memory_mb": 40.0, "relative_error": 1e-6}


def test_pytorch_and_onnxruntime_are_measured_and_agree():
    config = BenchmarkConfig(threads=1, rounds=2, image_size=64, wait_s=0, sessions=("pytorch", "onnxruntime"))
    rows = measure(["van_b0"], config)
    assert [row.session for row in rows] == list(config.sessions)
    for row in rows:
        assert row.reason == ""
        assert 0 < row.p50_ms <= row.p99_ms
        assert 0 < row.images_per_s <= 2e3 / row.p50_ms
        assert row.relative_error < 1e-4
        assert row.top1_agreement == 1
        assert row.peak_memory_mb > 0


@pytest.mark.slow
def test_every_session_of_a_network_is_measured(tmp_path, capsys):
    table = tmp_path / "sessions.csv"
    flags = ["--rounds", "3", "--wait-s", "0", "--image-size", "96", "--json", "--csv", str(table)]
    assert main(["bench", "sessions", *flags]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["session"] for record in records] == list(SESSIONS)
    by_name = {record["session"]: record for record in records}
    assert by_name["openvino"]["relative_error"] < 1e-4 < by_name["openvino-int8"]["relative_error"]
    assert by_name["openvino-bf16"]["relative_error"] is None or by_name["openvino-bf16"]["relative_error"] > 1e-4
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert [line["session"] for line in lines] == list(SESSIONS)
    assert lines[0]["machine"]


def test_comparison_reports_relative_error_and_agreement():
    row = Row(network="van_b0", session="openvino", image_size=64)
    images = torch.eye(4)[:, None, None]
    right = images.flatten(1)
    true = sessions._compare_with_pytorch(row, lambda image: image.flatten(1), images, right, 10**6)
    assert (true.relative_error, true.top1_agreement, true.peak_memory_mb) == (0, 1, 1)
    wrong = sessions._compare_with_pytorch(row, lambda image: -image.flatten(1), images, right, None)
    assert (wrong.relative_error, wrong.top1_agreement, wrong.peak_memory_mb) == (2, 0, None)


def test_unavailable_session_does_not_affect_others(monkeypatch):
    make_opener = sessions._make_opener

    def opener(session, *arguments):
        if session == "onnxruntime":
            raise MissingExtra("onnxruntime", "export", "measuring")
        return make_opener(session, *arguments)

    monkeypatch.setattr(sessions, "_make_opener", opener)
    config = BenchmarkConfig(threads=1, rounds=1, image_size=64, wait_s=0, sessions=("onnxruntime", "pytorch"))
    missing, present = measure(["van_b0"], config)
    assert "pip install" in missing.reason
    assert (missing.outcome, missing.p50_ms) == ("unavailable", None)
    assert present.p50_ms > 0


SPIN = "while True: pass"


def spin(until: float) -> None:
    while time.time() < until:
        pass


def test_cpu_usage_counts_only_other_processes():
    if sessions._read_busy_s() is None:
        pytest.skip("this system does not record CPU usage")
    _, cores = sessions._read_busy_s()
    fractions = []
    for num_processes in (0, 1):
        until = time.time() + 0.8
        started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(num_processes)]
        with sessions._measure_cpu_usage() as usage:
            spin(until)
        for one in started:
            one.kill()
            one.wait()
        fractions.append(usage.other_fraction)
    own = 1 / cores
    assert fractions[1] > 0.2 * own  # it may have to share its core
    assert all(0 <= fraction <= 1 for fraction in fractions)


def test_table_warns_about_noise():
    quiet = Row(
        network="van_b0", session="pytorch", image_size=224, top1_agreement=1.0, other_cpu_fraction=0.02, **VALUES
    )
    noisy = Row(
        network="van_b0", session="openvino", image_size=224, top1_agreement=0.5, other_cpu_fraction=0.4, **VALUES
    )
    missing = Row(network="van_b0", session="onnxruntime", image_size=224, reason="it is not installed")
    title, _, head, line, last = format_table([quiet, missing], "a machine", 2).splitlines()
    assert title.startswith("a machine, 2 threads")
    titles = "network session p50 ms p99 ms images/s memory MB error top-1 agreement other CPU"
    assert head.split() == titles.split()
    assert line.split() == ["van_b0", "pytorch", "5.00", "7.50", "200.0", "40", "1.0e-06", "100.0%", "2%"]
    assert last.endswith("it is not installed")
    assert format_table([quiet, noisy], "a machine", 1).splitlines()[-1].startswith("noisy:")


@pytest.mark.parametrize("names", [["swin_tiny"], ["van_b9"]])
def test_networks_other_than_van_raise_usage_error(names):
    with pytest.raises(UsageError, match=f"van_b0.*{names[0]}"):
        measure(names, QUICK)


def test_command_rejects_invalid_values(capsys):
    assert main(["bench", "sessions", "--rounds", "0"]) == 2
    error = capsys.readouterr().err
    assert "--rounds" in error
    assert "0" in error
    assert main(["bench", "sessions", "--sessions", "tensorrt"]) == 2
    assert "tensorrt" in capsys.readouterr().err
    assert main(["bench", "sessions", "--wait-s", "-1"]) == 2
