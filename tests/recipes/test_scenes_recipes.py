"""The scenes recipes: a handful of scenes, written once, learnt for an epoch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data.made import write_checkpoint
from data.made_marked import labels_of, write_scenes
from van import Predictor, load_checkpoint
from van.errors import DataError, RunExists, UsageError
from van.models.catalogue import HEADS
from van.recipes.begin import flat
from van.recipes.scenes import (
    ScenesDetectSettings,
    ScenesInstancesSettings,
    ScenesPanopticSettings,
    ScenesSegmentSettings,
    ScenesSettings,
    run,
)
from van.results import Boxes, Masks

KINDS = {
    "detect": ScenesDetectSettings, "instances": ScenesInstancesSettings, "segment": ScenesSegmentSettings,
    "panoptic": ScenesPanopticSettings,
}  # fmt: skip


def settings(task: str, out: Path, **more: Any) -> ScenesSettings:
    """An epoch of one update, from scratch, on eight scenes; four are held out."""
    given = KINDS[task](out=out, **{"start": "scratch", "train_scenes": 8, "val_scenes": 4, "short_px": 64, **more})
    short = {"epochs": 1, "batch_size": 8, "device": "cpu", "log_every": 1}
    return dataclasses.replace(given, train=dataclasses.replace(given.train, **short))


def dates(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def segmented(tmp_path_factory) -> Path:
    """A finished run of segmentation with its scenes beneath it. Not to be changed."""
    out = tmp_path_factory.mktemp("segmented") / "run"
    run(settings("segment", out))
    return out


@pytest.mark.parametrize("task", [task for task in KINDS if task != "segment"])
def test_every_task_learns_the_same_scenes_and_leaves_a_network_that_answers(segmented, tmp_path, task):
    scenes = segmented / "scenes"
    before = dates(scenes)
    summary = run(settings(task, tmp_path / "run", scenes=scenes, train_scenes=99))
    assert dates(scenes) == before  # an earlier run's, and as many as they are
    assert not (tmp_path / "run" / "scenes").exists()
    assert (summary.updates, summary.unreadable) == (1, {})
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, HEADS[best.model_options["head"]], best.labels) == (task, task, labels_of(task))
    answer = Predictor.load(tmp_path / "run" / "best.safetensors")(scenes / "coco" / "val" / "000001.png")
    assert isinstance(answer, Masks if task == "panoptic" else Boxes)


def test_scenes_are_written_beneath_the_run_where_no_folder_is_named(segmented):
    assert len(list((segmented / "scenes" / "coco" / "train").glob("*.png"))) == 8
    assert len(list((segmented / "scenes" / "coco" / "val").glob("*.png"))) == 4
    best = load_checkpoint(segmented / "best.safetensors")
    assert (best.task, best.model_options["head"], best.labels) == ("segment", "semantic_fpn", labels_of("segment"))
    assert best.preprocess.short_px == 64
    stored = json.loads((segmented / "settings.json").read_text())["recipe"]
    given = json.loads(json.dumps(flat(settings("segment", segmented))))
    assert stored == given | {"classes": 11, "training_pictures": 8, "validation_pictures": 4}


def test_a_finished_run_goes_on_to_nothing_and_is_not_begun_again(segmented):
    scenes = dates(segmented / "scenes")
    assert run(settings("segment", segmented, resume=True)).pictures_per_s == 0
    assert dates(segmented / "scenes") == scenes
    with pytest.raises(RunExists, match="already holds a run"):
        run(settings("segment", segmented))


def test_a_folder_with_something_else_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="mine holds no digit scenes; name a new folder, or one that van data"):
        run(settings("detect", tmp_path / "run", scenes=tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    assert not (tmp_path / "run" / "settings.json").exists()


def test_scenes_that_the_data_verb_wrote_are_used(tmp_path):
    write_scenes(tmp_path / "scenes", train=8, validation=2)
    assert run(settings("segment", tmp_path / "run", scenes=tmp_path / "scenes")).updates == 1
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert (stored["training_pictures"], stored["validation_pictures"]) == (8, 2)


def test_a_classifier_of_one_s_own_hands_on_its_backbone_and_its_colours(segmented, tmp_path):
    start = write_checkpoint(tmp_path / "start.safetensors")
    stored = load_checkpoint(start)
    dataclasses.replace(stored, preprocess=dataclasses.replace(stored.preprocess, mean=(0.1, 0.2, 0.3))).save(start)
    given = settings("segment", tmp_path / "run", scenes=segmented / "scenes", start=str(start))
    frozen = dataclasses.replace(given, train=dataclasses.replace(given.train, freeze_backbone=True))
    run(frozen)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.preprocess.mean == (0.1, 0.2, 0.3)
    assert best.state["backbone.norm4.weight"].equal(stored.state["norm4.weight"])
    assert not (tmp_path / "run" / "digits").exists()


@pytest.mark.slow
def test_a_classifier_of_the_digits_is_learnt_first_once_where_none_is_given(segmented, tmp_path, capsys):
    given = settings("segment", tmp_path / "run", scenes=segmented / "scenes", start="digits")
    run(given)
    classifier = load_checkpoint(tmp_path / "run" / "digits" / "best.safetensors")
    assert classifier.labels == tuple("0123456789")
    assert classifier.metrics["top1"] > 0.9
    assert f"learning single digits first, into {tmp_path / 'run' / 'digits'}" in capsys.readouterr().err
    stored = json.loads((tmp_path / "run" / "settings.json").read_text())["recipe"]
    assert stored["start"] == str(tmp_path / "run" / "digits" / "best.safetensors")
    assert run(dataclasses.replace(given, resume=True)).pictures_per_s == 0
    assert "learning single digits" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train_scenes", "val_scenes"])
def test_a_number_of_scenes_below_1_is_refused(name):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is 0; wanted at least 1"):
        ScenesDetectSettings(out=Path(), **{name: 0})
