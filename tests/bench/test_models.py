"""Networks are checked before they are timed; what is wrong or fails gets no speed, and the others go on."""

import dataclasses
import sys
from collections.abc import Callable

import pytest
import torch

from van.bench import models
from van.bench.machine import Machine
from van.bench.models import TOLERANCE, Terms, describe, measure
from van.bench.rows import Case, Row
from van.bench.timing import Timing
from van.models.catalogue import VARIANTS

SPEEDS = ("latency", "batch", "step", "roofline_share", "images_per_s", "training_images_per_s")


@pytest.fixture(autouse=True)
def known_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own take a second and half a gigabyte; they are measured once below."""
    peaks = {"flops_per_s": 1e11, "bytes_per_s": 1e10}
    monkeypatch.setattr(models, "survey", lambda _, threads: Machine(name="a machine", threads=threads, **peaks))


def cases(*ways: str, batch_size: int = 2, size_px: int = 64) -> list[Case]:
    return [Case(network="van_b0", way=way, batch_size=batch_size, size_px=size_px) for way in ways]


def rows_of(wanted: list[Case], **terms: object) -> list[Row]:
    return measure(wanted, Terms(rounds=1, **terms))[1]


def tampered(way: str, change: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``change`` have the call that answers on that way."""
    prepare = models.prepare

    def other(name, subject, **terms):
        runner = prepare(name, subject, **terms)
        return (lambda pictures: change(runner(pictures))) if name == way else runner

    monkeypatch.setattr(models, "prepare", other)


def has_no_speed(row: Row) -> bool:
    return all(getattr(row, name) is None for name in SPEEDS)


def test_a_row_holds_what_was_asked_for():
    van, reference = rows_of(cases("van", "reference"), train=True)
    for row in (van, reference):
        assert row.outcome == "measured"
        assert row.reason == ""
        assert row.error is not None
        assert row.error <= TOLERANCE
        assert row.gradient_error is not None
        assert row.gradient_error <= 1e-4
        assert row.cost is not None
        assert row.cost.parameters == VARIANTS["van_b0"].parameters
        assert all(getattr(row, part).median_ms > 0 for part in models.PARTS)
        assert row.images_per_s == pytest.approx(2000 / row.batch.median_ms)
        assert row.training_images_per_s == pytest.approx(2000 / row.step.median_ms)
        assert row.peak_memory_bytes is not None
        assert 0 <= row.peak_memory_bytes < 1e9  # a process that has kept memory before takes little more
        assert row.top1 is None  # published for 224 px, this is 64
    assert rows_of(cases("van"), latency=False)[0].latency is None
    assert rows_of(cases("van"))[0].step is None


def test_the_share_of_the_roofline_is_the_least_time_over_the_time():
    (row,) = rows_of(cases("reference"))
    least_s = max(2 * row.cost.macs / 1e11, row.cost.bytes_moved / 1e10)
    assert row.roofline_share == pytest.approx(1e3 * least_s / row.batch.median_ms)


def test_a_share_of_this_machine_s_own_roofline_is_a_share(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    machine, rows = measure(cases("van", "reference", batch_size=4), Terms(rounds=3))
    assert machine.flops_per_s > 1e9
    assert all(0 < row.roofline_share <= 1.2 for row in rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda call: lambda: call() * 1.001,
        lambda call: lambda: call().bfloat16(),
        lambda call: lambda: call() * torch.nan,
    ],
    ids=["a thousandth off", "in bfloat16", "no number"],
)
def test_a_way_that_answers_wrong_gets_no_speed(change, monkeypatch):
    """The reference beside it, untouched, is the control."""
    tampered("van", change, monkeypatch)
    wrong, right = rows_of(cases("van", "reference"), train=True)
    assert wrong.outcome == "wrong"
    assert "its answer is off by" in wrong.reason
    assert has_no_speed(wrong)
    assert right.outcome == "measured"
    assert not has_no_speed(right)


def test_an_answer_that_is_wrong_for_one_picture_only_is_seen(monkeypatch):
    def alone(call: Callable) -> Callable:
        return lambda: call() * (1.01 if len(call()) == 1 else 1)

    tampered("van", alone, monkeypatch)
    (row,) = rows_of(cases("van"))
    assert (row.outcome, has_no_speed(row)) == ("wrong", True)
    assert rows_of(cases("van"), latency=False)[0].outcome == "measured"


