"""Detection and segmentation on one's own pictures: a tiny run of every task, and what stops one before it begins."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from data.made import write_checkpoint
from data.made_marked import edit_json, labels_of, set_of, write_scenes
from engine.tiny import same_bits
from van import Predictor, load_checkpoint
from van.data.marked_set import MarkedSet
from van.data.scene_augment import SceneAugmentSettings
from van.engine.settings import TrainSettings
from van.errors import DataError, HubError, Interrupted, RunExists, UsageError
from van.models.load import create
from van.preprocess import HALF, WholePreprocess
from van.recipes.marked import DetectSettings, InstancesSettings, PanopticSettings, SegmentSettings, run
from van.results import Boxes, Masks

SHORT = TrainSettings(epochs=1, batch_size=5, lr=1e-4, warmup_epochs=0, device="cpu", log_every=1)
KINDS = {
    "detect": DetectSettings, "instances": InstancesSettings, "segment": SegmentSettings, "panoptic": PanopticSettings
}  # fmt: skip
HEADS = {"detect": "retinanet", "instances": "mask_rcnn", "segment": "semantic_fpn", "panoptic": "mask2former"}


def settings(scenes: Path, out: Path, task: str, train: TrainSettings = SHORT, **more: Any) -> Any:
    common: dict[str, Any] = {"data": set_of(scenes, task), "out": out, "train": train, "start": "scratch"}
    common |= {"model": "van_b0", "short_px": 64, "long_px": 128}
    if task in ("segment", "panoptic"):
        common["augment"] = SceneAugmentSettings(scale=(0.5, 2.0), crop_px=64, distort=0.5)
    if task == "panoptic":
        common["queries"] = 8
    return KINDS[task](**{**common, **more})


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Four scenes to learn from and two held out, for the networks that take a second for each."""
    return write_scenes(tmp_path_factory.mktemp("few") / "scenes", train=4, validation=2)


def recipe(out: Path) -> dict[str, Any]:
    return json.loads((out / "settings.json").read_text())["recipe"]


