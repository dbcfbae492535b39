"""The paper's recipes for COCO and ADE20K: every number they state, and a short run of each on sets laid out alike."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data.made_marked import as_coco2017, labels_of
from van import load_checkpoint
from van.data.scene_augment import SceneAugmentSettings
from van.engine.optimiser import make_optimiser, make_schedule
from van.engine.settings import TrainSettings
from van.errors import UsageError
from van.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, WholePreprocess
from van.recipes import coco
from van.recipes.ade20k import Ade20kFpnSettings, Ade20kUpernetSettings
from van.recipes.ade20k import run as run_ade20k
from van.recipes.begin import flat
from van.recipes.coco import CocoMaskRcnnSettings, CocoRetinanetSettings
from van.recipes.coco import run as run_coco

PLACES: dict[str, Any] = {"data": Path("data"), "out": Path("out")}
COCO = {
    "lr": 1e-4, "weight_decay": 0.05, "batch_size": 16, "schedule": "step", "warmup_updates": 500,
    "short_px": 800, "long_px": 1333, "flip": 0.5, "crop_px": 0, "distort": 0.0, "layer_decay": 1.0, "ema_decay": 0.0,
}  # fmt: skip
ADE20K = {
    "schedule": "poly", "short_px": 512, "long_px": 2048, "scale": [0.5, 2.0], "crop_px": 512,
    "largest_class": 0.75, "flip": 0.5, "distort": 0.5, "layer_decay": 1.0, "ema_decay": 0.0,
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
"""arXiv:2202.09741, sections 4.2 and 4.3; what they leave open is mmdetection's and mmsegmentation's."""
QUICK: dict[str, Any] = {"precision": "fp32", "workers": 0, "device": "cpu", "batch_size": 5, "log_every": 1}
SMALL: dict[str, Any] = {"model": "van_b0", "start": "scratch", "short_px": 64, "long_px": 128}


def resolved(settings: Any) -> dict[str, Any]:
    return json.loads(json.dumps(flat(settings)))


@pytest.mark.parametrize(
    ("settings", "stated"),
    [
        (CocoRetinanetSettings(**PLACES), COCO),
        (CocoMaskRcnnSettings(**PLACES), COCO),
        (Ade20kFpnSettings(**PLACES), ADE20K | FPN),
        (Ade20kUpernetSettings(**PLACES), ADE20K | UPERNET),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_settings_are_the_paper_s(settings, stated):
    found = resolved(settings)
    assert {name: found[name] for name in stated} == stated


def rates(train: TrainSettings, updates_per_epoch: int, *updates: int) -> list[float]:
    """The learning rate of these updates, counted from 0, by the engine's own schedule."""
    optimiser = make_optimiser(torch.nn.Linear(2, 2), train)
    schedule = make_schedule(optimiser, train, updates_per_epoch)
    found = []
    for update in updates:
        schedule.step_update(update)
        found.append(max(group["lr"] for group in optimiser.param_groups))
    return found


def trained_with(monkeypatch: pytest.MonkeyPatch, settings: CocoRetinanetSettings) -> CocoRetinanetSettings:
    """What the recipe hands on: the settings of the length that was chosen."""
    seen: list[Any] = []
    monkeypatch.setattr(coco, "train_dense", lambda given, **_: seen.append(given))
    coco.run(settings)
    return seen[0]


COCO_UPDATES = 7329
"""117,266 pictures with something in them, 16 at once."""


@pytest.mark.parametrize(("length", "first", "second", "epochs"), [("1x", 8, 11, 12), ("3x", 27, 33, 36)])
@pytest.mark.parametrize("settings", [CocoRetinanetSettings, CocoMaskRcnnSettings])
def test_coco_s_learning_rate_rises_for_500_updates_and_falls_tenfold_twice(
    monkeypatch, settings, length, first, second, epochs
):
    given = trained_with(monkeypatch, settings(**PLACES, length=length))
    assert given.train.epochs == epochs
    ends = [first * COCO_UPDATES, second * COCO_UPDATES, epochs * COCO_UPDATES]
    found = rates(given.train, COCO_UPDATES, 0, 250, 500, ends[0] - 1, ends[0], ends[1] - 1, ends[1], ends[2] - 1)
    wanted = [1e-7, 0.5e-4, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6]
    assert found == pytest.approx(wanted, rel=2e-3)  # the rise begins at a thousandth


def test_only_the_long_run_on_coco_sees_pictures_of_several_sizes(monkeypatch):
    short = trained_with(monkeypatch, CocoRetinanetSettings(**PLACES))
    long = trained_with(monkeypatch, CocoRetinanetSettings(**PLACES, length="3x"))
    assert short.augment == SceneAugmentSettings(scale=(1.0, 1.0), flip=0.5)
    assert [round(800 * factor) for factor in long.augment.scale] == [480, 800]


