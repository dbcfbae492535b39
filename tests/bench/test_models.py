"""Network benchmark: outputs are verified before timing; incorrect and failing rows are not timed."""

import dataclasses
import sys
from collections.abc import Callable

import pytest
import torch

from van.bench import models
from van.bench.machine import Machine
from van.bench.models import TOLERANCE, BenchmarkConfig, describe_case, measure
from van.bench.rows import Case, Row
from van.bench.timing import Timing
from van.weights.published import VARIANTS

TIMED_FIELDS = ("latency", "batch", "step", "roofline_fraction", "images_per_s", "training_images_per_s")


@pytest.fixture(autouse=True)
def fixed_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the peaks of the machine, which take a second and 512 MiB to measure."""
    peaks = {"flops_per_s": 1e11, "bytes_per_s": 1e10}
    monkeypatch.setattr(
        models, "measure_machine", lambda _, threads: Machine(name="a machine", threads=threads, **peaks)
    )


def cases(*backends: str, batch_size: int = 2, image_size: int = 64) -> list[Case]:
    return [
        Case(network="van_b0", backend=backend, batch_size=batch_size, image_size=image_size) for backend in backends
    ]


def measure_rows(expected: list[Case], **config: object) -> list[Row]:
    return measure(expected, BenchmarkConfig(rounds=1, **config))[1]


def replace_calls(backend: str, change: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apply ``change`` to the bound call of a backend."""
    prepare = models.prepare

    def other(name, benchmark_model, **config):
        runner = prepare(name, benchmark_model, **config)
        return (lambda images: change(runner(images))) if name == backend else runner

    monkeypatch.setattr(models, "prepare", other)


def is_not_timed(row: Row) -> bool:
    return all(getattr(row, name) is None for name in TIMED_FIELDS)


def test_rows_contain_the_requested_measurements():
    van, reference = measure_rows(cases("van", "reference"), train=True)
    for row in (van, reference):
        assert row.outcome == "measured"
        assert row.reason == ""
        assert row.error is not None
        assert row.error <= TOLERANCE
        assert row.gradient_error is not None
        assert row.gradient_error <= 1e-4
        assert row.cost is not None
        assert row.cost.parameters == VARIANTS["van_b0"].parameters
        assert all(getattr(row, measurement).median_ms > 0 for measurement in models.MEASUREMENTS)
        assert row.images_per_s == pytest.approx(2000 / row.batch.median_ms)
        assert row.training_images_per_s == pytest.approx(2000 / row.step.median_ms)
        assert row.peak_memory_bytes is not None
        assert 0 <= row.peak_memory_bytes < 1e9  # 0 if the process reuses freed memory
        assert row.top1 is None  # published for 224 px, this is 64
    assert measure_rows(cases("van"), latency=False)[0].latency is None
    assert measure_rows(cases("van"))[0].step is None


def test_roofline_fraction_is_roofline_time_over_measured_time():
    (row,) = measure_rows(cases("reference"))
    roofline_s = max(2 * row.cost.macs / 1e11, row.cost.bytes_moved / 1e10)
    assert row.roofline_fraction == pytest.approx(1e3 * roofline_s / row.batch.median_ms)


def test_roofline_fraction_of_this_machine_is_between_0_and_1(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    machine, rows = measure(cases("van", "reference", batch_size=4), BenchmarkConfig(rounds=3))
    assert machine.flops_per_s > 1e9
    assert all(0 < row.roofline_fraction <= 1.2 for row in rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda call: lambda: call() * 1.001,
        lambda call: lambda: call().bfloat16(),
        lambda call: lambda: call() * torch.nan,
    ],
    ids=["relative error 1e-3", "bfloat16", "NaN"],
)
def test_backends_with_incorrect_outputs_are_not_timed(change, monkeypatch):
    """The unchanged reference backend is the control."""
    replace_calls("van", change, monkeypatch)
    wrong, right = measure_rows(cases("van", "reference"), train=True)
    assert wrong.outcome == "incorrect"
    assert "logits" in wrong.reason
    assert is_not_timed(wrong)
    assert right.outcome == "measured"
    assert not is_not_timed(right)


def test_outputs_incorrect_only_at_batch_size_1_are_detected(monkeypatch):
    def alone(call: Callable) -> Callable:
        return lambda: call() * (1.01 if len(call()) == 1 else 1)

    replace_calls("van", alone, monkeypatch)
    (row,) = measure_rows(cases("van"))
    assert (row.outcome, is_not_timed(row)) == ("incorrect", True)
    assert measure_rows(cases("van"), latency=False)[0].outcome == "measured"


