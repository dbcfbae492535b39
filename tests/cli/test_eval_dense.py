"""``van eval`` for detection and segmentation: annotations equal to the predictions give perfect metrics."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.synthetic_annotated import HEADS, SIZE_PX, dataset_root, edit_json
from van.datasets.scenes import encode_rle
from van.model import Model
from van.predict import Predictor

MONITORS = {"detect": "box_ap", "instances": "mask_ap", "segment": "mean_iou", "panoptic": "pq"}
METRICS = {
    "detect": {"box_ap", "box_ap50", "box_ap75", "box_ar100"},
    "instances": {"box_ap", "box_ap50", "mask_ap", "mask_ap50", "mask_ar100"},
    "segment": {"mean_iou", "mean_accuracy", "pixel_accuracy"},
    "panoptic": {"pq", "sq", "rq", "pq_things"},
}


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def annotate_with_predictions(scenes: Path, task: str, checkpoint: Path, *, moved_px: int = 0) -> None:
    """Replace the annotations of the val split by the predictions of the model, moved to the right."""
    predictor = Predictor(Model.load(checkpoint), device="cpu")
    predictions = [predictor(path) for path in sorted((scenes / "coco" / "val").iterdir())]
    if task == "segment":
        for index, prediction in enumerate(predictions):
            values = np.roll(prediction.segment_ids, moved_px, axis=1) + 1
            path = scenes / "ade" / "annotations" / "validation" / f"{index:06d}.png"
            Image.fromarray(values.astype(np.uint8)).save(path)
        return
    annotations = scenes / "coco" / "annotations"
    entries: list[dict[str, Any]] = []
    for index, prediction in enumerate(predictions):
        if task == "panoptic":
            ids = np.roll(prediction.segment_ids, moved_px, axis=1)
            path = annotations / "panoptic_val" / f"{index:06d}.png"
            Image.fromarray(np.stack([np.maximum(ids, 0), 0 * ids, 0 * ids], axis=-1).astype(np.uint8)).save(path)
            segments = [{"id": one.id, "category_id": one.index + 1, "iscrowd": 0} for one in prediction.segments]
            entries.append({"image_id": index + 1, "file_name": path.name, "segments_info": segments})
            continue
        for detection in prediction.detections:
            x1, y1, x2, y2 = detection.box
            shift = min(moved_px, SIZE_PX - x2)
            entry = {"id": len(entries) + 1, "image_id": index + 1, "category_id": detection.index + 1, "iscrowd": 0}
            entry |= {"bbox": [x1 + shift, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if detection.mask is not None and detection.mask.any():
                entry["segmentation"] = encode_rle(np.roll(detection.mask, moved_px, axis=1))
            entries.append(entry)
    edit_json(annotations / f"{'panoptic' if task == 'panoptic' else 'instances'}_val.json", annotations=entries)


def test_json_has_the_task_and_its_metrics_as_fractions(subtests, van, dense_checkpoint, scenes):
    for task in HEADS:
        with subtests.test(task=task):
            data = dataset_root(scenes, task)
            ran = van("eval", dense_checkpoint(task), "--data", data, "--json", "--device", "cpu")
            assert (ran.status, ran.err) == (0, "")
            record = json.loads(ran.out)
            assert list(record) == ["task", "checkpoint", "data", "samples", "metrics", "per_class", "unreadable"]
            assert (record["task"], record["checkpoint"], record["data"]) == (
                task,
                str(dense_checkpoint(task)),
                str(data),
            )
            assert (record["samples"], record["unreadable"]) == (4, [])
            assert set(record["metrics"]) >= METRICS[task]
            assert all(0 <= value <= 1 for value in record["metrics"].values())
            assert record["per_class"]
            again = json.loads(
                van("eval", dense_checkpoint(task), "--data", data, "--json", "--batch-size", "1", "--workers", "1").out
            )
            assert again["metrics"] == pytest.approx(record["metrics"], abs=0.01)


@pytest.mark.parametrize("task", HEADS)
def test_annotations_equal_to_the_predictions_give_perfect_metrics(van, dense_checkpoint, copied, task):
    annotate_with_predictions(copied, task, dense_checkpoint(task))
    record = json.loads(
        van("eval", dense_checkpoint(task), "--data", dataset_root(copied, task), "--json", "--device", "cpu").out
    )
    least = 0.97 if task == "instances" else 1 - 1e-6  # empty masks cannot be matched
    assert record["metrics"][MONITORS[task]] >= least
    assert all(values for values in record["per_class"].values())


@pytest.mark.parametrize("task", HEADS)
def test_annotations_moved_by_6_px_give_lower_metrics(van, dense_checkpoint, copied, task):
    """The negative control of the test above."""
    annotate_with_predictions(copied, task, dense_checkpoint(task), moved_px=6)
    record = json.loads(
        van("eval", dense_checkpoint(task), "--data", dataset_root(copied, task), "--json", "--device", "cpu").out
    )
    assert record["metrics"][MONITORS[task]] < 0.8


def test_text_has_the_same_metrics_and_a_column_for_each_per_class_metric(subtests, van, dense_checkpoint, scenes):
    for task in HEADS:
        with subtests.test(task=task):
            data = dataset_root(scenes, task)
            record = json.loads(van("eval", dense_checkpoint(task), "--data", data, "--json", "--device", "cpu").out)
            ran = van("eval", dense_checkpoint(task), "--data", data, "--device", "cpu")
            lines = [line.split() for line in ran.out.splitlines()]
            for name, value in record["metrics"].items():
                assert [name, f"{value:.4f}"] in lines
            assert ["samples", "4"] in lines
            (titles,) = [line for line in lines if line[:1] == ["class"]]
            assert 1 < len(titles) <= 7
            assert MONITORS[task].removeprefix("mean_") in titles
            classes = lines[lines.index(titles) + 1 :]
            assert [line[0] for line in classes] == list(record["per_class"])
            assert {len(line) for line in classes} == {len(titles)}  # a dash where a class has no such metric
            widths = {len(line.rstrip()) for line in ran.out.splitlines()[-len(classes) :]}
            assert len(widths) == 1


def test_the_confusion_matrix_of_pixels_is_written_as_a_png(van, dense_checkpoint, scenes, tmp_path):
    target = tmp_path / "confusion.png"
    ran = van("eval", dense_checkpoint("segment"), "--data", scenes / "ade", "--confusion", target, "--json")
    assert (ran.status, ran.err) == (0, f"confusion matrix: {target}\n")
    with Image.open(target) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 200


@pytest.mark.parametrize(
    ("task", "names"),
    [("instances", ["per_class.png", "precision_recall.png"]), ("segment", ["confusion.png", "per_class.png"])],
)
def test_the_charts_of_the_task_are_written_to_a_folder(van, dense_checkpoint, scenes, tmp_path, task, names):
    folder = tmp_path / "charts"
    ran = van(
        "eval",
        dense_checkpoint(task),
        "--data",
        dataset_root(scenes, task),
        "--charts",
        folder,
        "--json",
        "--device",
        "cpu",
    )
    assert (ran.status, ran.err) == (0, f"charts: {', '.join(names)} in {folder}\n")
    json.loads(ran.out)
    assert sorted(path.name for path in folder.iterdir()) == names
    for path in folder.iterdir():
        with Image.open(path) as drawn:
            assert drawn.format == "PNG"
            assert min(drawn.size) > 200


def test_detection_has_no_confusion_matrix(van, dense_checkpoint, scenes, tmp_path):
    ran = van("eval", dense_checkpoint("detect"), "--data", scenes / "coco", "--confusion", tmp_path / "confusion.png")
    assert (ran.status, ran.out) == (2, "")
    assert "--confusion" in ran.err
    assert "got detect" in ran.err


def test_tile_size_and_multi_scale_change_the_metrics_of_segmentation(van, dense_checkpoint, scenes):
    def metrics(*flags: str) -> dict[str, float]:
        ran = van("eval", dense_checkpoint("segment"), "--data", scenes / "ade", "--json", "--device", "cpu", *flags)
        assert (ran.status, ran.err) == (0, "")
        return json.loads(ran.out)["metrics"]

    without = metrics()
    assert metrics("--tile-size", str(SIZE_PX)) == pytest.approx(without)  # one tile covers the image
    assert metrics("--tile-size", "32") != pytest.approx(without, abs=1e-4)
    assert metrics("--multi-scale") != pytest.approx(without, abs=1e-4)


def test_tile_size_and_multi_scale_of_another_task_are_status_2(subtests, van, dense_checkpoint, scenes):
    for task, flags, facts in [
        ("detect", ["--tile-size", "64"], ("--tile-size", "--multi-scale", "detect")),
        ("panoptic", ["--multi-scale"], ("--multi-scale", "panoptic")),
        ("segment", ["--tile-size", "64", "--multi-scale"], ("--tile-size", "--multi-scale")),
        ("segment", ["--tile-size", "-3"], ("--tile-size", "-3")),
    ]:
        with subtests.test(task=task, flags=flags, facts=facts):
            ran = van("eval", dense_checkpoint(task), "--data", dataset_root(scenes, task), *flags)
            assert (ran.status, ran.out) == (2, "")
            assert [fact for fact in facts if fact not in ran.err] == [], ran.err


@pytest.mark.parametrize("task", HEADS)
def test_unreadable_images_are_reported_count_in_no_metric_and_set_status_1(van, dense_checkpoint, copied, task):
    place = "ade/images/validation" if task == "segment" else "coco/val"
    path = copied / place / "000001.png"
    path.write_bytes(path.read_bytes()[:300])
    ran = van("eval", dense_checkpoint(task), "--data", dataset_root(copied, task), "--json", "--device", "cpu")
    assert ran.status == 1
    record = json.loads(ran.out)
    assert record["samples"] == 3
    (broken,) = record["unreadable"]
    assert broken["image"].endswith("000001.png")
    assert "truncated" in broken["reason"]
    assert "skipped, in no metric: " in ran.err


def test_classes_are_matched_by_name_for_any_order_and_ids(van, dense_checkpoint, copied):
    annotate_with_predictions(copied, "detect", dense_checkpoint("detect"))
    path = copied / "coco" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for one in (*content["annotations"],):
        one["category_id"] = 100 - one["category_id"]
    categories = [{**one, "id": 100 - one["id"]} for one in content["categories"]]
    edit_json(path, annotations=content["annotations"], categories=categories[::-1])
    record = json.loads(van("eval", dense_checkpoint("detect"), "--data", copied / "coco", "--json").out)
    assert record["metrics"]["box_ap"] > 1 - 1e-6


def test_a_dataset_with_other_classes_is_rejected(van, dense_checkpoint, copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    categories = json.loads(path.read_text())["categories"]
    edit_json(path, categories=[*categories[:-1], {**categories[-1], "name": "wasp"}])
    ran = van("eval", dense_checkpoint("detect"), "--data", copied / "coco")
    assert (ran.status, ran.out) == (1, "")
    assert "wasp" in ran.err
    assert "0, 1, 2" in ran.err


def test_a_dataset_of_another_type_is_rejected(subtests, van, dense_checkpoint, scenes):
    for task, layout, facts in [
        ("detect", "ade", ("ade", "boxes", "val")),
        ("segment", "coco", ("coco", "val")),
        ("panoptic", "ade", ("ade", "panoptic", "val")),
        ("segment", "nowhere", ("nowhere",)),
    ]:
        with subtests.test(task=task, layout=layout, facts=facts):
            ran = van("eval", dense_checkpoint(task), "--data", scenes / layout)
            assert (ran.status, ran.out) == (1, "")
            assert [fact for fact in facts if fact not in ran.err] == [], ran.err


def test_a_dataset_without_annotations_is_rejected(van, dense_checkpoint, copied):
    edit_json(copied / "coco" / "annotations" / "instances_val.json", annotations=[])
    ran = van("eval", dense_checkpoint("detect"), "--data", copied / "coco")
    assert (ran.status, ran.out) == (1, "")
    assert re.search(r"\b4 images.*\bval\b|\bval\b.*\b4 images", ran.err)