def test_a_length_of_one_s_own_leaves_the_settings_alone_and_others_refuse_other_epochs(monkeypatch):
    train = dataclasses.replace(CocoRetinanetSettings(**PLACES).train, epochs=5, milestones=(3,))
    given = CocoRetinanetSettings(**PLACES, length="own", train=train)
    assert trained_with(monkeypatch, given) == given
    with pytest.raises(UsageError, match="--epochs is 5 and --length 3x has 36; leave --epochs out, or say --length"):
        coco.run(dataclasses.replace(given, length="3x"))


def test_ade20k_s_learning_rates_fall_by_a_power_of_what_is_left():
    """20,210 pictures: 631 updates of 32 in an epoch of Semantic FPN, 1263 of 16 in one of UPerNet."""
    fpn = dataclasses.replace(Ade20kFpnSettings(**PLACES).train, epochs=63)
    updates = 63 * 631
    wanted = [2e-4 * (1 - done / updates) ** 0.9 for done in (0, 10_000, 20_000, 39_000)]
    assert rates(fpn, 631, 0, 10_000, 20_000, 39_000) == pytest.approx(wanted, rel=1e-3)
    upernet = dataclasses.replace(Ade20kUpernetSettings(**PLACES).train, epochs=127)
    updates = 127 * 1263
    found = rates(upernet, 1263, 750, 1500, 80_000, 160_000)
    wanted = [6e-5 / 2, 6e-5, *(6e-5 * (1 - (done - 1500) / (updates - 1500)) for done in (80_000, 160_000))]
    assert found == pytest.approx(wanted, rel=2e-3)


@pytest.fixture(scope="module")
def coco2017(scenes, tmp_path_factory) -> Path:
    return as_coco2017(scenes, tmp_path_factory.mktemp("coco") / "coco")


@pytest.mark.parametrize(
    ("kind", "task", "head"),
    [(CocoRetinanetSettings, "detect", "retinanet"), (CocoMaskRcnnSettings, "instances", "mask_rcnn")],
)
def test_a_short_run_on_coco_keeps_every_setting_that_was_not_changed(coco2017, tmp_path, kind, task, head):
    given = kind(data=coco2017, out=tmp_path / "run", length="own", **SMALL)
    train = dataclasses.replace(given.train, epochs=1, **QUICK)
    summary = run_coco(dataclasses.replace(given, train=train))
    assert summary.updates == 2
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert {name: stored[name] for name in COCO} == COCO | {"batch_size": 5, "short_px": 64, "long_px": 128}
    assert stored["recipe"] == kind.__name__.removesuffix("Settings").lower()
    assert (stored["classes"], stored["training_pictures"], stored["validation_pictures"]) == (10, 10, 4)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, best.model, best.model_options["head"]) == (task, "van_b0", head)
    assert best.labels == labels_of(task)
    assert list(best.task_options["category_ids"]) == list(range(1, 11))
    assert best.preprocess == WholePreprocess(short_px=64, long_px=128, mean=HALF, std=HALF)
    assert best.metrics == summary.metrics
    assert f"{'mask' if task == 'instances' else 'box'}_ap" in best.metrics
    assert "drop_path_rate" not in best.model_options  # a habit of training, not of the network


@pytest.mark.parametrize(("kind", "head"), [(Ade20kFpnSettings, "semantic_fpn"), (Ade20kUpernetSettings, "upernet")])
def test_a_short_run_on_ade20k_takes_as_many_updates_as_it_was_told(scenes, tmp_path, capsys, kind, head):
    given = kind(data=scenes / "ade", out=tmp_path / "run", **{**SMALL, "updates": 3})
    train = dataclasses.replace(given.train, **QUICK)
    augment = dataclasses.replace(given.augment, crop_px=64)
    given = dataclasses.replace(given, train=train, augment=augment)
    summary = run_ade20k(given)
    assert summary.updates == 4  # two epochs of two
    assert "3 updates are 2 epochs of 10 pictures" in capsys.readouterr().err
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, best.model_options["head"], best.labels) == ("segment", head, labels_of("segment"))
    assert best.preprocess == WholePreprocess(short_px=64, long_px=128, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert (stored["epochs"], stored["updates"], stored["schedule"]) == (2, 3, "poly")
    assert run_ade20k(dataclasses.replace(given, resume=True)).updates == 4  # and it knows itself again


def test_a_number_of_updates_below_0_is_refused():
    with pytest.raises(UsageError, match="--updates is -1; wanted at least 0"):
        Ade20kFpnSettings(**PLACES, updates=-1)
