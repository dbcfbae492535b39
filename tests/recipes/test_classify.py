"""The classify recipe on a folder of three colors: from scratch, from a checkpoint, and resumed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.synthetic import COLORS, write_classes
from van import load_checkpoint
from van.datasets.augment import AugmentSettings
from van.errors import CheckpointError, DataError, HubError, RunExists, UsageError
from van.model import Model
from van.predict import Predictor
from van.preprocess import CenterCropPreprocess
from van.recipes.classify import ClassifySettings, run
from van.tasks.mixup import MixupSettings
from van.training.settings import TrainSettings

SHORT = TrainSettings(epochs=1, batch_size=8, lr=1e-3, warmup_epochs=0, device="cpu", log_every=1)
NO_CHANGE = dataclasses.replace(SHORT, lr=1e-12, weight_decay=0.0, batch_norm="frozen")
"""Training that changes no weight by more than 1e-11."""


def settings(data: Path, out: Path, train: TrainSettings = SHORT, **more: Any) -> ClassifySettings:
    common = {"data": data, "out": out, "train": train, "model": "van_b0", "image_size": 32}
    return ClassifySettings(**{**common, **more})


def stored_recipe(out: Path) -> dict[str, Any]:
    return json.loads((out / "settings.json").read_text())["recipe"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def is_head(name: str) -> bool:
    return name.startswith("head.")


def test_all_training_options_together_train_from_scratch(colors, tmp_path):
    """Mixup, cutmix, RandAugment, random erasing, layer decay, drop path, EMA and gradient accumulation."""
    train = dataclasses.replace(SHORT, layer_decay=0.7, ema_decay=0.9, clip_grad=1.0, grad_accum_steps=2, epochs=2)
    augment = AugmentSettings(rand_augment="rand-m9-mstd0.5-inc1", random_erasing=0.3)
    mix = MixupSettings(mixup=0.8, cutmix=1.0)
    given = settings(colors, tmp_path / "run", train, augment=augment, mix=mix, init_from="scratch", drop_path_rate=0.2)
    summary = run(given)
    assert summary.updates == 2 * (24 // 8)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.class_names == tuple(COLORS)
    assert best.model == "van_b0"
    assert "drop_path_rate" not in best.model_options  # an option of training only
    stored = stored_recipe(tmp_path / "run")
    assert (stored["recipe"], stored["init_from"], stored["mixup"], stored["rand_augment"]) == (
        "classify", "scratch", 0.8, "rand-m9-mstd0.5-inc1",
    )  # fmt: skip
    assert (stored["classes"], stored["training_images"], stored["validation_images"]) == (3, 24, 6)


def test_training_from_scratch_classifies_colors(colors, tmp_path):
    train = dataclasses.replace(SHORT, epochs=8, lr=3e-3, clip_grad=5.0)
    augment = AugmentSettings(scale=(0.5, 1.0))
    summary = run(settings(colors, tmp_path / "run", train, augment=augment, init_from="scratch", drop_path_rate=0.0))
    assert summary.metrics["top1"] > 0.8
    predictor = Predictor(Model.load(tmp_path / "run" / "best.safetensors"), device="cpu")
    predicted = {path.parent.name: predictor(path).top(1)[0].label for path in (colors / "val").rglob("*-0.png")}
    assert sum(label == name for name, label in predicted.items()) >= 2


def test_weights_classes_and_preprocessing_come_from_the_initial_checkpoint(colors, checkpoint, tmp_path, capsys):
    run(settings(colors, tmp_path / "run", NO_CHANGE, init_from=str(checkpoint), image_size=0, model="van_b1"))
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert after.preprocess == before.preprocess == CenterCropPreprocess(image_size=32, crop_fraction=1.0)
    assert after.model == stored_recipe(tmp_path / "run")["model"] == "van_b0"
    assert "--model van_b1 ignored" in capsys.readouterr().err
    for name, tensor in after.state.items():
        torch.testing.assert_close(tensor, before.state[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("ant", "bee"), "3 classes"),
        (("ant", "bee", "cat"), "the classifier is replaced"),
    ],
)
def test_the_classifier_is_replaced_if_the_classes_differ_and_the_replacement_is_logged(
    checkpoint, tmp_path, capsys, classes, message
):
    data = write_classes(tmp_path / "data", dict.fromkeys(classes, 6))
    run(settings(data, tmp_path / "run", NO_CHANGE, init_from=str(checkpoint)))
    assert message in capsys.readouterr().err
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert after.class_names == classes
    for name, tensor in after.state.items():
        if not is_head(name):
            torch.testing.assert_close(tensor, before.state[name], rtol=0, atol=1e-9)
    assert (after.state["head.weight"] - before.state["head.weight"][: len(classes)]).abs().max() > 0.01


def test_a_frozen_backbone_is_bit_identical_after_training(colors, checkpoint, tmp_path):
    train = dataclasses.replace(SHORT, freeze_backbone=True, lr=1e-2, layer_decay=0.8, ema_decay=0.5)
    run(settings(colors, tmp_path / "run", train, init_from=str(checkpoint), mix=MixupSettings(mixup=0.5)))
    before = load_checkpoint(checkpoint).state
    for name in ("best", "last"):
        after = load_checkpoint(tmp_path / "run" / f"{name}.safetensors").state
        assert {name for name in before if not after[name].equal(before[name])} == {"head.weight", "head.bias"}


def test_without_freezing_all_weights_and_statistics_change(colors, checkpoint, tmp_path):
    """Negative control of the test above."""
    run(settings(colors, tmp_path / "run", init_from=str(checkpoint)))
    before = load_checkpoint(checkpoint).state
    after = load_checkpoint(tmp_path / "run" / "last.safetensors").state
    assert all(not after[name].equal(before[name]) for name in before)


def test_the_image_size_is_stored_with_the_network(colors, checkpoint, tmp_path):
    run(settings(colors, tmp_path / "run", init_from=str(checkpoint), image_size=40))
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").preprocess.image_size == 40


def test_other_timm_models_can_be_trained(colors, tmp_path):
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    run(settings(colors, tmp_path / "run", train, model="resnet18", init_from="scratch"))
    again = settings(colors, tmp_path / "again", NO_CHANGE, init_from=str(tmp_path / "run" / "best.safetensors"))
    run(again)
    before, after = (load_checkpoint(tmp_path / name / "best.safetensors") for name in ("run", "again"))
    assert before.model == after.model == "resnet18"
    torch.testing.assert_close(after.state["fc.weight"], before.state["fc.weight"], rtol=0, atol=1e-9)


def test_a_folder_without_splits_is_split_by_val_fraction_and_seed(tmp_path):
    data = write_classes(tmp_path / "data", dict.fromkeys(COLORS, 6))
    train = dataclasses.replace(SHORT, freeze_backbone=True, seed=5)
    run(settings(data, tmp_path / "run", train, init_from="scratch", val_fraction=0.5))
    stored = stored_recipe(tmp_path / "run")
    assert (stored["training_images"], stored["validation_images"]) == (9, 9)
    assert (stored["val_fraction"], stored["seed"]) == (0.5, 5)


def test_a_batch_size_above_the_dataset_size_is_lowered_and_logged(tmp_path, capsys):
    data = write_classes(tmp_path / "data", {"ant": 4, "bee": 4})
    train = dataclasses.replace(SHORT, batch_size=32, grad_accum_steps=2)
    run(settings(data, tmp_path / "run", train, init_from="scratch", val_fraction=0.4))
    assert "--batch-size lowered from 32 to 4" in capsys.readouterr().err
    assert stored_recipe(tmp_path / "run")["batch_size"] == 4
    run(settings(data, tmp_path / "run", train, init_from="scratch", val_fraction=0.4, resume=True))


def test_unreadable_images_are_skipped_and_logged(tmp_path, capsys):
    data = write_classes(tmp_path / "data" / "train", dict.fromkeys(COLORS, 8)).parent
    write_classes(data / "val", dict.fromkeys(COLORS, 1), first_seed=500)
    (data / "train" / "red" / "red-3.png").write_bytes(b"no image")
    train = dataclasses.replace(SHORT, freeze_backbone=True, max_unreadable=0.1)
    summary = run(settings(data, tmp_path / "run", train, init_from="scratch"))
    assert list(summary.unreadable) == ["red/red-3.png"]
    assert "skipped red/red-3.png" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"1 of 24 .*red/red-3\.png"):
        run(settings(data, tmp_path / "strict", dataclasses.replace(train, max_unreadable=0.0), init_from="scratch"))


@pytest.fixture(scope="module")
def finished(colors, checkpoint, tmp_path_factory) -> Path:
    """A finished run in ``run`` with copies of its inputs: ``data`` and ``start.safetensors``."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(colors, root / "data")
    shutil.copy(checkpoint, root / "start.safetensors")
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    run(settings(root / "data", root / "run", train, init_from=str(root / "start.safetensors")))
    return root


