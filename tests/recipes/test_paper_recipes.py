"""The recipes for COCO and ADE20K: the settings of the paper, and a short run of each on datasets in their layouts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from datasets.synthetic_annotated import as_coco2017, task_class_names
from van import load_checkpoint
from van.datasets.augment import JointAugmentSettings
from van.errors import UsageError
from van.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, ResizePreprocess
from van.recipes import coco
from van.recipes.ade20k import Ade20kFpnSettings, Ade20kUpernetSettings
from van.recipes.ade20k import run as run_ade20k
from van.recipes.coco import CocoMaskRcnnSettings, CocoRetinanetSettings
from van.recipes.coco import run as run_coco
from van.recipes.validation import flatten_settings
from van.training.optimizer import make_optimizer, make_schedule
from van.training.settings import TrainSettings

PATHS: dict[str, Any] = {"data": Path("data"), "out": Path("out")}
COCO = {
    "lr": 1e-4, "weight_decay": 0.05, "batch_size": 16, "schedule": "step", "warmup_updates": 500,
    "min_size": 800, "max_size": 1333, "hflip": 0.5, "crop_size": 0, "photometric_distort": 0.0,
    "layer_decay": 1.0, "ema_decay": 0.0,
}  # fmt: skip
ADE20K = {
    "schedule": "poly", "min_size": 512, "max_size": 2048, "scale": [0.5, 2.0], "crop_size": 512,
    "max_class_fraction": 0.75, "hflip": 0.5, "photometric_distort": 0.5, "layer_decay": 1.0, "ema_decay": 0.0,
}  # fmt: skip
FPN = {"lr": 2e-4, "weight_decay": 1e-4, "batch_size": 32, "poly_power": 0.9, "updates": 40_000, "warmup_updates": 0}
UPERNET = {
    "lr": 6e-5,
    "weight_decay": 0.01,
    "batch_size": 16,
    "poly_power": 1.0,
    "updates": 160_000,
    "warmup_updates": 1500,
}
"""arXiv:2202.09741, sections 4.2 and 4.3; values missing there are those of mmdetection and mmsegmentation."""
QUICK: dict[str, Any] = {"precision": "fp32", "workers": 0, "device": "cpu", "batch_size": 5, "log_every": 1}
SMALL: dict[str, Any] = {"model": "van_b0", "init_from": "scratch", "min_size": 64, "max_size": 128}


def resolved(settings: Any) -> dict[str, Any]:
    return json.loads(json.dumps(flatten_settings(settings)))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (CocoRetinanetSettings(**PATHS), COCO),
        (CocoMaskRcnnSettings(**PATHS), COCO),
        (Ade20kFpnSettings(**PATHS), ADE20K | FPN),
        (Ade20kUpernetSettings(**PATHS), ADE20K | UPERNET),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_default_settings_are_those_of_the_paper(settings, expected):
    actual = resolved(settings)
    assert {name: actual[name] for name in expected} == expected


def rates(train: TrainSettings, updates_per_epoch: int, *updates: int) -> list[float]:
    """Return the learning rates of these updates, counted from 0, by the schedule of the training loop."""
    optimizer = make_optimizer(torch.nn.Linear(2, 2), train)
    schedule = make_schedule(optimizer, train, updates_per_epoch)
    values = []
    for update in updates:
        schedule.step_update(update)
        values.append(max(group["lr"] for group in optimizer.param_groups))
    return values


def settings_passed_on(monkeypatch: pytest.MonkeyPatch, settings: CocoRetinanetSettings) -> CocoRetinanetSettings:
    """Return the settings that the recipe passes to ``train_dense``."""
    passed: list[Any] = []
    monkeypatch.setattr(coco, "train_dense", lambda given, **_: passed.append(given))
    coco.run(settings)
    return passed[0]


COCO_UPDATES = 7329
"""117,266 images with annotations at batch size 16."""


@pytest.mark.parametrize(("length", "first", "second", "epochs"), [("1x", 8, 11, 12), ("3x", 27, 33, 36)])
@pytest.mark.parametrize("settings", [CocoRetinanetSettings, CocoMaskRcnnSettings])
def test_the_coco_schedules_warm_up_for_500_updates_and_decay_at_two_milestones(
    monkeypatch, settings, length, first, second, epochs
):
    given = settings_passed_on(monkeypatch, settings(**PATHS, length=length))
    assert given.train.epochs == epochs
    ends = [first * COCO_UPDATES, second * COCO_UPDATES, epochs * COCO_UPDATES]
    actual = rates(given.train, COCO_UPDATES, 0, 250, 500, ends[0] - 1, ends[0], ends[1] - 1, ends[1], ends[2] - 1)
    expected = [1e-7, 0.5e-4, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert actual == pytest.approx(expected, rel=2e-3)  # the warm-up starts at a thousandth


def test_only_the_3x_schedule_of_coco_uses_multi_scale_training(monkeypatch):
    short = settings_passed_on(monkeypatch, CocoRetinanetSettings(**PATHS))
    long = settings_passed_on(monkeypatch, CocoRetinanetSettings(**PATHS, length="3x"))
    assert short.augment == JointAugmentSettings(scale=(1.0, 1.0), hflip=0.5)
    assert [round(800 * factor) for factor in long.augment.scale] == [480, 800]


def test_length_own_keeps_the_settings_and_other_lengths_reject_other_epochs(monkeypatch):
    train = dataclasses.replace(CocoRetinanetSettings(**PATHS).train, epochs=5, milestones=(3,))
    given = CocoRetinanetSettings(**PATHS, length="own", train=train)
    assert settings_passed_on(monkeypatch, given) == given
    with pytest.raises(UsageError, match=r"--epochs.*36.*--length 3x.*5"):
        coco.run(dataclasses.replace(given, length="3x"))


def test_the_ade20k_schedules_decay_polynomially():
    """20,210 images: 631 updates of 32 per epoch of Semantic FPN, 1263 of 16 per epoch of UPerNet."""
    fpn = dataclasses.replace(Ade20kFpnSettings(**PATHS).train, epochs=63)
    updates = 63 * 631
    expected = [2e-4 * (1 - done / updates) ** 0.9 for done in (0, 10_000, 20_000, 39_000)]
    assert rates(fpn, 631, 0, 10_000, 20_000, 39_000) == pytest.approx(expected, rel=1e-3)
    upernet = dataclasses.replace(Ade20kUpernetSettings(**PATHS).train, epochs=127)
    updates = 127 * 1263
    actual = rates(upernet, 1263, 750, 1500, 80_000, 160_000)
    expected = [6e-5 / 2, 6e-5, *(6e-5 * (1 - (done - 1500) / (updates - 1500)) for done in (80_000, 160_000))]
    assert actual == pytest.approx(expected, rel=2e-3)


@pytest.fixture(scope="module")
def coco2017(scenes, tmp_path_factory) -> Path:
    return as_coco2017(scenes, tmp_path_factory.mktemp("coco") / "coco")


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [(CocoRetinanetSettings, "detect", "retinanet"), (CocoMaskRcnnSettings, "instances", "mask_rcnn")],
)
def test_a_short_run_on_coco_stores_the_unchanged_settings(coco2017, tmp_path, kind, task, head):
    given = kind(data=coco2017, out=tmp_path / "run", length="own", **SMALL)
    train = dataclasses.replace(given.train, epochs=1, **QUICK)
    summary = run_coco(dataclasses.replace(given, train=train))
    assert summary.updates == 2
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert {name: stored[name] for name in COCO} == COCO | {"batch_size": 5, "min_size": 64, "max_size": 128}
    assert stored["recipe"] == f"coco-{head.replace('_', '-')}"
    assert (stored["classes"], stored["training_images"], stored["validation_images"]) == (10, 10, 4)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, best.model, best.model_options["head"]) == (task, "van_b0", head)
    assert best.class_names == task_class_names(task)
    assert list(best.task_options["category_ids"]) == list(range(1, 11))
    assert best.preprocess == ResizePreprocess(min_size=64, max_size=128, mean=HALF, std=HALF)
    assert best.metrics == summary.metrics
    assert f"{'mask' if task == 'instances' else 'box'}_ap" in best.metrics
    assert "drop_path_rate" not in best.model_options  # an option of training only


@pytest.mark.parametrize(("kind", "head"), [(Ade20kFpnSettings, "semantic_fpn"), (Ade20kUpernetSettings, "upernet")])
def test_a_short_run_on_ade20k_rounds_updates_to_whole_epochs(scenes, tmp_path, capsys, kind, head):
    given = kind(data=scenes / "ade", out=tmp_path / "run", **{**SMALL, "updates": 3})
    train = dataclasses.replace(given.train, **QUICK)
    augment = dataclasses.replace(given.augment, crop_size=64)
    given = dataclasses.replace(given, train=train, augment=augment)
    summary = run_ade20k(given)
    assert summary.updates == 4  # two epochs of two
    assert "--updates 3: training for 2 epochs" in capsys.readouterr().err
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, best.model_options["head"], best.class_names) == ("segment", head, task_class_names("segment"))
    assert best.preprocess == ResizePreprocess(min_size=64, max_size=128, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert (stored["epochs"], stored["updates"], stored["schedule"]) == (2, 3, "poly")
    assert run_ade20k(dataclasses.replace(given, resume=True)).updates == 4  # resumes a finished run


def test_a_negative_number_of_updates_raises():
    with pytest.raises(UsageError, match=r"--updates.*0.*-1"):
        Ade20kFpnSettings(**PATHS, updates=-1)