def test_wrong_gradients_get_no_speed(monkeypatch):
    monkeypatch.setattr(models.Trainee, "gradient_error", lambda _: 0.01)
    (row,) = rows_of(cases("van"), train=True)
    assert (row.outcome, row.gradient_error, has_no_speed(row)) == ("wrong", 0.01, True)
    assert "its gradients are off by 1.0e-02" in row.reason


def test_a_way_that_fails_says_why_and_the_others_go_on(monkeypatch):
    def fail(_: Callable) -> Callable:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmany more lines")

    said: list[str] = []
    tampered("van", fail, monkeypatch)
    failed, right = rows_of(cases("van", "reference"), say=said.append)
    assert (failed.outcome, failed.reason) == ("failed", "OutOfMemoryError: CUDA out of memory.")
    assert has_no_speed(failed)
    assert right.outcome == "measured"
    assert f"{describe(failed.case)}: failed: {failed.reason}" in said


def test_a_way_that_fails_while_it_is_timed_says_so(monkeypatch):
    calls = []

    def later(call: Callable) -> Callable:
        def other():
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError("out of breath")
            return call()

        return other

    tampered("van", later, monkeypatch)
    failed, right = rows_of(cases("van", "reference"))
    assert (failed.outcome, failed.reason, has_no_speed(failed)) == ("failed", "RuntimeError: out of breath", True)
    assert right.outcome == "measured"


def test_a_package_that_is_not_installed_is_told_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = rows_of(cases("onnxruntime", "openvino", "reference"))
    assert [row.outcome for row in rows] == ["not installed", "not installed", "measured"]
    assert all("visual-attention-network[export]" in row.reason for row in rows[:2])
    assert all(has_no_speed(row) for row in rows[:2])


def test_a_step_that_cannot_be_made_ends_its_row_alone():
    """BatchNorm cannot be trained on a single pixel, which is what is left of 32 x 32 in the last stage."""
    one, two = (Case(network="van_b0", way="van", batch_size=count, size_px=32) for count in (1, 2))
    failed, right = rows_of([one, two], train=True)
    assert (failed.outcome, has_no_speed(failed)) == ("failed", True)
    assert "Expected more than 1 value per channel" in failed.reason
    assert right.outcome == "measured"


def test_one_picture_is_its_own_batch():
    (row,) = rows_of(cases("van", batch_size=1))
    assert row.latency is not None
    assert row.batch is not None
    assert row.images_per_s == pytest.approx(1000 / row.batch.median_ms)


def test_nothing_to_measure_is_an_empty_table():
    assert rows_of([]) == []


def test_published_top1_stands_only_beside_what_was_published():
    home = Case(network="van_b0", way="van", batch_size=1)
    assert Row(case=home).top1 == 75.4
    assert Row(case=dataclasses.replace(home, size_px=256)).top1 is None
    assert Row(case=dataclasses.replace(home, kernel_size=35)).top1 is None
    assert Row(case=dataclasses.replace(home, network="van_b5")).top1 is None


def test_a_record_is_flat_with_rates_and_fractions():
    case = Case(network="van_b0", way="van", batch_size=4)
    row = Row(case=case, batch=Timing(200.0, 3.0), step=Timing(500.0, 7.0), peak_memory_bytes=2_500_000)
    record = row.record()
    assert record["images_per_s"] == 20
    assert record["training_images_per_s"] == 8
    assert record["peak_memory_mb"] == 2.5
    assert record["top1_published"] == pytest.approx(0.754)
    assert (record["batch_ms"], record["batch_iqr_ms"], record["latency_ms"]) == (200, 3, None)
    assert all(value is None or isinstance(value, str | int | float) for value in record.values())


def test_what_is_going_on_is_said():
    said: list[str] = []
    rows_of(cases("van"), say=said.append)
    assert said == [
        "how fast this machine computes and copies at all",
        "preparing 1 of 1: van_b0 van, batch 2, 64 px",
        "timing one picture, 1 rows: round 1 of 1",
        "timing the batch, 1 rows: round 1 of 1",
    ]