@pytest.fixture
def copied(finished, tmp_path, monkeypatch) -> ClassifySettings:
    """The settings of a copy of that run, which a test may change."""
    shutil.copytree(finished, tmp_path / "copy")
    path = tmp_path / "copy" / "run" / "settings.json"
    path.write_text(path.read_text().replace(str(finished), str(tmp_path / "copy")))
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    root = tmp_path / "copy"
    return settings(root / "data", root / "run", train, init_from=str(root / "start.safetensors"), resume=True)


def test_a_run_is_resumed_without_its_initial_weights(copied):
    Path(copied.init_from).unlink()
    assert run(copied).updates == 3
    with pytest.raises(CheckpointError, match=r"start\.safetensors"):  # a new run needs them
        run(dataclasses.replace(copied, out=copied.out.parent / "new", resume=False))


def test_resuming_with_changed_settings_raises_and_does_not_modify_the_run(copied):
    before = contents(copied.out)
    changed = dataclasses.replace(copied, train=dataclasses.replace(copied.train, lr=0.5))
    with pytest.raises(UsageError, match=r"lr.*0\.001.*0\.5"):
        run(changed)
    assert contents(copied.out) == before


@pytest.mark.parametrize(
    ("more", "message"),
    [({"red": 9}, "training images 24 -> 25"), ({"wasp": 2}, "classes 3 -> 4, training images 24 -> 26")],
)
def test_resuming_with_a_changed_dataset_raises_and_does_not_modify_the_run(copied, more, message):
    before = contents(copied.out)
    write_classes(copied.data / "train", more)
    with pytest.raises(UsageError, match=f"--resume.*{message}"):
        run(copied)
    assert contents(copied.out) == before


