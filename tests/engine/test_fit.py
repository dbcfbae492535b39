"""What the loop does: it learns, it keeps the best, it refuses what cannot work, it loses nothing."""

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

from engine.tiny import OPTIONS, Squares, same_bits, tensors, tiny_job
from van.checkpoint import load_checkpoint
from van.engine.fit import fit
from van.engine.run_folder import read_log
from van.errors import DataError, NonFiniteLoss, UsageError
from van.models.van import VAN
from van.tasks.mix import MixSettings


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("learnt") / "run"
    fit(tiny_job(epochs=8, mix=MixSettings(), train_set=Squares(64), ema_decay=0.9), out)
    return out


def test_a_van_learns_three_colours(learnt: Path):
    assert load_checkpoint(learnt / "best.safetensors").metrics["top1"] >= 0.9


def test_the_run_folder_holds_all_it_should(learnt: Path):
    wanted = {"settings.json", "log.jsonl", "tensorboard", "curves.png", "best.safetensors", "last.safetensors"}
    assert {path.name for path in learnt.iterdir()} == wanted
    settings = json.loads((learnt / "settings.json").read_text())
    assert settings["recipe"]["epochs"] == 8
    assert settings["versions"]["torch"] == torch.__version__
    log = read_log(learnt / "log.jsonl")
    assert [record["step"] for record in log if record["kind"] == "train"] == list(range(1, 65))
    assert [record["epoch"] for record in log if record["kind"] == "eval"] == list(range(1, 9))
    events = EventAccumulator(str(learnt / "tensorboard")).Reload()
    scalars = {event.step: event.value for event in events.Scalars("eval/top1")}
    assert scalars == {r["step"]: pytest.approx(r["top1"]) for r in log if r["kind"] == "eval"}


def test_the_best_checkpoint_is_that_of_the_best_evaluation(learnt: Path):
    log = read_log(learnt / "log.jsonl")
    best = max(record["top1"] for record in log if record["kind"] == "eval")
    assert load_checkpoint(learnt / "best.safetensors").metrics["top1"] == best


def test_what_is_evaluated_is_the_moving_average(tmp_path: Path):
    """With EMA the best checkpoint holds the averaged weights, which differ from the last ones."""
    fit(tiny_job(epochs=1), tmp_path / "run")
    last = load_checkpoint(tmp_path / "run" / "last.safetensors", with_training=True)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert torch.equal(best.state["head.weight"], last.training["ema/head.weight"])
    assert not torch.equal(best.state["head.weight"], last.state["head.weight"])


def test_the_learning_rate_rises_linearly_then_falls_by_a_cosine_and_stays(tmp_path: Path):
    settings = {"epochs": 8, "warmup_epochs": 2, "cooldown_epochs": 2, "lr": 1e-3}
    fit(tiny_job(train_set=Squares(40), **settings), tmp_path / "run")
    rates = [r["lr"] for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "train"]
    # the rate logged after update u is the one of update u + 1
    for update in (1, 5, 9):
        assert rates[update - 1] == pytest.approx(1e-6 + (1e-3 - 1e-6) * update / 10)
    for update in (10, 20, 29):
        cosine = 0.5 * (1 + torch.cos(torch.tensor((update - 10) / 20 * torch.pi)).item())
        assert rates[update - 1] == pytest.approx(1e-5 + (1e-3 - 1e-5) * cosine)
    assert rates[30:] == [pytest.approx(1e-5)] * 10


def test_accumulated_steps_make_the_same_update_as_one_batch(tmp_path: Path):
    """BatchNorm is frozen and nothing is random, so only the order of sums differs."""
    exact: dict[str, Any] = {
        "mix": MixSettings(), "train_set": Squares(16), "batch_norm": "frozen", "epochs": 1,
        "options": {**OPTIONS, "drop_path_rate": 0.0, "drop_rate": 0.0},
    }  # fmt: skip
    fit(tiny_job(**exact), tmp_path / "one")
    fit(tiny_job(**exact, accumulate=4), tmp_path / "four")
    one, four = (tensors(tmp_path / run / "last.safetensors") for run in ("one", "four"))
    for name in one:
        if "generators" not in name:
            torch.testing.assert_close(four[name], one[name], rtol=2e-4, atol=2e-5)


