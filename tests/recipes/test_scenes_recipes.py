"""The scenes recipes: one epoch of each task on a few generated scenes."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from datasets.synthetic import write_checkpoint
from datasets.synthetic_annotated import task_class_names, write_scenes
from van import load_checkpoint
from van.errors import DataError, RunExists, UsageError
from van.heads import HEADS
from van.model import Model
from van.predict import Predictor
from van.predictions import Detections, Segmentation
from van.recipes.scenes import (
    ScenesDetectSettings,
    ScenesInstancesSettings,
    ScenesPanopticSettings,
    ScenesSegmentSettings,
    ScenesSettings,
    run,
)
from van.recipes.validation import flatten_settings

KINDS = {
    "detect": ScenesDetectSettings, "instances": ScenesInstancesSettings, "segment": ScenesSegmentSettings,
    "panoptic": ScenesPanopticSettings,
}  # fmt: skip


def settings(task: str, out: Path, **more: Any) -> ScenesSettings:
    """Return settings for one epoch of one update, from scratch, on eight training and four validation scenes."""
    given = KINDS[task](out=out, **{"init_from": "scratch", "train_scenes": 8, "val_scenes": 4, "min_size": 64, **more})
    short = {"epochs": 1, "batch_size": 8, "device": "cpu", "log_every": 1}
    return dataclasses.replace(given, train=dataclasses.replace(given.train, **short))


def modification_times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def segmented(tmp_path_factory) -> Path:
    """A finished run of semantic segmentation with its scenes in its folder. Read only."""
    out = tmp_path_factory.mktemp("segmented") / "run"
    run(settings("segment", out))
    return out


@pytest.mark.parametrize("task", [task for task in KINDS if task != "segment"])
def test_every_task_trains_on_the_same_scenes_and_saves_a_checkpoint_that_predicts(segmented, tmp_path, task):
    scenes = segmented / "scenes"
    before = modification_times(scenes)
    summary = run(settings(task, tmp_path / "run", data=scenes, train_scenes=99))
    assert modification_times(scenes) == before  # existing scenes are reused as they are
    assert not (tmp_path / "run" / "scenes").exists()
    assert (summary.updates, summary.unreadable) == (1, {})
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, HEADS[best.model_options["head"]].task, best.class_names) == (task, task, task_class_names(task))
    prediction = Predictor(Model.load(tmp_path / "run" / "best.safetensors"))(scenes / "coco" / "val" / "000001.png")
    assert isinstance(prediction, Segmentation if task == "panoptic" else Detections)


def test_scenes_are_generated_in_the_run_folder_by_default(segmented):
    assert len(list((segmented / "scenes" / "coco" / "train").glob("*.png"))) == 8
    assert len(list((segmented / "scenes" / "coco" / "val").glob("*.png"))) == 4
    best = load_checkpoint(segmented / "best.safetensors")
    assert (best.task, best.model_options["head"], best.class_names) == (
        "segment",
        "semantic_fpn",
        task_class_names("segment"),
    )
    assert best.preprocess.min_size == 64
    stored = json.loads((segmented / "settings.json").read_text())["recipe"]
    given = json.loads(json.dumps(flatten_settings(settings("segment", segmented))))
    assert stored == given | {"classes": 11, "training_images": 8, "validation_images": 4}


def test_resuming_a_finished_run_changes_nothing_and_it_is_not_overwritten(segmented):
    scenes = modification_times(segmented / "scenes")
    assert run(settings("segment", segmented, resume=True)).images_per_s == 0
    assert modification_times(segmented / "scenes") == scenes
    with pytest.raises(RunExists, match="--resume"):
        run(settings("segment", segmented))


def test_a_folder_with_other_files_raises_and_is_not_modified(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="mine"):
        run(settings("detect", tmp_path / "run", data=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    assert not (tmp_path / "run" / "settings.json").exists()


def test_scenes_written_by_van_data_are_used(tmp_path):
    write_scenes(tmp_path / "scenes", train=8, validation=2)
    assert run(settings("segment", tmp_path / "run", data=tmp_path / "scenes")).updates == 1
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert (stored["training_images"], stored["validation_images"]) == (8, 2)


def test_the_backbone_and_the_normalization_come_from_the_initial_checkpoint(segmented, tmp_path):
    start = write_checkpoint(tmp_path / "start.safetensors")
    stored = load_checkpoint(start)
    dataclasses.replace(stored, preprocess=dataclasses.replace(stored.preprocess, mean=(0.1, 0.2, 0.3))).save(start)
    given = settings("segment", tmp_path / "run", data=segmented / "scenes", init_from=str(start))
    frozen = dataclasses.replace(given, train=dataclasses.replace(given.train, freeze_backbone=True))
    run(frozen)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.preprocess.mean == (0.1, 0.2, 0.3)
    assert best.state["backbone.norm4.weight"].equal(stored.state["norm4.weight"])
    assert not (tmp_path / "run" / "digits").exists()


@pytest.mark.slow
def test_a_classifier_of_digits_is_trained_first_by_default_and_only_once(segmented, tmp_path, capsys):
    given = settings("segment", tmp_path / "run", data=segmented / "scenes", init_from="digits")
    run(given)
    classifier = load_checkpoint(tmp_path / "run" / "digits" / "best.safetensors")
    assert classifier.class_names == tuple("0123456789")
    assert classifier.metrics["top1"] > 0.9
    assert f"in {tmp_path / 'run' / 'digits'}" in capsys.readouterr().err
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert stored["init_from"] == str(tmp_path / "run" / "digits" / "best.safetensors")
    assert run(dataclasses.replace(given, resume=True)).images_per_s == 0
    assert "classifier of single digits" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_scenes", "val_scenes"])
def test_fewer_than_one_scene_raises(name):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}.*1.*0"):
        ScenesDetectSettings(out=Path(), **{name: 0})
