"""``van eval``: metrics equal those computed from single predictions; skipped images are reported."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from datasets.synthetic import COLORS, write_classes
from explain.small_models import write_small
from van import CenterCropPreprocess, Checkpoint
from van.checkpoint import load_checkpoint
from van.model import Model
from van.predict import Predictor


@pytest.fixture
def noisy(colors, tmp_path) -> Path:
    """The colors with some validation images in wrong class folders, so that not every prediction is correct."""
    shutil.copytree(colors, tmp_path / "noisy")
    val = tmp_path / "noisy" / "val"
    (val / "red" / "red-0.png").rename(val / "blue" / "moved.png")
    (val / "green" / "green-0.png").rename(val / "red" / "moved.png")
    return tmp_path / "noisy"


def expected_metrics(checkpoint: Path, val: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Compute the metrics, overall and per class, from single predictions."""
    predictor = Predictor(Model.load(checkpoint), device="cpu")
    correct: dict[str, list[bool]] = {}
    losses, bins = [], np.zeros((15, 2))
    for path in sorted(val.rglob("*.png")):
        prediction, label = predictor(path), path.parent.name
        correct.setdefault(label, []).append(prediction.top(1)[0].label == label)
        losses.append(-np.log(prediction.scores[prediction.class_names.index(label)]))
        confidence = prediction.top(1)[0].score
        bins[math.ceil(15 * confidence) - 1] += correct[label][-1], confidence
    every = [one for ones in correct.values() for one in ones]
    per_class = {label: {"samples": len(ones), "top1": sum(ones) / len(ones)} for label, ones in correct.items()}
    error = float(np.abs(bins[:, 0] - bins[:, 1]).sum() / len(every))
    return {"top1": sum(every) / len(every), "top5": 1.0, "loss": float(np.mean(losses)), "ece": error}, per_class


