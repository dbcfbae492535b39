"""The detection and segmentation recipes: a short run of every task, resume, and errors before a run starts."""

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

from datasets.synthetic import write_checkpoint
from datasets.synthetic_annotated import dataset_root, edit_json, task_class_names, write_scenes
from training.tiny import differing_tensors
from van import load_checkpoint
from van.datasets.augment import JointAugmentSettings
from van.datasets.dense_dataset import DenseDataset
from van.errors import DataError, HubError, Interrupted, RunExists, UsageError
from van.heads import create_model
from van.model import Model
from van.predict import Predictor
from van.predictions import Detections, Segmentation
from van.preprocess import HALF, ResizePreprocess
from van.recipes.dense_tasks import DetectSettings, InstancesSettings, PanopticSettings, SegmentSettings, run
from van.training.settings import TrainSettings

SHORT = TrainSettings(epochs=1, batch_size=5, lr=1e-4, warmup_epochs=0, device="cpu", log_every=1)
KINDS = {
    "detect": DetectSettings, "instances": InstancesSettings, "segment": SegmentSettings, "panoptic": PanopticSettings
}  # fmt: skip
HEADS = {"detect": "retinanet", "instances": "mask_rcnn", "segment": "semantic_fpn", "panoptic": "mask2former"}


def settings(scenes: Path, out: Path, task: str, train: TrainSettings = SHORT, **more: Any) -> Any:
    common: dict[str, Any] = {"data": dataset_root(scenes, task), "out": out, "train": train, "init_from": "scratch"}
    common |= {"model": "van_b0", "min_size": 64, "max_size": 128}
    if task in ("segment", "panoptic"):
        common["augment"] = JointAugmentSettings(scale=(0.5, 2.0), crop_size=64, photometric_distort=0.5)
    if task == "panoptic":
        common["queries"] = 8
    return KINDS[task](**{**common, **more})


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """Four training and two validation scenes, for networks that take a second per image."""
    return write_scenes(tmp_path_factory.mktemp("few") / "scenes", train=4, validation=2)