@pytest.mark.parametrize(
    ("task", "head"),
    [
        *HEADS.items(),
        ("detect", "d_fine"),
        ("segment", "upernet"),
        *(pytest.param("detect", head, marks=pytest.mark.slow) for head in ("fcos", "faster_rcnn")),
        *(pytest.param("detect", head, marks=pytest.mark.slow) for head in ("rt_detr_v2", "deformable_detr")),
    ],
)
def test_two_updates_leave_a_network_that_knows_its_task_and_answers(few, tmp_path, task, head):
    more = {"head": head} if head != HEADS[task] else {}
    summary = run(settings(few, tmp_path / "run", task, dataclasses.replace(SHORT, batch_size=2), **more))
    assert summary.updates == summary.best_update == 2
    assert not summary.unreadable
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, best.model, best.model_options["head"]) == (task, "van_b0", head)
    assert best.labels == labels_of(task)
    assert best.preprocess == WholePreprocess(short_px=64, long_px=128, mean=HALF, std=HALF)
    if task in ("detect", "instances"):
        assert list(best.task_options["category_ids"]) == list(range(1, 11))
    if task == "panoptic":
        assert list(best.task_options["things"]) == [True] * 10 + [False]
        assert best.model_options["queries"] == 8
    headline = {"detect": "box_ap", "instances": "mask_ap", "segment": "mean_iou", "panoptic": "pq"}[task]
    assert 0 <= summary.metrics[headline] <= 1
    stored = recipe(tmp_path / "run")
    assert (stored["recipe"], stored["training_pictures"], stored["validation_pictures"]) == (task, 4, 2)
    predictor = Predictor.load(tmp_path / "run" / "best.safetensors", device="cpu")
    answer = predictor(few / "coco" / "val" / "000000.png")
    assert isinstance(answer, Boxes if task in ("detect", "instances") else Masks)
    assert answer.labels == best.labels


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory) -> Path:
    """A finished run of segmentation, on its own copy of the scenes: ``run`` beside ``scenes``."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(scenes, root / "scenes")
    run(settings(root / "scenes", root / "run", "segment"))
    return root


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_bits_it_would_have_had(finished, tmp_path, monkeypatch):
    given = settings(finished / "scenes", tmp_path / "run", "segment")
    read, reads = MarkedSet.__getitem__, []

    def stopping(self, index: int):
        reads.append(index)
        if len(reads) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(MarkedSet, "__getitem__", stopping)
        with pytest.raises(Interrupted, match="after update 1 of 2"):
            run(given)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    run(dataclasses.replace(given, resume=True))
    for name in ("best.safetensors", "last.safetensors"):
        assert same_bits(finished / "run" / name, tmp_path / "run" / name) == []
    with pytest.raises(UsageError, match=r"--resume goes on with the same settings, but seed was 0 and is now 1"):
        run(dataclasses.replace(given, out=tmp_path / "other", train=dataclasses.replace(SHORT, seed=1), resume=True))


def test_a_run_on_other_pictures_is_not_gone_on_with(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    for kind in ("images", "annotations"):
        folder = root / "scenes" / "ade" / kind / "training"
        shutil.copy(folder / "000000.png", folder / "more.png")
    given = settings(root / "scenes", root / "run", "segment", resume=True)
    with pytest.raises(UsageError, match=r"the pictures have changed since .* began .training pictures 10 -> 11"):
        run(given)


def test_a_folder_with_a_run_is_refused_before_anything_is_read(finished, tmp_path):
    with pytest.raises(RunExists, match="already holds a run"):
        run(settings(tmp_path / "nowhere", finished / "run", "segment"))


@pytest.mark.parametrize(("task", "backbone"), [("detect", "detector.backbone.body."), ("segment", "backbone.")])
def test_a_frozen_backbone_keeps_every_bit_of_the_checkpoint_it_came_from(scenes, tmp_path, task, backbone, capsys):
    start = write_checkpoint(tmp_path / "start.safetensors")
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    run(settings(scenes, tmp_path / "run", task, train, start=str(start)))
    before = {name: tensor for name, tensor in load_checkpoint(start).state.items() if not name.startswith("head.")}
    after = load_checkpoint(tmp_path / "run" / "last.safetensors").state
    of_backbone = {name.removeprefix(backbone): name for name in after if name.startswith(backbone)}
    assert set(of_backbone) == set(before)
    assert all(after[of_backbone[name]].equal(tensor) for name, tensor in before.items())
    torch.manual_seed(SHORT.seed)
    options = {"head": HEADS[task], "drop_path_rate": 0.1}
    fresh = create("van_b0", num_classes=len(labels_of(task)), options=options).state_dict()
    still = {name for name in fresh if after[name].equal(fresh[name])} - set(of_backbone.values())
    assert still == {name for name in still if fresh[name].numel() == 1}  # nothing but counters


def test_without_freezing_the_backbone_learns_too(scenes, tmp_path):
    """The control of the test above."""
    start = write_checkpoint(tmp_path / "start.safetensors")
    run(settings(scenes, tmp_path / "run", "segment", start=str(start)))
    before, after = load_checkpoint(start).state, load_checkpoint(tmp_path / "run" / "last.safetensors").state
    assert not any(after[f"backbone.{name}"].equal(before[name]) for name in before if name.endswith("proj_1.weight"))


def test_the_rule_of_the_starting_weights_travels_with_the_network(scenes, tmp_path):
    start = write_checkpoint(tmp_path / "start.safetensors")
    stored = load_checkpoint(start)
    rule = dataclasses.replace(stored.preprocess, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    dataclasses.replace(stored, preprocess=rule).save(start)
    given = settings(scenes, tmp_path / "run", "segment", start=str(start))
    run(given)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.preprocess.mean, best.preprocess.std) == (rule.mean, rule.std)
    start.unlink()
    assert run(dataclasses.replace(given, resume=True)).updates == 2  # the run holds all that it needs
    again = settings(scenes, tmp_path / "boxes", "detect", start=str(tmp_path / "run" / "best.safetensors"))
    run(again)  # the backbone of a network with another head
    after = load_checkpoint(tmp_path / "boxes" / "best.safetensors")
    assert (after.task, after.preprocess.mean) == ("detect", rule.mean)


def test_a_batch_larger_than_the_set_is_lowered_and_told(scenes, tmp_path, capsys):
    train = dataclasses.replace(SHORT, batch_size=64)
    assert run(settings(scenes, tmp_path / "run", "segment", train)).updates == 1
    assert "--batch-size lowered to 10: there are 10 pictures to train on" in capsys.readouterr().err
    assert recipe(tmp_path / "run")["batch_size"] == 10


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def test_unreadable_pictures_are_passed_over_and_named(copied, tmp_path, capsys):
    path = copied / "ade" / "images" / "training" / "000009.png"
    path.write_bytes(path.read_bytes()[:200])
    train = dataclasses.replace(SHORT, max_unreadable=0.2)
    summary = run(settings(copied, tmp_path / "run", "segment", train))
    (name,) = summary.unreadable
    assert name.endswith("000009.png")
    assert "passed over" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["detect", "instances"])
def test_a_picture_of_a_single_pixel_is_learnt_from(copied, tmp_path, task):
    """It is enlarged like any other; its thing fills it."""
    for part in ("train", "val"):
        path = copied / "coco" / "annotations" / f"instances_{part}.json"
        Image.new("RGB", (1, 1), (200, 30, 30)).save(copied / "coco" / part / "dot.png")
        image = {"id": 999, "file_name": "dot.png", "width": 1, "height": 1}
        thing = {
            "id": 9999, "image_id": 999, "category_id": 3, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0,
            "segmentation": {"size": [1, 1], "counts": [0, 1]},
        }  # fmt: skip
        edit_json(path, images=[image], annotations=[thing])
    train = dataclasses.replace(SHORT, batch_size=1)
    summary = run(settings(copied, tmp_path / "run", task, train))
    assert summary.updates == 1
    answer = Predictor.load(tmp_path / "run" / "best.safetensors", min_score=0)(copied / "coco" / "train" / "dot.png")
    assert answer.size == (1, 1)


def test_other_classes_to_measure_than_to_learn_are_named(copied, tmp_path):
    path = copied / "coco" / "annotations" / "instances_val.json"
    categories = json.loads(path.read_text())["categories"]
    edit_json(path, categories=[{**one, "name": f"digit {one['name']}"} for one in categories])
    with pytest.raises(DataError, match=r"its classes differ from those of instances_val\.json: here alone 0, 1, 2"):
        run(settings(copied, tmp_path / "run", "detect"))
    assert not (tmp_path / "run").exists()


def test_boxes_alone_teach_no_outlines_but_boxes(copied, tmp_path):
    for part in ("train", "val"):
        path = copied / "coco" / "annotations" / f"instances_{part}.json"
        annotations = json.loads(path.read_text())["annotations"]
        edit_json(path, annotations=[{k: v for k, v in one.items() if k != "segmentation"} for one in annotations])
    with pytest.raises(DataError, match="has an outline; to learn masks, outlines are needed"):
        run(settings(copied, tmp_path / "run", "instances"))
    assert not (tmp_path / "run").exists()
    assert run(settings(copied, tmp_path / "run", "detect")).updates == 2


@pytest.mark.parametrize(
    ("task", "values", "kind", "message"),
    [
        ("detect", {"data": Path("nowhere")}, DataError, "nowhere: no such folder"),
        ("detect", {"model": "van_b9"}, UsageError, "there is no 'van_b9' to build on; known: van_b0"),
        ("detect", {"model": "resnet18"}, UsageError, "there is no 'resnet18' to build on"),
        ("detect", {"start": "pretrained"}, HubError, "van_b0"),
        ("segment", {"start": "nowhere.pth"}, Exception, "nowhere.pth: no such file"),
        ("segment", {"train": dataclasses.replace(SHORT, device="tpu")}, UsageError, "--device is 'tpu'"),
        ("segment", {"short_px": 0}, UsageError, "--short-px is 0, --long-px 128; wanted 0 < short <= long"),
        ("segment", {"short_px": 256}, UsageError, "--short-px is 256, --long-px 128"),
        ("segment", {"drop_path_rate": 1.0}, UsageError, "--drop-path-rate is 1.0"),
        ("segment", {"head": "upernet", "train": dataclasses.replace(SHORT, batch_size=1)}, UsageError, "one picture"),
        (
            "segment",
            {"augment": SceneAugmentSettings(crop_px=32), "train": dataclasses.replace(SHORT, batch_size=1)},
            UsageError,
            "--batch-size 1 is one picture of 32 px a step, and BatchNorm needs two",
        ),
        (
            "segment",
            {
                "augment": SceneAugmentSettings(crop_px=32),
                "train": dataclasses.replace(SHORT, batch_size=1, batch_norm="frozen"),
            },
            UsageError,
            "--batch-size 1 is one picture a step, of which the BatchNorm of this head sees a single pixel",
        ),
    ],
)
def test_what_cannot_be_trained_is_named_and_leaves_no_run_behind(scenes, tmp_path, task, values, kind, message):
    with pytest.raises(kind, match=message):
        run(settings(scenes, tmp_path / "run", task, **values))
    assert not (tmp_path / "run").exists()


def test_the_backbone_is_the_one_that_the_starting_weights_hold(tmp_path, scenes, capsys):
    """Its size is read off the file, as for classification: nobody has to say it twice."""
    source = tmp_path / "small.pth"
    torch.save(create("van_b0", num_classes=3).state_dict(), source)
    run(settings(scenes, tmp_path / "run", "segment", start=str(source), model="van_b1"))
    assert f"the backbone is van_b0, which {source} holds, and not --model van_b1" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").model == "van_b0"
