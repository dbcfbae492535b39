"""Operator benchmark: every backend is verified against the reference before timing."""

from collections.abc import Callable

import pytest
import torch

from van.bench import operators
from van.ops import BACKENDS, native, space_to_batch


@pytest.fixture(autouse=True)
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STAGES", ((6, 11, 2.0), (5, 4, 1.0)))


def can_serve(backend: str, operator: str) -> bool:
    """Return whether a backend supports an operator on a CPU, independently of ``can_run``."""
    if backend == "space_to_batch":
        return operator != "3x3 + gelu"  # nothing in it is dilated
    return backend == "reference" or (backend == "cpu" and native.unavailable_reason() is None)


def test_every_backend_is_measured_on_every_operator_in_both_directions():
    rows = list(operators.measure(batch_size=2, rounds=2))
    combinations = {(row.operator, row.shape, row.backend, row.direction) for row in rows}
    assert len(combinations) == len(rows) == len(operators.OPERATORS) * 2 * len(BACKENDS) * 2
    for row in rows:
        assert (row.time is not None) == can_serve(row.backend, row.operator)
        assert row.reason
        if row.time is not None:
            assert row.error is not None
            assert row.error <= operators.TOLERANCE / 5
            assert row.time.median_ms > 0
        if row.backend == "reference":
            assert row.speedup == 1.0


def test_feed_forward_operator_uses_its_own_channel_count():
    shapes = {row.operator: row.shape for row in operators.measure(rounds=1) if row.shape[2] == 11}
    assert shapes["3x3 + gelu"] == (1, 12, 11, 11)
    assert shapes["lka"] == shapes["lka pair"] == shapes["dilated 7x7"] == (1, 6, 11, 11)


def assert_not_timed(rows: list[operators.Row]) -> None:
    assert rows
    for row in rows:
        assert (row.time, row.speedup) == (None, None)
        assert row.error is not None
        assert row.error > operators.TOLERANCE
        assert f"{row.error:.1e}" in row.reason


def test_backend_with_incorrect_outputs_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    """Weights shifted by one column give incorrect outputs."""
    right = space_to_batch.depthwise_space_to_batch
    moved = lambda x, kernel: right(x, kernel._replace(weight=kernel.weight.roll(1, dims=3)))  # noqa: E731
    monkeypatch.setattr(space_to_batch, "depthwise_space_to_batch", moved)
    rows = [row for row in operators.measure(rounds=1) if row.operator == "dilated 7x7"]
    assert_not_timed([row for row in rows if row.backend == "space_to_batch"])
    assert all(row.time is not None for row in rows if row.backend == "reference")


class _Mirrored(torch.autograd.Function):
    """The identity in forward; mirrors the gradient in backward."""

    @staticmethod
    def forward(_, weight):
        return weight.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient.flip(2, 3)


def test_backend_with_incorrect_gradients_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    """With a constant upstream gradient this error would be visible only at the border."""
    right: Callable = space_to_batch.depthwise_space_to_batch
    mirrored = lambda x, kernel: right(x, kernel._replace(weight=_Mirrored.apply(kernel.weight)))  # noqa: E731
    monkeypatch.setattr(space_to_batch, "depthwise_space_to_batch", mirrored)
    rows = list(operators.measure(rounds=1))
    assert_not_timed([row for row in rows if row.backend == "space_to_batch" and row.operator == "dilated 7x7"])


def test_measure_preserves_the_grad_mode():
    before = torch.is_grad_enabled()
    list(operators.measure(rounds=1))
    assert torch.is_grad_enabled() == before


def test_to_dict_is_flat():
    row = next(row for row in operators.measure(rounds=1) if row.backend == "reference")
    record = row.to_dict()
    assert record["shape"] == [1, 6, 11, 11]
    assert (record["median_ms"], record["iqr_ms"]) == (row.time.median_ms, row.time.iqr_ms)
    unmeasured = operators.Row(
        operator="lka", shape=(1, 2, 3, 4), backend="triton", direction="forward", error=None, time=None, speedup=None,
        peak_fraction=None,
        reason="x is on cpu",
    )  # fmt: skip
    assert unmeasured.to_dict()["median_ms"] is None


@pytest.mark.gpu
def test_triton_runs_on_a_gpu():
    rows = list(operators.measure(rounds=1, device=torch.device("cuda")))
    measured = {row.backend for row in rows if row.time is not None}
    assert {"triton", "reference"} <= measured
    assert "cpu" not in measured
