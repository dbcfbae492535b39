"""``van eval``: figures that agree with counting by hand, and every picture that was left out named."""

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

from data.made import COLOURS, write_classes
from explain.small import write_small
from van import Checkpoint, Predictor, Preprocess
from van.checkpoint import load_checkpoint


@pytest.fixture
def noisy(colours, tmp_path) -> Path:
    """The held-out colours, some in the wrong folder, so that not every answer is right."""
    shutil.copytree(colours, tmp_path / "noisy")
    val = tmp_path / "noisy" / "val"
    (val / "red" / "red-0.png").rename(val / "blue" / "moved.png")
    (val / "green" / "green-0.png").rename(val / "red" / "moved.png")
    return tmp_path / "noisy"


def by_hand(checkpoint: Path, val: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """The metrics and the shares of each class, from single predictions."""
    predictor = Predictor.load(checkpoint, device="cpu")
    right: dict[str, list[bool]] = {}
    losses, bins = [], np.zeros((15, 2))
    for path in sorted(val.rglob("*.png")):
        answer, label = predictor(path), path.parent.name
        right.setdefault(label, []).append(answer.top(1)[0].label == label)
        losses.append(-np.log(answer.probabilities[answer.labels.index(label)]))
        sure = answer.top(1)[0].probability
        bins[math.ceil(15 * sure) - 1] += right[label][-1], sure
    every = [one for ones in right.values() for one in ones]
    shares = {label: {"samples": len(ones), "top1": sum(ones) / len(ones)} for label, ones in right.items()}
    error = float(np.abs(bins[:, 0] - bins[:, 1]).sum() / len(every))
    return {"top1": sum(every) / len(every), "top5": 1.0, "loss": float(np.mean(losses)), "ece": error}, shares


@pytest.mark.parametrize("flags", [[], ["--batch-size", "2"], ["--precision", "bf16"]], ids=" ".join)
def test_json_holds_the_metrics_as_fractions_and_nothing_else_is_on_stdout(van, checkpoint, noisy, flags):
    ran = van("eval", checkpoint, "--data", noisy, "--json", "--device", "cpu", *flags)
    assert (ran.status, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert list(record) == ["task", "checkpoint", "data", "samples", "metrics", "per_class", "unreadable"]
    assert (record["task"], record["checkpoint"], record["data"]) == ("classify", str(checkpoint), str(noisy))
    assert (record["samples"], record["unreadable"]) == (9, [])
    metrics, shares = by_hand(checkpoint, noisy / "val")
    assert 0 < metrics["top1"] < 1
    exact = "bf16" not in flags  # 8 bits of fraction move a loss by about a hundredth
    assert record["metrics"] == pytest.approx(metrics, abs=1e-5 if exact else 0.05)
    if exact:
        assert record["per_class"] == {label: pytest.approx(share) for label, share in shares.items()}


def test_text_shows_the_same_figures(van, checkpoint, noisy):
    ran = van("eval", checkpoint, "--data", noisy)
    metrics, shares = by_hand(checkpoint, noisy / "val")
    lines = [line.split() for line in ran.out.splitlines()]
    assert ["top1", f"{metrics['top1']:.4f}"] in lines
    assert ["samples", "9"] in lines
    for label, share in shares.items():
        assert [label, str(round(share["samples"])), f"{share['top1']:.3f}"] in lines


def test_broken_pictures_are_named_counted_nowhere_and_give_status_1(van, checkpoint, colours, tmp_path):
    data = shutil.copytree(colours, tmp_path / "data")
    whole = json.loads(van("eval", checkpoint, "--data", data, "--json").out)
    (data / "val" / "red" / "broken.png").write_bytes((data / "val" / "red" / "red-0.png").read_bytes()[:300])
    (data / "val" / "blue" / "text.jpg").write_text("no picture")
    ran = van("eval", checkpoint, "--data", data, "--json", "--batch-size", "2")
    assert ran.status == 1
    record = json.loads(ran.out)
    assert record["samples"] == whole["samples"] == 9
    assert record["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    assert record["per_class"] == whole["per_class"]
    assert [entry["picture"] for entry in record["unreadable"]] == ["blue/text.jpg", "red/broken.png"]
    assert "cut off" in record["unreadable"][1]["reason"]
    assert "unreadable, in no metric: blue/text.jpg: is no picture" in ran.err


def test_nothing_but_broken_pictures_is_a_failure(van, checkpoint, tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "text.jpg").write_text("no picture")
    ran = van("eval", checkpoint, "--data", tmp_path)
    assert (ran.status, ran.out) == (1, "")
    assert "none of the 1 pictures can be read; the first: red/text.jpg: is no picture" in ran.err


def test_the_confusion_matrix_is_a_picture(van, checkpoint, noisy, tmp_path):
    target = tmp_path / "new" / "confusion.PNG"
    ran = van("eval", checkpoint, "--data", noisy, "--confusion", target, "--json")
    assert ran.status == 0
    json.loads(ran.out)  # the note is not in the way
    assert ran.err == f"confusion matrix: {target}\n"
    with Image.open(target) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 200
        assert len(drawn.convert("RGB").getcolors(2**24) or []) > 10
    assert [path.name for path in target.parent.iterdir()] == ["confusion.PNG"]


def test_every_chart_of_the_task_is_drawn_into_a_folder(van, checkpoint, noisy, tmp_path):
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


def test_a_folder_that_charts_cannot_go_into_is_refused_before_the_work(van, tmp_path):
    """Before the checkpoint is looked for, which is not there."""
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "charts"):
        ran = van("eval", tmp_path / "none.safetensors", "--data", tmp_path, "--charts", folder)
        assert (ran.status, ran.out) == (2, "")
        assert ran.err == f"van: --charts {folder}: {tmp_path / 'file'} is a file; wanted a folder\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(van, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    ran = van("eval", tmp_path / "none.safetensors", "--data", tmp_path, "--charts", tmp_path / "locked" / "charts")
    assert (ran.status, ran.err.endswith("cannot be written to; choose another folder\n")) == (2, True)


@pytest.mark.parametrize("classes", [1, 2_001])
def test_a_table_that_cannot_be_drawn_is_refused_before_the_work(van, tmp_path, classes):
    labels = tuple(f"c{number}" for number in range(classes))
    model = timm.create_model("resnet18", num_classes=classes)
    path, options = tmp_path / "many.safetensors", {"task": "classify", "model": "resnet18"}
    Checkpoint(labels=labels, preprocess=Preprocess(size_px=32), state=model.state_dict(), **options).save(path)
    data = write_classes(tmp_path / "data", {"c0": 2})
    ran = van("eval", path, "--data", data, "--confusion", tmp_path / "table.png")
    assert (ran.status, ran.err) == (2, f"van: --confusion: there are {classes} classes; wanted 2 to 2,000\n")
    assert json.loads(van("eval", path, "--data", data, "--json").out)["per_class"] == {}


def test_a_network_measured_on_what_it_learnt_from_is_told_so(van, checkpoint, colours, tmp_path):
    stored = load_checkpoint(checkpoint)
    for learnt, measured, told in (
        (colours, colours, False),  # its own held-out part
        (colours, colours / "train", True),
        (colours / "val", colours / "val", True),  # split by seed: most of it was learnt from
        (colours / "train", colours / "val", False),
    ):
        path = tmp_path / "trained.safetensors"
        dataclasses.replace(stored, recipe={"data": str(learnt)}).save(path)
        ran = van("eval", path, "--data", measured)
        assert ran.status == 0
        assert ("that this network learnt from: it will do worse on new ones" in ran.err) == told


def test_a_network_that_answers_with_no_numbers_fails_and_json_says_null(van, checkpoint, colours, tmp_path):
    stored = load_checkpoint(checkpoint)
    state = dict(stored.state) | {"head.bias": torch.full((3,), float("inf"))}
    dataclasses.replace(stored, state=state).save(tmp_path / "inf.safetensors")
    ran = van("eval", tmp_path / "inf.safetensors", "--data", colours, "--json")
    assert (ran.status, "answers with NaN or infinity, so these figures mean nothing" in ran.err) == (1, True)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(ran.out, parse_constant=refuse)["metrics"]["loss"] is None


def test_a_backbone_without_classes_is_refused(van, checkpoint, colours, tmp_path):
    model = timm.create_model("van_b0", num_classes=0)
    stored = load_checkpoint(checkpoint)
    dataclasses.replace(stored, labels=(), state=model.state_dict()).save(tmp_path / "backbone.safetensors")
    ran = van("eval", tmp_path / "backbone.safetensors", "--data", colours)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("van: van_b0 has no classes")


def test_folders_of_other_classes_are_refused(van, checkpoint, tmp_path):
    write_classes(tmp_path, {"wasp": 1})
    ran = van("eval", checkpoint, "--data", tmp_path)
    assert ran.status == 1
    assert "not known here: wasp; known: blue, green, red" in ran.err


def test_a_class_may_be_missing(van, checkpoint, tmp_path):
    write_classes(tmp_path, {"red": 2}, first_seed=2000)
    record = json.loads(van("eval", checkpoint, "--data", tmp_path, "--json").out)
    assert list(record["per_class"]) == ["red"]
    assert set(record["per_class"]) < set(COLOURS)


@pytest.mark.parametrize("flags", [["--device", "tpu"], ["--precision", "fp16", "--device", "cpu"]], ids=" ".join)
def test_a_device_that_cannot_do_it_is_bad_usage(van, checkpoint, colours, flags):
    ran = van("eval", checkpoint, "--data", colours, *flags)
    assert ran.status == 2
    assert flags[0] in ran.err


def test_an_exported_file_has_the_figures_of_its_checkpoint(van, noisy, tmp_path):
    path, options = tmp_path / "colours.onnx", {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)}
    checkpoint = write_small(tmp_path / "colours.safetensors", size_px=32, labels=tuple(COLOURS), **options)
    assert van("export", checkpoint, "--out", path, "--pictures", noisy).status == 0
    right, found = (van("eval", each, "--data", noisy, "--json") for each in (checkpoint, path))
    assert (found.status, json.loads(found.out)["samples"]) == (0, 9)
    assert json.loads(found.out)["metrics"] == pytest.approx(json.loads(right.out)["metrics"], abs=1e-5)
    assert json.loads(found.out)["per_class"] == json.loads(right.out)["per_class"]
    refused = van("eval", path, "--data", noisy, "--precision", "bf16")
    assert (refused.status, "colours.onnx has its own; leave it out" in refused.err) == (2, True)
    for words in (("convert", path, tmp_path / "back.safetensors"), ("explain", path, noisy, "--out", tmp_path / "e")):
        ran = van(*words)
        assert ran.status == 1
        assert "is an exported network, whose weights are not read back: van predict, van eval and van serve" in ran.err
