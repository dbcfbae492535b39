"""Every backend is compared with the definition before its speed is told."""

import pytest
import torch

from van.bench import operators
from van.ops import BACKENDS, native


@pytest.fixture(autouse=True)
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "STAGES", ((6, 11), (5, 4)))


def test_every_backend_is_measured_on_every_operator_both_ways():
    rows = list(operators.measure(batch_size=2, rounds=2))
    seen = {(row.operator, row.shape, row.backend, row.direction) for row in rows}
    assert len(seen) == len(rows) == len(operators.OPERATORS) * 2 * len(BACKENDS) * 2
    for row in rows:
        assert (row.time is not None) == (row.backend != "cpu" or native.why_not() is None)
        if row.time is not None:
            assert row.error is not None
            assert row.error <= operators.TOLERANCE
            assert row.time.median_ms > 0
        if row.backend == "reference":
            assert row.speed_up == 1.0


def test_a_backend_that_answers_wrong_gets_no_speed(monkeypatch: pytest.MonkeyPatch):
    """A tap moved by one is fast and wrong."""
    right = operators._DEPTHWISE["phases"]
    moved = {"phases": lambda x, kernel: right(x, kernel._replace(weight=kernel.weight.roll(1, dims=3)))}
    monkeypatch.setattr(operators, "_DEPTHWISE", operators._DEPTHWISE | moved)
    rows = [row for row in operators.measure(rounds=1) if row.operator == "dilated 7x7" and row.backend == "phases"]
    assert rows
    for row in rows:
        assert row.time is None
        assert row.speed_up is None
        assert row.error is not None
        assert row.error > operators.TOLERANCE
        assert "wrong" in row.reason


def test_measuring_leaves_no_gradients_behind():
    before = torch.is_grad_enabled()
    list(operators.measure(rounds=1))
    assert torch.is_grad_enabled() == before