@pytest.mark.parametrize("flags", [[], ["--batch-size", "2"], ["--precision", "bf16"]], ids=" ".join)
def test_json_has_the_metrics_as_fractions_and_nothing_else_on_stdout(van, checkpoint, noisy, flags):
    ran = van("eval", checkpoint, "--data", noisy, "--json", "--device", "cpu", *flags)
    assert (ran.status, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert list(record) == ["task", "checkpoint", "data", "samples", "metrics", "per_class", "unreadable"]
    assert (record["task"], record["checkpoint"], record["data"]) == ("classify", str(checkpoint), str(noisy))
    assert (record["samples"], record["unreadable"]) == (9, [])
    metrics, per_class = expected_metrics(checkpoint, noisy / "val")
    assert 0 < metrics["top1"] < 1
    exact = "bf16" not in flags  # 8 bits of fraction move a loss by about a hundredth
    assert record["metrics"] == pytest.approx(metrics, abs=1e-5 if exact else 0.05)
    if exact:
        assert record["per_class"] == {label: pytest.approx(share) for label, share in per_class.items()}


def test_text_has_the_same_metrics(van, checkpoint, noisy):
    ran = van("eval", checkpoint, "--data", noisy)
    metrics, per_class = expected_metrics(checkpoint, noisy / "val")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["top1", f"{metrics['top1']:.4f}"] in lines
    assert ["samples", "9"] in lines
    for label, share in per_class.items():
        assert [label, str(round(share["samples"])), f"{share['top1']:.3f}"] in lines


def test_unreadable_images_are_reported_count_in_no_metric_and_set_status_1(van, checkpoint, colors, tmp_path):
    data = shutil.copytree(colors, tmp_path / "data")
    whole = json.loads(van("eval", checkpoint, "--data", data, "--json").out)
    (data / "val" / "red" / "broken.png").write_bytes((data / "val" / "red" / "red-0.png").read_bytes()[:300])
    (data / "val" / "blue" / "text.jpg").write_text("no image")
    ran = van("eval", checkpoint, "--data", data, "--json", "--batch-size", "2")
    assert ran.status == 1
    record = json.loads(ran.out)
    assert record["samples"] == whole["samples"] == 9
    assert record["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    assert record["per_class"] == whole["per_class"]
    assert [entry["image"] for entry in record["unreadable"]] == ["blue/text.jpg", "red/broken.png"]
    assert "truncated" in record["unreadable"][1]["reason"]
    assert "skipped, in no metric: blue/text.jpg: " in ran.err


def test_a_dataset_without_a_readable_image_is_status_1(van, checkpoint, tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "text.jpg").write_text("no image")
    ran = van("eval", checkpoint, "--data", tmp_path)
    assert (ran.status, ran.out) == (1, "")
    assert "red/text.jpg" in ran.err


def test_the_confusion_matrix_is_written_as_a_png(van, checkpoint, noisy, tmp_path):
    target = tmp_path / "new" / "confusion.PNG"
    ran = van("eval", checkpoint, "--data", noisy, "--confusion", target, "--json")
    assert ran.status == 0
    json.loads(ran.out)  # the note goes to standard error
    assert ran.err == f"confusion matrix: {target}\n"
    with Image.open(target) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 200
        assert len(drawn.convert("RGB").getcolors(2**24) or []) > 10
    assert [path.name for path in target.parent.iterdir()] == ["confusion.PNG"]


def test_the_charts_of_the_task_are_written_to_a_folder(van, checkpoint, noisy, tmp_path):
    folder = tmp_path / "new" / "charts"
    alone = tmp_path / "alone.png"
    ran = van("eval", checkpoint, "--data", noisy, "--charts", folder, "--confusion", alone, "--json")
    assert ran.status == 0
    json.loads(ran.out)
    assert alone.read_bytes() == (folder / "confusion.png").read_bytes()
    assert ran.err.splitlines()[1] == f"charts: confusion.png, reliability.png, per_class.png in {folder}"
    assert sorted(path.name for path in folder.iterdir()) == ["confusion.png", "per_class.png", "reliability.png"]
    for path in folder.iterdir():
        with Image.open(path) as drawn:
            assert drawn.format == "PNG"
            assert len(drawn.convert("RGB").getcolors(2**24) or []) > 10


def test_a_file_as_charts_folder_is_rejected_before_the_evaluation(van, tmp_path):
    """The missing checkpoint would be reported otherwise."""
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "charts"):
        ran = van("eval", tmp_path / "none.safetensors", "--data", tmp_path, "--charts", folder)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.startswith(f"van: --charts: expected a folder, got {folder} ")
        assert str(tmp_path / "file") in ran.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_charts_folder_that_is_not_writable_is_rejected_before_the_evaluation(van, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    ran = van("eval", tmp_path / "none.safetensors", "--data", tmp_path, "--charts", tmp_path / "locked" / "charts")
    assert (ran.status, f"{tmp_path / 'locked'} is not writable" in ran.err) == (2, True)


@pytest.mark.parametrize("classes", [1, 2_001])
def test_a_confusion_matrix_of_too_few_or_too_many_classes_is_rejected(van, tmp_path, classes):
    class_names = tuple(f"c{number}" for number in range(classes))
    model = timm.create_model("resnet18", num_classes=classes)
    path, options = tmp_path / "many.safetensors", {"task": "classify", "model": "resnet18"}
    Checkpoint(
        class_names=class_names, preprocess=CenterCropPreprocess(image_size=32), state=model.state_dict(), **options
    ).save(path)
    data = write_classes(tmp_path / "data", {"c0": 2})
    ran = van("eval", path, "--data", data, "--confusion", tmp_path / "table.png")
    assert (ran.status, f"--confusion: expected 2 to 2,000 classes, got {classes}" in ran.err) == (2, True)
    assert json.loads(van("eval", path, "--data", data, "--json").out)["per_class"] == {}


def test_an_evaluation_on_training_images_prints_a_warning(van, checkpoint, colors, tmp_path):
    stored = load_checkpoint(checkpoint)
    for trained_on, evaluated_on, is_warned in (
        (colors, colors, False),  # its own validation split
        (colors, colors / "train", True),
        (colors / "val", colors / "val", True),  # split by seed: most of it was trained on
        (colors / "train", colors / "val", False),
    ):
        path = tmp_path / "trained.safetensors"
        dataclasses.replace(stored, recipe={"data": str(trained_on)}).save(path)
        ran = van("eval", path, "--data", evaluated_on)
        assert ran.status == 0
        assert ("train" in ran.err) == is_warned


def test_outputs_that_are_not_finite_set_status_1_and_are_null_in_json(van, checkpoint, colors, tmp_path):
    stored = load_checkpoint(checkpoint)
    state = dict(stored.state) | {"head.bias": torch.full((3,), float("inf"))}
    dataclasses.replace(stored, state=state).save(tmp_path / "inf.safetensors")
    ran = van("eval", tmp_path / "inf.safetensors", "--data", colors, "--json")
    assert (ran.status, "NaN or infinity" in ran.err) == (1, True)

    def fail(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(ran.out, parse_constant=fail)["metrics"]["loss"] is None


def test_a_backbone_without_classes_is_rejected(van, checkpoint, colors, tmp_path):
    model = timm.create_model("van_b0", num_classes=0)
    stored = load_checkpoint(checkpoint)
    dataclasses.replace(stored, class_names=(), state=model.state_dict()).save(tmp_path / "backbone.safetensors")
    ran = van("eval", tmp_path / "backbone.safetensors", "--data", colors)
    assert (ran.status, ran.out) == (2, "")
    assert "van_b0" in ran.err
    assert "class" in ran.err


def test_a_dataset_with_other_classes_is_rejected(van, checkpoint, tmp_path):
    write_classes(tmp_path, {"wasp": 1})
    ran = van("eval", checkpoint, "--data", tmp_path)
    assert ran.status == 1
    assert "wasp" in ran.err
    assert "blue, green, red" in ran.err


def test_a_dataset_may_lack_a_class(van, checkpoint, tmp_path):
    write_classes(tmp_path, {"red": 2}, first_seed=2000)
    record = json.loads(van("eval", checkpoint, "--data", tmp_path, "--json").out)
    assert list(record["per_class"]) == ["red"]
    assert set(record["per_class"]) < set(COLORS)


@pytest.mark.parametrize("flags", [["--device", "tpu"], ["--precision", "fp16", "--device", "cpu"]], ids=" ".join)
def test_an_unsupported_device_or_precision_is_status_2(van, checkpoint, colors, flags):
    ran = van("eval", checkpoint, "--data", colors, *flags)
    assert ran.status == 2
    assert flags[0] in ran.err


def test_an_exported_model_has_the_metrics_of_its_checkpoint(van, noisy, tmp_path):
    path, options = tmp_path / "colors.onnx", {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    checkpoint = write_small(tmp_path / "colors.safetensors", image_size=32, class_names=tuple(COLORS), **options)
    assert van("export", checkpoint, "--out", path, "--images", noisy).status == 0
    reference, exported = (van("eval", each, "--data", noisy, "--json") for each in (checkpoint, path))
    assert (exported.status, json.loads(exported.out)["samples"]) == (0, 9)
    assert json.loads(exported.out)["metrics"] == pytest.approx(json.loads(reference.out)["metrics"], abs=1e-5)
    assert json.loads(exported.out)["per_class"] == json.loads(reference.out)["per_class"]
    rejected = van("eval", path, "--data", noisy, "--precision", "bf16")
    assert rejected.status == 2
    assert all(fact in rejected.err for fact in ("--precision", "colors.onnx", "bf16"))
    for words in (("convert", path, tmp_path / "back.safetensors"), ("explain", path, noisy, "--out", tmp_path / "e")):
        ran = van(*words)
        assert ran.status == 1
        assert all(fact in ran.err for fact in ("colors.onnx", "export", "van predict"))
