"""Sessions on one network are compared with PyTorch before they are timed, and a noisy machine is owned up to."""

import csv
import json
import subprocess
import sys
import time

import pytest
import torch

from van.bench import sessions
from van.bench.sessions import SESSIONS, Row, Terms, measure, table_of
from van.cli.main import main
from van.errors import MissingExtra, UsageError

QUICK = Terms(threads=1, rounds=2, size_px=64, wait_s=0)
FIGURES = {"p50_ms": 5.0, "p99_ms": 7.5, "images_per_s": 200.0, "peak_memory_mb": 40.0, "difference": 1e-6}


def test_pytorch_and_an_exported_file_are_measured_and_agree():
    asked = Terms(threads=1, rounds=2, size_px=64, wait_s=0, sessions=("pytorch", "onnxruntime"))
    rows = measure(["van_b0"], asked)
    assert [row.session for row in rows] == list(asked.sessions)
    for row in rows:
        assert row.reason == ""
        assert 0 < row.p50_ms <= row.p99_ms
        assert 0 < row.images_per_s <= 2e3 / row.p50_ms
        assert row.difference < 1e-4
        assert row.agreement == 1
        assert row.peak_memory_mb > 0


@pytest.mark.slow
def test_every_session_of_a_network_is_measured(tmp_path, capsys):
    table = tmp_path / "sessions.csv"
    flags = ["--rounds", "3", "--wait-s", "0", "--size-px", "96", "--json", "--csv", str(table)]
    assert main(["bench", "sessions", *flags]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["session"] for record in records] == list(SESSIONS)
    by_name = {record["session"]: record for record in records}
    assert by_name["openvino"]["difference"] < 1e-4 < by_name["openvino-int8"]["difference"]
    assert by_name["openvino-bf16"]["difference"] is None or by_name["openvino-bf16"]["difference"] > 1e-4
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert [line["session"] for line in lines] == list(SESSIONS)
    assert lines[0]["machine"]


def test_a_session_that_answers_wrong_shows_it():
    row = Row(network="van_b0", session="openvino", size_px=64)
    pictures = torch.eye(4)[:, None, None]
    right = pictures.flatten(1)
    true = sessions._compared(row, lambda picture: picture.flatten(1), pictures, right, 10**6)
    assert (true.difference, true.agreement, true.peak_memory_mb) == (0, 1, 1)
    wrong = sessions._compared(row, lambda picture: -picture.flatten(1), pictures, right, None)
    assert (wrong.difference, wrong.agreement, wrong.peak_memory_mb) == (2, 0, None)


def test_one_session_that_is_missing_leaves_the_others(monkeypatch):
    whole = sessions._opener

    def opener(session, *others):
        if session == "onnxruntime":
            raise MissingExtra("onnxruntime", "export", "measuring")
        return whole(session, *others)

    monkeypatch.setattr(sessions, "_opener", opener)
    asked = Terms(threads=1, rounds=1, size_px=64, wait_s=0, sessions=("onnxruntime", "pytorch"))
    missing, present = measure(["van_b0"], asked)
    assert "pip install" in missing.reason
    assert (missing.outcome, missing.p50_ms) == ("not here", None)
    assert present.p50_ms > 0


SPIN = "while True: pass"


def spin(until: float) -> None:
    while time.time() < until:
        pass


def test_what_other_processes_use_is_counted_and_our_own_work_is_not():
    if sessions._busy_s() is None:
        pytest.skip("this system does not count")
    _, cores = sessions._busy_s()
    shares = []
    for strangers in (0, 1):
        until = time.time() + 0.8
        started = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(strangers)]
        with sessions._watched() as watch:
            spin(until)
        for one in started:
            one.kill()
            one.wait()
        shares.append(watch.others)
    own = 1 / cores
    assert shares[1] > 0.2 * own  # it may have to share its core
    assert all(0 <= share <= 1 for share in shares)


def test_noise_is_told_under_the_table():
    quiet = Row(network="van_b0", session="pytorch", size_px=224, agreement=1.0, others_share=0.02, **FIGURES)
    noisy = Row(network="van_b0", session="openvino", size_px=224, agreement=0.5, others_share=0.4, **FIGURES)
    gone = Row(network="van_b0", session="onnxruntime", size_px=224, reason="it is not installed")
    title, _, head, line, last = table_of([quiet, gone], "a machine", 2).splitlines()
    assert title == "a machine, 2 threads, one picture at a time"
    assert head.split() == ["network", "session", "p50", "ms", "p99", "ms", "img/s", "MB", "error", "agree", "others"]
    assert line.split() == ["van_b0", "pytorch", "5.00", "7.50", "200.0", "40", "1.0e-06", "100.0%", "2%"]
    assert last.endswith("it is not installed")
    assert table_of([quiet, noisy], "a machine", 1).splitlines()[-1].startswith("noisy: others used more than 10%")


@pytest.mark.parametrize("names", [["swin_tiny"], ["van_b9"]])
def test_only_vans_have_sessions(names):
    with pytest.raises(UsageError, match="there is no VAN"):
        measure(names, QUICK)


def test_the_command_refuses_bad_values(capsys):
    assert main(["bench", "sessions", "--rounds", "0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
    assert main(["bench", "sessions", "--sessions", "tensorrt"]) == 2
    assert "no session tensorrt" in capsys.readouterr().err
    assert main(["bench", "sessions", "--wait-s", "-1"]) == 2
