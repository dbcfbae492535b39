"""Fine-tuning on a folder of three colours: from nothing, from a checkpoint, and on from where a run was."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from data.made import COLOURS, write_classes
from van import Predictor, load_checkpoint
from van.data.augment import AugmentSettings
from van.engine.settings import TrainSettings
from van.errors import CheckpointError, DataError, HubError, RunExists, UsageError
from van.preprocess import Preprocess
from van.recipes.finetune import FinetuneSettings, run
from van.tasks.mix import MixSettings

SHORT = TrainSettings(epochs=1, batch_size=8, lr=1e-3, warmup_epochs=0, device="cpu", log_every=1)
STILL = dataclasses.replace(SHORT, lr=1e-12, weight_decay=0.0, batch_norm="frozen")
"""Training that moves no weight by more than 1e-11."""


def settings(data: Path, out: Path, train: TrainSettings = SHORT, **more: Any) -> FinetuneSettings:
    common = {"data": data, "out": out, "train": train, "model": "van_b0", "size_px": 32}
    return FinetuneSettings(**{**common, **more})


def recipe(out: Path) -> dict[str, Any]:
    return json.loads((out / "settings.json").read_text())["recipe"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_head(name: str) -> bool:
    return name.startswith("head.")


def test_everything_at_once_trains_from_scratch(colours, tmp_path):
    """Mixup, cutmix, RandAugment, erasing, layer decay, drop path, EMA, accumulated steps."""
    train = dataclasses.replace(SHORT, layer_decay=0.7, ema_decay=0.9, clip_grad=1.0, accumulate=2, epochs=2)
    augment = AugmentSettings(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.3)
    mix = MixSettings(mixup=0.8, cutmix=1.0)
    given = settings(colours, tmp_path / "run", train, augment=augment, mix=mix, start="scratch", drop_path_rate=0.2)
    summary = run(given)
    assert summary.updates == 2 * (24 // 8)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.labels == tuple(COLOURS)
    assert best.model == "van_b0"
    assert "drop_path_rate" not in best.model_options  # a habit of training, not of the network
    stored = recipe(tmp_path / "run")
    assert (stored["recipe"], stored["start"], stored["mixup"], stored["rand_augment"]) == (
        "finetune", "scratch", 0.8, "rand-m9-mstd0.5-inc1",
    )  # fmt: skip
    assert (stored["classes"], stored["training_pictures"], stored["validation_pictures"]) == (3, 24, 6)


def test_colours_are_learnt_from_scratch(colours, tmp_path):
    train = dataclasses.replace(SHORT, epochs=8, lr=3e-3, clip_grad=5.0)
    augment = AugmentSettings(scale=(0.5, 1.0))
    summary = run(settings(colours, tmp_path / "run", train, augment=augment, start="scratch", drop_path_rate=0.0))
    assert summary.metrics["top1"] > 0.8
    predictor = Predictor.load(tmp_path / "run" / "best.safetensors", device="cpu")
    answers = {path.parent.name: predictor(path).top(1)[0].label for path in (colours / "val").rglob("*-0.png")}
    assert sum(label == answer for label, answer in answers.items()) >= 2


def test_a_checkpoint_hands_on_its_weights_classes_and_preprocessing(colours, checkpoint, tmp_path, capsys):
    run(settings(colours, tmp_path / "run", STILL, start=str(checkpoint), size_px=0, model="van_b1"))
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert after.preprocess == before.preprocess == Preprocess(size_px=32, crop_fraction=1.0)
    assert after.model == recipe(tmp_path / "run")["model"] == "van_b0"
    assert "the network is van_b0, which" in capsys.readouterr().err
    for name, tensor in after.state.items():
        torch.testing.assert_close(tensor, before.state[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("ant", "bee"), "(3 classes) was left out: 2 were asked for"),
        (("ant", "bee", "cat"), "was left out: it has as many classes, but other ones"),
    ],
)
def test_other_classes_get_a_classifier_of_their_own_and_are_told_so(checkpoint, tmp_path, capsys, classes, message):
    data = write_classes(tmp_path / "data", dict.fromkeys(classes, 6))
    run(settings(data, tmp_path / "run", STILL, start=str(checkpoint)))
    assert message in capsys.readouterr().err
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert after.labels == classes
    for name, tensor in after.state.items():
        if not is_head(name):
            torch.testing.assert_close(tensor, before.state[name], rtol=0, atol=1e-9)
    assert (after.state["head.weight"] - before.state["head.weight"][: len(classes)]).abs().max() > 0.01


def test_a_frozen_backbone_keeps_every_bit(colours, checkpoint, tmp_path):
    train = dataclasses.replace(SHORT, freeze_backbone=True, lr=1e-2, layer_decay=0.8, ema_decay=0.5)
    run(settings(colours, tmp_path / "run", train, start=str(checkpoint), mix=MixSettings(mixup=0.5)))
    before = load_checkpoint(checkpoint).state
    for kept in ("best", "last"):
        after = load_checkpoint(tmp_path / "run" / f"{kept}.safetensors").state
        assert {name for name in before if not after[name].equal(before[name])} == {"head.weight", "head.bias"}


def test_without_freezing_statistics_and_weights_all_move(colours, checkpoint, tmp_path):
    """The control of the test above."""
    run(settings(colours, tmp_path / "run", start=str(checkpoint)))
    before = load_checkpoint(checkpoint).state
    after = load_checkpoint(tmp_path / "run" / "last.safetensors").state
    assert all(not after[name].equal(before[name]) for name in before)


def test_a_size_of_one_s_own_travels_with_the_network(colours, checkpoint, tmp_path):
    run(settings(colours, tmp_path / "run", start=str(checkpoint), size_px=40))
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").preprocess.size_px == 40


def test_another_timm_network_is_trained_too(colours, tmp_path):
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    run(settings(colours, tmp_path / "run", train, model="resnet18", start="scratch"))
    again = settings(colours, tmp_path / "again", STILL, start=str(tmp_path / "run" / "best.safetensors"))
    run(again)
    before, after = (load_checkpoint(tmp_path / name / "best.safetensors") for name in ("run", "again"))
    assert before.model == after.model == "resnet18"
    torch.testing.assert_close(after.state["fc.weight"], before.state["fc.weight"], rtol=0, atol=1e-9)


def test_a_plain_folder_is_split_by_the_share_and_the_seed(tmp_path):
    data = write_classes(tmp_path / "data", dict.fromkeys(COLOURS, 6))
    train = dataclasses.replace(SHORT, freeze_backbone=True, seed=5)
    run(settings(data, tmp_path / "run", train, start="scratch", validation_share=0.5))
    stored = recipe(tmp_path / "run")
    assert (stored["training_pictures"], stored["validation_pictures"]) == (9, 9)
    assert (stored["validation_share"], stored["seed"]) == (0.5, 5)


def test_a_batch_larger_than_the_folder_is_lowered_and_said_so(tmp_path, capsys):
    data = write_classes(tmp_path / "data", {"ant": 4, "bee": 4})
    train = dataclasses.replace(SHORT, batch_size=32, accumulate=2)
    run(settings(data, tmp_path / "run", train, start="scratch", validation_share=0.4))
    assert "--batch-size lowered to 4: there are 4 pictures to train on" in capsys.readouterr().err
    assert recipe(tmp_path / "run")["batch_size"] == 4
    run(settings(data, tmp_path / "run", train, start="scratch", validation_share=0.4, resume=True))


def test_unreadable_pictures_are_passed_over_and_named(tmp_path, capsys):
    data = write_classes(tmp_path / "data" / "train", dict.fromkeys(COLOURS, 8)).parent
    write_classes(data / "val", dict.fromkeys(COLOURS, 1), first_seed=500)
    (data / "train" / "red" / "red-3.png").write_bytes(b"no picture")
    train = dataclasses.replace(SHORT, freeze_backbone=True, max_unreadable=0.1)
    summary = run(settings(data, tmp_path / "run", train, start="scratch"))
    assert list(summary.unreadable) == ["red/red-3.png"]
    assert "passed over red/red-3.png: is no picture" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"1 of 24 training pictures cannot be read"):
        run(settings(data, tmp_path / "strict", dataclasses.replace(train, max_unreadable=0.0), start="scratch"))


@pytest.fixture(scope="module")
def finished(colours, checkpoint, tmp_path_factory) -> Path:
    """A finished run, in ``run``, on its own copy of everything: ``data`` and ``start.safetensors``."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(colours, root / "data")
    shutil.copy(checkpoint, root / "start.safetensors")
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    run(settings(root / "data", root / "run", train, start=str(root / "start.safetensors")))
    return root


