"""The digits learnt with the fast operators and with the definition: the same losses on the way, the same accuracy."""

import dataclasses
import json
from pathlib import Path

import pytest

from van.ops import use_backend
from van.recipes.digits import DigitsSettings, run

SHORT = dataclasses.replace(
    DigitsSettings(out=Path()).train, epochs=1, batch_size=128, warmup_epochs=0, device="cpu", log_every=1
)
LOSS = 2e-3  # relative: float32's rounding, after eleven updates at most a tenth of it
TOP1 = 0.02  # seven of the 364 held-out digits: those on the edge fall by rounding, more so with every epoch


def learn(out: Path, backend: str, *, size_px: int = 16, **more) -> tuple[list[float], float]:
    """The loss of every update, and top-1 at the end."""
    with use_backend(backend):
        summary = run(DigitsSettings(out=out, size_px=size_px, train=dataclasses.replace(SHORT, **more)))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"], summary.metrics["top1"]


def largest_difference(found: list[float], wanted: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(found, wanted, strict=True))


@pytest.mark.slow
def test_an_epoch_has_the_same_losses_and_accuracy_by_either_backend(tmp_path):
    losses, top1 = learn(tmp_path / "fast", "auto")
    wanted, wanted_top1 = learn(tmp_path / "slow", "reference")
    assert len(losses) == 1433 // 128
    assert losses[-1] < 0.8 * losses[0]
    assert largest_difference(losses, wanted) < LOSS
    assert abs(top1 - wanted_top1) <= TOP1
    other, _ = learn(tmp_path / "other", "auto", seed=1)  # the control: another start is told apart
    assert largest_difference(other, wanted) > 10 * LOSS


@pytest.mark.slow
def test_three_epochs_reach_the_same_accuracy_by_either_backend(tmp_path):
    (_, top1), (_, wanted) = (learn(tmp_path / name, name, size_px=32, epochs=3) for name in ("auto", "reference"))
    assert wanted > 0.85
    assert abs(top1 - wanted) <= TOP1