def stored_recipe(out: Path) -> dict[str, Any]:
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
def test_a_short_run_saves_a_checkpoint_that_predicts(few, tmp_path, task, head):
    more = {"head": head} if head != HEADS[task] else {}
    summary = run(settings(few, tmp_path / "run", task, dataclasses.replace(SHORT, batch_size=2), **more))
    assert summary.updates == summary.best_update == 2
    assert not summary.unreadable
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.task, best.model, best.model_options["head"]) == (task, "van_b0", head)
    assert best.class_names == task_class_names(task)
    assert best.preprocess == ResizePreprocess(min_size=64, max_size=128, mean=HALF, std=HALF)
    if task in ("detect", "instances"):
        assert list(best.task_options["category_ids"]) == list(range(1, 11))
    if task == "panoptic":
        assert list(best.task_options["things"]) == [True] * 10 + [False]
        assert best.model_options["queries"] == 8
    monitor = {"detect": "box_ap", "instances": "mask_ap", "segment": "mean_iou", "panoptic": "pq"}[task]
    assert 0 <= summary.metrics[monitor] <= 1
    stored = stored_recipe(tmp_path / "run")
    assert (stored["recipe"], stored["training_images"], stored["validation_images"]) == (task, 4, 2)
    predictor = Predictor(Model.load(tmp_path / "run" / "best.safetensors"), device="cpu")
    prediction = predictor(few / "coco" / "val" / "000000.png")
    assert isinstance(prediction, Detections if task in ("detect", "instances") else Segmentation)
    assert prediction.class_names == best.class_names


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory) -> Path:
    """A finished run of semantic segmentation in ``run`` with its own copy of the scenes in ``scenes``."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(scenes, root / "scenes")
    run(settings(root / "scenes", root / "run", "segment"))
    return root


def test_a_stopped_and_resumed_run_ends_with_the_same_bits(finished, tmp_path, monkeypatch):
    given = settings(finished / "scenes", tmp_path / "run", "segment")
    read, reads = DenseDataset.__getitem__, []

    def stopping(self, index: int):
        reads.append(index)
        if len(reads) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(DenseDataset, "__getitem__", stopping)
        with pytest.raises(Interrupted, match="after update 1 of 2"):
            run(given)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    run(dataclasses.replace(given, resume=True))
    for name in ("best.safetensors", "last.safetensors"):
        assert differing_tensors(finished / "run" / name, tmp_path / "run" / name) == []
    with pytest.raises(UsageError, match=r"--resume.*seed.*0.*1"):
        run(dataclasses.replace(given, out=tmp_path / "other", train=dataclasses.replace(SHORT, seed=1), resume=True))


def test_resuming_with_a_changed_dataset_raises(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    root = tmp_path / "copy"
    for kind in ("images", "annotations"):
        folder = root / "scenes" / "ade" / kind / "training"
        shutil.copy(folder / "000000.png", folder / "more.png")
    given = settings(root / "scenes", root / "run", "segment", resume=True)
    with pytest.raises(UsageError, match=r"--resume.*training images 10 -> 11"):
        run(given)


def test_an_existing_run_raises_before_the_dataset_is_read(finished, tmp_path):
    with pytest.raises(RunExists, match="--resume"):
        run(settings(tmp_path / "nowhere", finished / "run", "segment"))


@pytest.mark.parametrize(("task", "backbone"), [("detect", "detector.backbone.body."), ("segment", "backbone.")])
def test_a_frozen_backbone_is_bit_identical_to_its_initial_checkpoint(scenes, tmp_path, task, backbone, capsys):
    start = write_checkpoint(tmp_path / "start.safetensors")
    train = dataclasses.replace(SHORT, freeze_backbone=True)
    run(settings(scenes, tmp_path / "run", task, train, init_from=str(start)))
    before = {name: tensor for name, tensor in load_checkpoint(start).state.items() if not name.startswith("head.")}
    after = load_checkpoint(tmp_path / "run" / "last.safetensors").state
    backbone_names = {name.removeprefix(backbone): name for name in after if name.startswith(backbone)}
    assert set(backbone_names) == set(before)
    assert all(after[backbone_names[name]].equal(tensor) for name, tensor in before.items())
    torch.manual_seed(SHORT.seed)
    options = {"head": HEADS[task], "drop_path_rate": 0.1}
    fresh = create_model("van_b0", num_classes=len(task_class_names(task)), options=options).state_dict()
    unchanged = {name for name in fresh if after[name].equal(fresh[name])} - set(backbone_names.values())
    assert unchanged == {name for name in unchanged if fresh[name].numel() == 1}  # counters only


def test_without_freezing_the_backbone_is_trained(scenes, tmp_path):
    """Negative control of the test above."""
    start = write_checkpoint(tmp_path / "start.safetensors")
    run(settings(scenes, tmp_path / "run", "segment", init_from=str(start)))
    before, after = load_checkpoint(start).state, load_checkpoint(tmp_path / "run" / "last.safetensors").state
    assert not any(after[f"backbone.{name}"].equal(before[name]) for name in before if name.endswith("proj_1.weight"))


def test_the_normalization_of_the_initial_weights_is_stored_with_the_network(scenes, tmp_path):
    start = write_checkpoint(tmp_path / "start.safetensors")
    stored = load_checkpoint(start)
    rule = dataclasses.replace(stored.preprocess, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    dataclasses.replace(stored, preprocess=rule).save(start)
    given = settings(scenes, tmp_path / "run", "segment", init_from=str(start))
    run(given)
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert (best.preprocess.mean, best.preprocess.std) == (rule.mean, rule.std)
    start.unlink()
    assert run(dataclasses.replace(given, resume=True)).updates == 2  # resuming needs no initial weights
    again = settings(scenes, tmp_path / "boxes", "detect", init_from=str(tmp_path / "run" / "best.safetensors"))
    run(again)  # the backbone of a network with another head
    after = load_checkpoint(tmp_path / "boxes" / "best.safetensors")
    assert (after.task, after.preprocess.mean) == ("detect", rule.mean)


def test_a_batch_size_above_the_dataset_size_is_lowered_and_logged(scenes, tmp_path, capsys):
    train = dataclasses.replace(SHORT, batch_size=64)
    assert run(settings(scenes, tmp_path / "run", "segment", train)).updates == 1
    assert "--batch-size lowered from 64 to 10" in capsys.readouterr().err
    assert stored_recipe(tmp_path / "run")["batch_size"] == 10


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def test_unreadable_images_are_skipped_and_logged(copied, tmp_path, capsys):
    path = copied / "ade" / "images" / "training" / "000009.png"
    path.write_bytes(path.read_bytes()[:200])
    train = dataclasses.replace(SHORT, max_unreadable=0.2)
    summary = run(settings(copied, tmp_path / "run", "segment", train))
    (name,) = summary.unreadable
    assert name.endswith("000009.png")
    assert "skipped" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["detect", "instances"])
def test_an_image_of_a_single_pixel_is_trained_on(copied, tmp_path, task):
    """It is resized like any other; its object covers it."""
    for split in ("train", "val"):
        path = copied / "coco" / "annotations" / f"instances_{split}.json"
        Image.new("RGB", (1, 1), (200, 30, 30)).save(copied / "coco" / split / "dot.png")
        image = {"id": 999, "file_name": "dot.png", "width": 1, "height": 1}
        annotation = {
            "id": 9999, "image_id": 999, "category_id": 3, "bbox": [0, 0, 1, 1], "area": 1, "iscrowd": 0,
            "segmentation": {"size": [1, 1], "counts": [0, 1]},
        }  # fmt: skip
        edit_json(path, images=[image], annotations=[annotation])
    train = dataclasses.replace(SHORT, batch_size=1)
    summary = run(settings(copied, tmp_path / "run", task, train))
    assert summary.updates == 1
    prediction = Predictor(Model.load(tmp_path / "run" / "best.safetensors"), min_score=0)(
        copied / "coco" / "train" / "dot.png"
    )
    assert prediction.image_size == (1, 1)


def test_different_classes_in_the_validation_split_raise(copied, tmp_path):
    path = copied / "coco" / "annotations" / "instances_val.json"
    categories = json.loads(path.read_text())["categories"]
    edit_json(path, categories=[{**one, "name": f"digit {one['name']}"} for one in categories])
    with pytest.raises(DataError, match=r"train and val.*digit"):
        run(settings(copied, tmp_path / "run", "detect"))
    assert not (tmp_path / "run").exists()


def test_boxes_without_masks_train_detection_but_not_instance_segmentation(copied, tmp_path):
    for split in ("train", "val"):
        path = copied / "coco" / "annotations" / f"instances_{split}.json"
        annotations = json.loads(path.read_text())["annotations"]
        edit_json(path, annotations=[{k: v for k, v in one.items() if k != "segmentation"} for one in annotations])
    with pytest.raises(DataError, match=r"mask|polygon"):
        run(settings(copied, tmp_path / "run", "instances"))
    assert not (tmp_path / "run").exists()
    assert run(settings(copied, tmp_path / "run", "detect")).updates == 2


@pytest.mark.parametrize(
    ("task", "values", "kind", "message"),
    [
        ("detect", {"data": Path("nowhere")}, DataError, "nowhere"),
        ("detect", {"model": "van_b9"}, UsageError, "van_b9"),
        ("detect", {"model": "resnet18"}, UsageError, "resnet18"),
        ("detect", {"init_from": "pretrained"}, HubError, "van_b0"),
        ("segment", {"init_from": "nowhere.pth"}, Exception, "nowhere.pth"),
        ("segment", {"train": dataclasses.replace(SHORT, device="tpu")}, UsageError, "--device.*tpu"),
        ("segment", {"min_size": 0}, UsageError, "--min-size 0 --max-size 128"),
        ("segment", {"min_size": 256}, UsageError, "--min-size 256 --max-size 128"),
        ("segment", {"drop_path_rate": 1.0}, UsageError, "--drop-path-rate.*1.0"),
        (
            "segment",
            {"head": "upernet", "train": dataclasses.replace(SHORT, batch_size=1)},
            UsageError,
            "--batch-size 1",
        ),
        (
            "segment",
            {"augment": JointAugmentSettings(crop_size=32), "train": dataclasses.replace(SHORT, batch_size=1)},
            UsageError,
            "--batch-size 1.*32 px",
        ),
        (
            "segment",
            {
                "augment": JointAugmentSettings(crop_size=32),
                "train": dataclasses.replace(SHORT, batch_size=1, batch_norm="frozen"),
            },
            UsageError,
            "--batch-size 1.*head",
        ),
    ],
)
def test_invalid_settings_raise_and_create_no_run_folder(scenes, tmp_path, task, values, kind, message):
    with pytest.raises(kind, match=message):
        run(settings(scenes, tmp_path / "run", task, **values))
    assert not (tmp_path / "run").exists()


def test_the_initial_weights_determine_the_backbone(tmp_path, scenes, capsys):
    """The model is inferred from the file, and --model is ignored, as in classification."""
    source = tmp_path / "small.pth"
    torch.save(create_model("van_b0", num_classes=3).state_dict(), source)
    run(settings(scenes, tmp_path / "run", "segment", init_from=str(source), model="van_b1"))
    assert f"--model van_b1 ignored: {source} contains van_b0" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / "best.safetensors").model == "van_b0"