@pytest.fixture
def copied(finished, tmp_path, monkeypatch) -> FinetuneSettings:
    """The settings of a copy of that run that a test may change; paths are relative, as the first run's were not."""
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "settings.json"
    path.write_text(path.read_text().replace(str(finished), str(tmp_path / "copy")))
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    root = tmp_path / "copy"
    return settings(root / "data", root / "run", train, start=str(root / "start.safetensors"), resume=True)


def test_a_run_goes_on_though_its_starting_weights_are_gone(copied):
    Path(copied.start).unlink()
    assert run(copied).updates == 3
    with pytest.raises(CheckpointError, match="no such file"):  # a new run does need them
        run(dataclasses.replace(copied, out=copied.out.parent / "new", resume=False))


def test_changed_settings_are_refused_by_name_and_the_run_stays_as_it_was(copied):
    before = contents(copied.out)
    changed = dataclasses.replace(copied, train=dataclasses.replace(copied.train, lr=0.5))
    with pytest.raises(UsageError, match=r"lr was 0\.001 and is now 0\.5; leave those flags out"):
        run(changed)
    assert contents(copied.out) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [({"red": 9}, "training pictures 24 -> 25"), ({"wasp": 2}, "classes 3 -> 4, training pictures 24 -> 26")],
)
def test_changed_pictures_are_refused_and_the_run_stays_as_it_was(copied, more, message):
    before = contents(copied.out)
    write_classes(copied.data / "train", more)
    with pytest.raises(UsageError, match=f"the pictures have changed since .* began .{message}"):
        run(copied)
    assert contents(copied.out) == before