def test_frozen_batch_norm_keeps_its_statistics_and_a_frozen_backbone_all_its_bits(tmp_path: Path):
    torch.manual_seed(0)
    before = VAN(num_classes=3, **OPTIONS).state_dict()
    fit(tiny_job(epochs=1, batch_norm="frozen"), tmp_path / "norm")
    fit(tiny_job(epochs=1, freeze_backbone=True), tmp_path / "backbone")
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
    fit(tiny_job(epochs=2, log_every=100), tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["step"] for record in log if record["kind"] == "train"] == [5, 10]


def test_bf16_trains_on_the_cpu(tmp_path: Path):
    fit(tiny_job(epochs=1, precision="bf16"), tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").state["head.weight"].dtype == torch.float32


class Poisoned(nn.Module):
    """A classifier whose answer, or whose gradient, is not finite from the third call in training on."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.where, self.calls = where, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += self.training
        out = self.head(x.mean(dim=(2, 3)))
        if self.calls >= 3 and self.training:
            return out * float("inf") if self.where == "loss" else out + (out - out.detach()).abs().sqrt()
        return out


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_with_the_step_and_its_pictures_and_keeps_the_last_good(
    tmp_path: Path, where: str
):
    """The square root's slope at 0 is infinite, so there the loss is finite and the gradient is not."""
    job = tiny_job(model=Poisoned(where), mix=MixSettings(), ema_decay=0.0, save_every=2)
    with pytest.raises(NonFiniteLoss, match=rf"the {where} is not finite at step 3.*square-") as caught:
        fit(job, tmp_path / "run")
    assert caught.value.step == 3
    assert len(caught.value.pictures) == 8
    kept = load_checkpoint(tmp_path / "run" / "last.safetensors", with_training=True)
    assert kept.training_state["progress"]["update"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in kept.state.values())


def test_unreadable_pictures_are_passed_over_named_and_counted(tmp_path: Path):
    broken = Squares(40, broken=(3,))
    summary = fit(tiny_job(epochs=1, train_set=broken), tmp_path / "run")
    assert summary.unreadable == {"square-3": "is damaged"}
    events = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "event"]
    assert [event["unreadable"] for event in events] == ["square-3"]


def test_past_the_stated_share_unreadable_pictures_stop_training(tmp_path: Path):
    with pytest.raises(DataError, match=r"of 40 training pictures cannot be read.*max_unreadable.*is damaged"):
        fit(tiny_job(epochs=1, train_set=Squares(40, broken=(3, 9, 12))), tmp_path / "run")


def test_unreadable_held_out_pictures_are_logged_and_not_counted(tmp_path: Path):
    fit(tiny_job(epochs=1, validation_set=Squares(13, broken=(0, 5))), tmp_path / "run")
    log = read_log(tmp_path / "run" / "log.jsonl")
    assert [record["samples"] for record in log if record["kind"] == "eval"] == [11]
    assert [r["unreadable"] for r in log if r["kind"] == "event"] == ["square-0", "square-5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 41}, "there are 40 training pictures; lower it to 40"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"batch_norm": "sync"}, "sync needs GPUs"),
        ({"device": "abacus"}, "wanted auto, cpu, cuda or mps"),
        ({"accumulate": 3}, "wanted a multiple of 3"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_trained(
    tmp_path: Path, settings: dict[str, Any], message: str
):
    with pytest.raises(UsageError, match=message):
        fit(tiny_job(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_previous_checkpoint_whole_and_the_run_can_go_on(tmp_path: Path):
    """A real limit of the operating system stops the write half-way through the second checkpoint."""
    script = textwrap.dedent(
        """
        import resource, sys
        from pathlib import Path
        from engine.tiny import Squares, tiny_job
        from van.engine.fit import fit
        from van.errors import VanError

        class Filling(Squares):
            reads = 0
            def __getitem__(self, index):
                Filling.reads += 1
                if Filling.reads == 20:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
                return super().__getitem__(index)

        try:
            fit(tiny_job(train_set=Filling(40, jitter=0.3)), Path(sys.argv[1]))
        except VanError as error:
            print(f"{type(error).__name__}: {error}")
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    assert "CheckpointError: cannot write" in ended.stdout
    assert "The previous last.safetensors is whole" in ended.stdout
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").training_state["progress"]["update"] == 2
    assert list((tmp_path / "run").glob(".*partial")) == []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        fit(tiny_job(), tmp_path / "run", resume=True)
        fit(tiny_job(), tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert same_bits(tmp_path / "whole" / "last.safetensors", tmp_path / "run" / "last.safetensors") == []
