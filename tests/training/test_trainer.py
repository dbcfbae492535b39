"""The training loop: convergence, checkpoints, logs, schedules, and errors for invalid settings and data."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from training.tiny import OPTIONS, Squares, differing_tensors, tensors, tiny_run
from van.backbones.van import VAN
from van.checkpoint import load_checkpoint
from van.errors import DataError, NonFiniteLoss, UsageError
from van.tasks.mixup import MixupSettings
from van.training.run_folder import read_log
from van.training.trainer import fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "run"
    fit(tiny_run(epochs=8, mix=MixupSettings(), train_dataset=Squares(64), ema_decay=0.9), out)
    return out


def test_a_van_classifies_three_colors_after_training(trained: Path):
    assert load_checkpoint(trained / "best.safetensors").metrics["top1"] >= 0.9


def test_the_run_folder_contains_settings_log_events_curves_and_checkpoints(trained: Path):
    expected = {"settings.json", "log.jsonl", "tensorboard", "curves.png", "best.safetensors", "last.safetensors"}
    assert {path.name for path in trained.iterdir()} == expected
    settings = json.loads((trained / "settings.json").read_text())
    assert settings["recipe"]["epochs"] == 8
    assert settings["versions"]["torch"] == torch.__version__
    log = read_log(trained / "log.jsonl")
    assert [record["step"] for record in log if record["kind"] == "train"] == list(range(1, 65))
    assert [record["epoch"] for record in log if record["kind"] == "eval"] == list(range(1, 9))
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    scalars = {event.step: event.value for event in events.Scalars("eval/top1")}
    assert scalars == {r["step"]: pytest.approx(r["top1"]) for r in log if r["kind"] == "eval"}


def test_the_best_checkpoint_has_the_metrics_of_the_best_evaluation(trained: Path):
    log = read_log(trained / "log.jsonl")
    best = max(record["top1"] for record in log if record["kind"] == "eval")
    assert load_checkpoint(trained / "best.safetensors").metrics["top1"] == best


def test_the_moving_average_is_evaluated_and_saved_as_best(tmp_path: Path):
    """With EMA the best checkpoint holds the averaged weights, which differ from the last ones."""
    fit(tiny_run(epochs=1), tmp_path / "run")
    last = load_checkpoint(tmp_path / "run" / "last.safetensors", with_training=True)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert torch.equal(best.state["head.weight"], last.training["ema/head.weight"])
    assert not torch.equal(best.state["head.weight"], last.state["head.weight"])


def test_the_learning_rate_warms_up_linearly_decays_by_a_cosine_and_cools_down(tmp_path: Path):
    settings = {"epochs": 8, "warmup_epochs": 2, "cooldown_epochs": 2, "lr": 1e-3}
    fit(tiny_run(train_dataset=Squares(40), **settings), tmp_path / "run")
    rates = [r["lr"] for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "train"]
    # the rate logged after update u is the one of update u + 1
    for update in (1, 5, 9):
        assert rates[update - 1] == pytest.approx(1e-6 + (1e-3 - 1e-6) * update / 10)
    for update in (10, 20, 29):
        cosine = 0.5 * (1 + torch.cos(torch.tensor((update - 10) / 20 * torch.pi)).item())
        assert rates[update - 1] == pytest.approx(1e-5 + (1e-3 - 1e-5) * cosine)
    assert rates[30:] == [pytest.approx(1e-5)] * 10


def test_gradient_accumulation_makes_the_same_update_as_one_batch(tmp_path: Path):
    """BatchNorm is frozen and nothing is random, so only the order of sums differs."""
    exact: dict[str, Any] = {
        "mix": MixupSettings(), "train_dataset": Squares(16), "batch_norm": "frozen", "epochs": 1,
        "options": {**OPTIONS, "drop_path_rate": 0.0, "drop_rate": 0.0},
    }  # fmt: skip
    fit(tiny_run(**exact), tmp_path / "one")
    fit(tiny_run(**exact, grad_accum_steps=4), tmp_path / "four")
    one, four = (tensors(tmp_path / run / "last.safetensors") for run in ("one", "four"))
    for name in one:
        if "generators" not in name:
            torch.testing.assert_close(four[name], one[name], rtol=2e-4, atol=2e-5)


def test_frozen_batch_norm_keeps_its_statistics_and_a_frozen_backbone_its_weights(tmp_path: Path):
    torch.manual_seed(0)
    before = VAN(num_classes=3, **OPTIONS).state_dict()
    fit(tiny_run(epochs=1, batch_norm="frozen"), tmp_path / "norm")
    fit(tiny_run(epochs=1, freeze_backbone=True), tmp_path / "backbone")
    norm = load_checkpoint(tmp_path / "norm" / "last.safetensors").state
    backbone = load_checkpoint(tmp_path / "backbone" / "last.safetensors").state
    for name in before:
        if "running" in name or "batches" in name:
            assert torch.equal(norm[name], before[name]), name
        if not name.startswith("head."):
            assert torch.equal(backbone[name], before[name]), name
    assert not torch.equal(backbone["head.weight"], before["head.weight"])
    assert not torch.equal(norm["block1.0.norm1.weight"], before["block1.0.norm1.weight"])


def test_an_epoch_shorter_than_the_logging_interval_is_logged_at_its_end(tmp_path: Path):
    fit(tiny_run(epochs=2, log_every=100), tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["step"] for record in log if record["kind"] == "train"] == [5, 10]


def test_bf16_trains_on_the_cpu(tmp_path: Path):
    fit(tiny_run(epochs=1, precision="bf16"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").state["head.weight"].dtype == torch.float32


class NonFiniteClassifier(nn.Module):
    """A classifier whose logits or gradients are not finite from the third training call on."""

    def __init__(self, quantity: str) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.quantity, self.calls = quantity, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        out = self.head(x.mean(dim=(2, 3)))
        if self.calls >= 3 and self.training:
            return out * float("inf") if self.quantity == "loss" else out + (out - out.detach()).abs().sqrt()
        return out


@pytest.mark.parametrize("quantity", ["loss", "gradient"])
def test_a_non_finite_loss_or_gradient_names_the_step_and_the_images_and_keeps_the_last_checkpoint(
    tmp_path: Path, quantity: str
):
    """The derivative of the square root at 0 is infinite, so the loss is finite and the gradient is not."""
    run = tiny_run(model=NonFiniteClassifier(quantity), mix=MixupSettings(), ema_decay=0.0, save_every=2)
    with pytest.raises(NonFiniteLoss, match=rf"step 3.*{quantity}.*square-.*last\.safetensors") as caught:
        fit(run, tmp_path / "run")
    assert caught.value.step == 3
    assert len(caught.value.images) == 8
    kept = load_checkpoint(tmp_path / "run" / "last.safetensors", with_training=True)
    assert kept.training_state["progress"]["update"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in kept.state.values())


def test_unreadable_training_images_are_skipped_and_logged(tmp_path: Path):
    broken = Squares(40, broken=(3,))
    summary = fit(tiny_run(epochs=1, train_dataset=broken), tmp_path / "run")
    assert summary.unreadable == {"square-3": "is damaged"}
    events = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "event"]
    assert [(event["event"], event["image"]) for event in events] == [("unreadable_image", "square-3")]


def test_too_many_unreadable_training_images_stop_training(tmp_path: Path):
    with pytest.raises(DataError, match=r"of 40 .*0\.05.*max-unreadable.*is damaged"):
        fit(tiny_run(epochs=1, train_dataset=Squares(40, broken=(3, 9, 12))), tmp_path / "run")


def test_unreadable_validation_images_are_logged_and_not_counted(tmp_path: Path):
    fit(tiny_run(epochs=1, val_dataset=Squares(13, broken=(0, 5))), tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["samples"] for record in log if record["kind"] == "eval"] == [11]
    assert [r["image"] for r in log if r["kind"] == "event"] == ["square-0", "square-5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 41}, "--batch-size.*at most 40.*41"),
        ({"precision": "fp16"}, "--precision fp16.*GPU"),
        ({"batch_norm": "sync"}, "--batch-norm sync.*GPU"),
        ({"device": "abacus"}, "auto, cpu, cuda or mps.*'abacus'"),
        ({"grad_accum_steps": 3}, "--batch-size.*multiple of 3.*8"),
    ],
)
def test_invalid_settings_raise_before_the_run_folder_is_created(
    tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(UsageError, match=message):
        fit(tiny_run(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_previous_checkpoint_and_the_run_can_be_resumed(tmp_path: Path):
    """A file size limit of the operating system stops the write within the second checkpoint."""
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from training.tiny import Squares, tiny_run
        from van.training.trainer import fit
        from van.errors import VanError

        class Filling(Squares):
            reads = 0
            def __getitem__(self, index):
                Filling.reads += 1
                if Filling.reads == 20:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
                return super().__getitem__(index)

        try:
            fit(tiny_run(train_dataset=Filling(40, jitter=0.3)), Path(sys.argv[1]))
        except VanError as error:
            print(f"{type(error).__name__}: {error}")
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "CheckpointError" in ended.stdout
    assert "last.safetensors" in ended.stdout
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").training_state["progress"]["update"] == 2
    assert list((tmp_path / "run").glob(".*partial")) == []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(tiny_run(), tmp_path / "run", resume=True)
        fit(tiny_run(), tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert differing_tensors(tmp_path / "whole" / "last.safetensors", tmp_path / "run" / "last.safetensors") == []