def test_a_folder_with_a_run_is_refused_and_stays_as_it_was(copied):
    before = contents(copied.out)
    with pytest.raises(RunExists, match="already holds a run; go on with it by --resume, or choose another --out"):
        run(dataclasses.replace(copied, resume=False, start="scratch"))
    assert contents(copied.out) == before


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"start": "pretrained"}, HubError, "van_b0"),
        ({"start": "nowhere.pth"}, CheckpointError, "nowhere.pth: no such file"),
        ({"start": "scratch", "model": "van_b9"}, UsageError, "'van_b9' is neither a file nor a model"),
        ({"start": "scratch", "model": "alexnet"}, UsageError, "alexnet"),
        ({"start": "scratch", "size_px": -1}, UsageError, "--size-px is -1"),
        ({"start": "scratch", "validation_share": 2.0}, UsageError, "--validation-share is 2.0"),
        ({"start": "scratch", "augment": AugmentSettings(rand_augment="x")}, UsageError, "--rand-augment is 'x'"),
        ({"start": "scratch", "train": dataclasses.replace(SHORT, batch_size=1)}, UsageError, "BatchNorm needs two"),
        ({"start": "scratch", "train": dataclasses.replace(SHORT, batch_size=9, accumulate=2)}, UsageError, "accumul"),
        ({"start": "scratch", "data": Path("nowhere")}, DataError, "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_trained_is_named_and_leaves_no_run_behind(colours, tmp_path, values, kind, message):
    with pytest.raises(kind, match=message):
        run(dataclasses.replace(settings(colours, tmp_path / "run"), **values))
    assert not (tmp_path / "run").exists()
