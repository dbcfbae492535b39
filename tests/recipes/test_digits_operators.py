"""Training on digits with the fast operators and with the reference: the same losses and the same accuracy."""

import dataclasses
import json
from pathlib import Path

import pytest

from van.ops import use_backend
from van.recipes.digits import DigitsSettings, run

SHORT = dataclasses.replace(
    DigitsSettings(out=Path()).train, epochs=1, batch_size=128, warmup_epochs=0, device="cpu", log_every=1
)
LOSS = 2e-3  # relative; float32 rounding accounts for at most a tenth of it after eleven updates
TOP1 = 0.02  # seven of 364 validation digits; borderline digits change by rounding, and more with every epoch


def train(out: Path, backend: str, *, image_size: int = 16, **more) -> tuple[list[float], float]:
    """Train and return the loss of every update and the final top-1 accuracy."""
    with use_backend(backend):
        summary = run(DigitsSettings(out=out, image_size=image_size, train=dataclasses.replace(SHORT, **more)))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"], summary.metrics["top1"]


def largest_difference(losses: list[float], expected: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(losses, expected, strict=True))


@pytest.mark.slow
def test_one_epoch_has_the_same_losses_and_accuracy_with_both_backends(tmp_path):
    losses, top1 = train(tmp_path / "fast", "auto")
    expected, expected_top1 = train(tmp_path / "slow", "reference")
    assert len(losses) == 1433 // 128
    assert losses[-1] < 0.8 * losses[0]
    assert largest_difference(losses, expected) < LOSS
    assert abs(top1 - expected_top1) <= TOP1
    other, _ = train(tmp_path / "other", "auto", seed=1)  # negative control: another seed
    assert largest_difference(other, expected) > 10 * LOSS


@pytest.mark.slow
def test_three_epochs_reach_the_same_accuracy_with_both_backends(tmp_path):
    (_, top1), (_, expected) = (train(tmp_path / name, name, image_size=32, epochs=3) for name in ("auto", "reference"))
    assert expected > 0.85
    assert abs(top1 - expected) <= TOP1
