"""Every backend is compared with the definition before its speed is told."""

from collections.abc import Callable

import pytest
import torch

from van.bench import operators
from van.ops import BACKENDS, native, phases


@pytest.fixture(autouse=True)
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STAGES", ((6, 11, 2.0), (5, 4, 1.0)))


def can_serve(backend: str, operator: str) -> bool:
    """What is known of the backends without asking them, on a CPU."""
    if backend == "phases":
        return operator != "3x3 + gelu"  # nothing in it is dilated
    return backend == "reference" or (backend == "cpu" and native.why_not() is None)


def test_every_backend_is_measured_on_every_operator_both_ways():
    rows = list(operators.measure(batch_size=2, rounds=2))
    seen = {(row.operator, row.shape, row.backend, row.direction) for row in rows}
    assert len(seen) == len(rows) == len(operators.OPERATORS) * 2 * len(BACKENDS) * 2
    for row in rows:
        assert (row.time is not None) == can_serve(row.backend, row.operator)
        assert row.reason
        if row.time is not None:
            assert row.error is not None
            assert row.error <= operators.TOLERANCE / 5
            assert row.time.median_ms > 0
        if row.backend == "reference":
            assert row.speed_up == 1.0


def test_the_feed_forward_operator_is_measured_on_its_own_width():
    shapes = {row.operator: row.shape for row in operators.measure(rounds=1) if row.shape[2] == 11}
    assert shapes["3x3 + gelu"] == (1, 12, 11, 11)
    assert shapes["lka"] == shapes["lka pair"] == shapes["dilated 7x7"] == (1, 6, 11, 11)


def assert_no_speed(rows: list[operators.Row]) -> None:
    assert rows
    for row in rows:
        assert (row.time, row.speed_up) == (None, None)
        assert row.error is not None
        assert row.error > operators.TOLERANCE
        assert row.reason == "its answer is wrong, so no speed is told"


def test_a_backend_that_answers_wrong_gets_no_speed(monkeypatch: pytest.MonkeyPatch):
    """A tap moved by one is fast and wrong."""
    right = phases.depthwise_by_phases
    moved = lambda x, kernel: right(x, kernel._replace(weight=kernel.weight.roll(1, dims=3)))  # noqa: E731
    monkeypatch.setattr(phases, "depthwise_by_phases", moved)
    rows = [row for row in operators.measure(rounds=1) if row.operator == "dilated 7x7"]
    assert_no_speed([row for row in rows if row.backend == "phases"])
    assert all(row.time is not None for row in rows if row.backend == "reference")


class _Mirrored(torch.autograd.Function):
    """Weights as they are on the way forward; on the way back their gradient is that of the mirror image."""

    @staticmethod
    def forward(_, weight):
        return weight.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient.flip(2, 3)


def test_a_backend_whose_gradients_alone_are_wrong_gets_no_speed(monkeypatch: pytest.MonkeyPatch):
    """Under a constant gradient of the output this mistake would show at the border at most."""
    right: Callable = phases.depthwise_by_phases
    mirrored = lambda x, kernel: right(x, kernel._replace(weight=_Mirrored.apply(kernel.weight)))  # noqa: E731
    monkeypatch.setattr(phases, "depthwise_by_phases", mirrored)
    rows = list(operators.measure(rounds=1))
    assert_no_speed([row for row in rows if row.backend == "phases" and row.operator == "dilated 7x7"])


def test_measuring_leaves_no_gradients_behind():
    before = torch.is_grad_enabled()
    list(operators.measure(rounds=1))
    assert torch.is_grad_enabled() == before


def test_a_record_is_flat():
    row = next(row for row in operators.measure(rounds=1) if row.backend == "reference")
    record = row.record()
    assert record["shape"] == [1, 6, 11, 11]
    assert (record["median_ms"], record["iqr_ms"]) == (row.time.median_ms, row.time.iqr_ms)
    unmeasured = operators.Row(
        operator="lka", shape=(1, 2, 3, 4), backend="triton", direction="forward", error=None, time=None, speed_up=None,
        peak_share=None,
        reason="x is on cpu",
    )  # fmt: skip
    assert unmeasured.record()["median_ms"] is None


@pytest.mark.gpu
def test_a_gpu_has_backends_of_its_own():
    rows = list(operators.measure(rounds=1, device=torch.device("cuda")))
    measured = {row.backend for row in rows if row.time is not None}
    assert {"triton", "reference"} <= measured
    assert "cpu" not in measured