def test_backends_with_incorrect_gradients_are_not_timed(monkeypatch):
    monkeypatch.setattr(models.TrainingBenchmark, "gradient_error", lambda _: 0.01)
    (row,) = measure_rows(cases("van"), train=True)
    assert (row.outcome, row.gradient_error, is_not_timed(row)) == ("incorrect", 0.01, True)
    assert "gradients" in row.reason
    assert "1.0e-02" in row.reason


def test_failing_backend_reports_its_reason_and_others_are_measured(monkeypatch):
    def fail(_: Callable) -> Callable:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmany more lines")

    messages: list[str] = []
    replace_calls("van", fail, monkeypatch)
    failed, right = measure_rows(cases("van", "reference"), log=messages.append)
    assert (failed.outcome, failed.reason) == ("failed", "OutOfMemoryError: CUDA out of memory.")
    assert is_not_timed(failed)
    assert right.outcome == "measured"
    assert f"{describe_case(failed.case)}: failed: {failed.reason}" in messages


def test_failure_during_timing_is_reported(monkeypatch):
    calls = []

    def later(call: Callable) -> Callable:
        def other():
            calls.append(1)
            if len(calls) > 4:
                raise RuntimeError("simulated failure")
            return call()

        return other

    replace_calls("van", later, monkeypatch)
    failed, right = measure_rows(cases("van", "reference"))
    assert (failed.outcome, failed.reason, is_not_timed(failed)) == ("failed", "RuntimeError: simulated failure", True)
    assert right.outcome == "measured"


def test_missing_package_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = measure_rows(cases("onnxruntime", "openvino", "reference"))
    assert [row.outcome for row in rows] == ["unavailable", "unavailable", "measured"]
    assert all("visual-attention-network[export]" in row.reason for row in rows[:2])
    assert all(is_not_timed(row) for row in rows[:2])


def test_failing_training_step_rejects_only_its_row():
    """BatchNorm cannot be trained on a single value per channel, the size of the last stage at 32 x 32 pixels."""
    one, two = (Case(network="van_b0", backend="van", batch_size=count, image_size=32) for count in (1, 2))
    failed, right = measure_rows([one, two], train=True)
    assert (failed.outcome, is_not_timed(failed)) == ("failed", True)
    assert "Expected more than 1 value per channel" in failed.reason
    assert right.outcome == "measured"


def test_batch_size_1_has_latency_and_throughput():
    (row,) = measure_rows(cases("van", batch_size=1))
    assert row.latency is not None
    assert row.batch is not None
    assert row.images_per_s == pytest.approx(1000 / row.batch.median_ms)


def test_no_cases_give_no_rows():
    assert measure_rows([]) == []


def test_top1_is_reported_only_for_the_published_configuration():
    published = Case(network="van_b0", backend="van", batch_size=1)
    assert Row(case=published).top1 == 75.4
    assert Row(case=dataclasses.replace(published, image_size=256)).top1 is None
    assert Row(case=dataclasses.replace(published, kernel_size=35)).top1 is None
    assert Row(case=dataclasses.replace(published, network="van_b5")).top1 is None


def test_to_dict_is_flat_with_throughput_and_fractions():
    case = Case(network="van_b0", backend="van", batch_size=4)
    row = Row(case=case, batch=Timing(200.0, 3.0), step=Timing(500.0, 7.0), peak_memory_bytes=2_500_000)
    record = row.to_dict()
    assert record["images_per_s"] == 20
    assert record["training_images_per_s"] == 8
    assert record["peak_memory_mb"] == 2.5
    assert record["top1_published"] == pytest.approx(0.754)
    assert (record["batch_ms"], record["batch_iqr_ms"], record["latency_ms"]) == (200, 3, None)
    assert all(value is None or isinstance(value, str | int | float) for value in record.values())


def test_progress_is_logged():
    messages: list[str] = []
    measure_rows(cases("van"), log=messages.append)
    assert [message.split()[0] for message in messages] == ["measuring", "preparing", "timing", "timing"]
    assert "1 of 1: van_b0 van, batch 2, 64 px" in messages[1]
    assert all("round 1 of 1" in message for message in messages[2:])