def test_an_existing_run_is_not_overwritten(copied):
    before = contents(copied.out)
    with pytest.raises(RunExists, match=r"run.*--resume"):
        run(dataclasses.replace(copied, resume=False, init_from="scratch"))
    assert contents(copied.out) == before


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"init_from": "pretrained"}, HubError, "van_b0"),
        ({"init_from": "nowhere.pth"}, CheckpointError, "nowhere.pth"),
        ({"init_from": "scratch", "model": "van_b9"}, UsageError, "van_b9"),
        ({"init_from": "scratch", "model": "alexnet"}, UsageError, "alexnet"),
        ({"init_from": "scratch", "image_size": -1}, UsageError, "--image-size.*-1"),
        ({"init_from": "scratch", "val_fraction": 2.0}, UsageError, "--val-fraction.*2.0"),
        ({"init_from": "scratch", "augment": AugmentSettings(rand_augment="x")}, UsageError, "--rand-augment.*x"),
        (
            {"init_from": "scratch", "train": dataclasses.replace(SHORT, batch_size=1)},
            UsageError,
            "--batch-size 1.*BatchNorm",
        ),
        (
            {"init_from": "scratch", "train": dataclasses.replace(SHORT, batch_size=9, grad_accum_steps=2)},
            UsageError,
            "--grad-accum-steps 2",
        ),
        ({"init_from": "scratch", "data": Path("nowhere")}, DataError, "nowhere"),
    ],
)
def test_invalid_settings_raise_and_create_no_run_folder(colors, tmp_path, values, kind, message):
    with pytest.raises(kind, match=message):
        run(dataclasses.replace(settings(colors, tmp_path / "run"), **values))
    assert not (tmp_path / "run").exists()
