"""``van eval`` with networks that see whole pictures: a set that says what the network says gets full marks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.made_marked import HEADS, SIZE_PX, edit_json, set_of
from van import Predictor
from van.data.scene_files import run_lengths

HEADLINES = {"detect": "box_ap", "instances": "mask_ap", "segment": "mean_iou", "panoptic": "pq"}
FIGURES = {
    "detect": {"box_ap", "box_ap50", "box_ap75", "box_ar100"},
    "instances": {"box_ap", "box_ap50", "mask_ap", "mask_ap50", "mask_ar100"},
    "segment": {"mean_iou", "mean_accuracy", "pixel_accuracy"},
    "panoptic": {"pq", "sq", "rq", "pq_things"},
}


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def agree(scenes: Path, task: str, checkpoint: Path, *, moved_px: int = 0) -> None:
    """Replace what is marked in the held-out scenes by what the network answers, moved to the right."""
    predictor = Predictor.load(checkpoint, device="cpu")
    answers = [predictor(path) for path in sorted((scenes / "coco" / "val").iterdir())]
    if task == "segment":
        for place, answer in enumerate(answers):
            values = np.roll(answer.ids, moved_px, axis=1) + 1
            path = scenes / "ade" / "annotations" / "validation" / f"{place:06d}.png"
            Image.fromarray(values.astype(np.uint8)).save(path)
        return
    annotations = scenes / "coco" / "annotations"
    entries: list[dict[str, Any]] = []
    for place, answer in enumerate(answers):
        if task == "panoptic":
            ids = np.roll(answer.ids, moved_px, axis=1)
            path = annotations / "panoptic_val" / f"{place:06d}.png"
            Image.fromarray(np.stack([np.maximum(ids, 0), 0 * ids, 0 * ids], axis=-1).astype(np.uint8)).save(path)
            segments = [{"id": one.id, "category_id": one.index + 1, "iscrowd": 0} for one in answer.regions]
            entries.append({"image_id": place + 1, "file_name": path.name, "segments_info": segments})
            continue
        for thing in answer.found:
            x1, y1, x2, y2 = thing.box
            shift = min(moved_px, SIZE_PX - x2)
            entry = {"id": len(entries) + 1, "image_id": place + 1, "category_id": thing.index + 1, "iscrowd": 0}
            entry |= {"bbox": [x1 + shift, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            if thing.mask is not None and thing.mask.any():
                entry["segmentation"] = run_lengths(np.roll(thing.mask, moved_px, axis=1))
            entries.append(entry)
    edit_json(annotations / f"{'panoptic' if task == 'panoptic' else 'instances'}_val.json", annotations=entries)


@pytest.mark.parametrize("task", HEADS)
def test_json_holds_the_task_and_its_figures_as_fractions(van, marked, scenes, task):
    data = set_of(scenes, task)
    ran = van("eval", marked(task), "--data", data, "--json", "--device", "cpu")
    assert (ran.status, ran.err) == (0, "")
    record = json.loads(ran.out)
    assert list(record) == ["task", "checkpoint", "data", "samples", "metrics", "per_class", "unreadable"]
    assert (record["task"], record["checkpoint"], record["data"]) == (task, str(marked(task)), str(data))
    assert (record["samples"], record["unreadable"]) == (4, [])
    assert set(record["metrics"]) >= FIGURES[task]
    assert all(0 <= value <= 1 for value in record["metrics"].values())
    assert record["per_class"]
    again = json.loads(van("eval", marked(task), "--data", data, "--json", "--batch-size", "1", "--workers", "1").out)
    assert again["metrics"] == pytest.approx(record["metrics"], abs=0.01)


@pytest.mark.parametrize("task", HEADS)
def test_what_the_network_itself_says_is_measured_as_all_right(van, marked, copied, task):
    agree(copied, task, marked(task))
    found = json.loads(van("eval", marked(task), "--data", set_of(copied, task), "--json", "--device", "cpu").out)
    least = 0.97 if task == "instances" else 1 - 1e-6  # masks that nothing is left of cannot be found
    assert found["metrics"][HEADLINES[task]] >= least
    assert all(values for values in found["per_class"].values())


@pytest.mark.parametrize("task", HEADS)
def test_the_same_moved_a_little_is_not(van, marked, copied, task):
    """The control of the test above."""
    agree(copied, task, marked(task), moved_px=6)
    found = json.loads(van("eval", marked(task), "--data", set_of(copied, task), "--json", "--device", "cpu").out)
    assert found["metrics"][HEADLINES[task]] < 0.8


@pytest.mark.parametrize("task", HEADS)
def test_text_shows_the_same_figures_and_a_column_for_each_of_a_class(van, marked, scenes, task):
    data = set_of(scenes, task)
    record = json.loads(van("eval", marked(task), "--data", data, "--json", "--device", "cpu").out)
    ran = van("eval", marked(task), "--data", data, "--device", "cpu")
    lines = [line.split() for line in ran.out.splitlines()]
    for name, value in record["metrics"].items():
        assert [name, f"{value:.4f}"] in lines
    assert ["samples", "4"] in lines
    (titles,) = [line for line in lines if line[:1] == ["class"]]
    assert 1 < len(titles) <= 7
    assert HEADLINES[task].removeprefix("mean_") in titles
    classes = lines[lines.index(titles) + 1 :]
    assert [line[0] for line in classes] == list(record["per_class"])
    assert {len(line) for line in classes} == {len(titles)}  # a dash where a class has no such figure
    widths = {len(line.rstrip()) for line in ran.out.splitlines()[-len(classes) :]}
    assert len(widths) == 1


def test_the_confusion_of_pixels_is_a_picture(van, marked, scenes, tmp_path):
    target = tmp_path / "confusion.png"
    ran = van("eval", marked("segment"), "--data", scenes / "ade", "--confusion", target, "--json")
    assert (ran.status, ran.err) == (0, f"confusion matrix: {target}\n")
    with Image.open(target) as drawn:
        assert drawn.format == "PNG"
        assert min(drawn.size) > 200


@pytest.mark.parametrize(
    ("task", "names"),
    [("instances", ["per_class.png", "precision_recall.png"]), ("segment", ["confusion.png", "per_class.png"])],
)
def test_every_chart_of_the_task_is_drawn_into_a_folder(van, marked, scenes, tmp_path, task, names):
    folder = tmp_path / "charts"
    ran = van("eval", marked(task), "--data", set_of(scenes, task), "--charts", folder, "--json", "--device", "cpu")
    assert (ran.status, ran.err) == (0, f"charts: {', '.join(names)} in {folder}\n")
    json.loads(ran.out)
    assert sorted(path.name for path in folder.iterdir()) == names
    for path in folder.iterdir():
        with Image.open(path) as drawn:
            assert drawn.format == "PNG"
            assert min(drawn.size) > 200


def test_boxes_have_no_confusion_matrix(van, marked, scenes, tmp_path):
    ran = van("eval", marked("detect"), "--data", scenes / "coco", "--confusion", tmp_path / "confusion.png")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == "van: --confusion: a network that was made for the task detect has none; leave it out\n"


def test_a_window_and_several_scales_measure_segmentation_in_their_own_way(van, marked, scenes):
    def figures(*flags: str) -> dict[str, float]:
        ran = van("eval", marked("segment"), "--data", scenes / "ade", "--json", "--device", "cpu", *flags)
        assert (ran.status, ran.err) == (0, "")
        return json.loads(ran.out)["metrics"]

    whole = figures()
    assert figures("--tile-px", str(SIZE_PX)) == pytest.approx(whole)  # one window sees all of it
    assert figures("--tile-px", "32") != pytest.approx(whole, abs=1e-4)
    assert figures("--multi-scale") != pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("detect", ["--tile-px", "64"], "--tile-px and --multi-scale are for semantic segmentation"),
        ("panoptic", ["--multi-scale"], "this network's task is panoptic"),
        ("segment", ["--tile-px", "64", "--multi-scale"], "exclude each other"),
        ("segment", ["--tile-px", "-3"], "--tile-px is -3; wanted at least 1"),
    ],
)
def test_a_view_that_a_network_cannot_have_is_bad_usage(van, marked, scenes, task, flags, message):
    ran = van("eval", marked(task), "--data", set_of(scenes, task), *flags)
    assert (ran.status, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize("task", HEADS)
def test_broken_pictures_are_named_counted_nowhere_and_give_status_1(van, marked, copied, task):
    place = "ade/images/validation" if task == "segment" else "coco/val"
    path = copied / place / "000001.png"
    path.write_bytes(path.read_bytes()[:300])
    ran = van("eval", marked(task), "--data", set_of(copied, task), "--json", "--device", "cpu")
    assert ran.status == 1
    record = json.loads(ran.out)
    assert record["samples"] == 3
    (broken,) = record["unreadable"]
    assert broken["picture"].endswith("000001.png")
    assert "cut off" in broken["reason"]
    assert "unreadable, in no metric: " in ran.err


def test_classes_are_matched_by_name_whatever_their_order_and_their_numbers(van, marked, copied):
    agree(copied, "detect", marked("detect"))
    path = copied / "coco" / "annotations" / "instances_val.json"
    content = json.loads(path.read_text())
    for one in (*content["annotations"],):
        one["category_id"] = 100 - one["category_id"]
    categories = [{**one, "id": 100 - one["id"]} for one in content["categories"]]
    edit_json(path, annotations=content["annotations"], categories=categories[::-1])
    found = json.loads(van("eval", marked("detect"), "--data", copied / "coco", "--json").out)
    assert found["metrics"]["box_ap"] > 1 - 1e-6


def test_a_set_with_classes_that_the_network_does_not_know_is_refused(van, marked, copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    categories = json.loads(path.read_text())["categories"]
    edit_json(path, categories=[*categories[:-1], {**categories[-1], "name": "wasp"}])
    ran = van("eval", marked("detect"), "--data", copied / "coco")
    assert (ran.status, ran.out) == (1, "")
    assert "classes that the network does not know: wasp; it knows 0, 1, 2" in ran.err


@pytest.mark.parametrize(
    ("task", "layout", "message"),
    [
        ("detect", "ade", "hold no data set with boxes for val"),
        ("segment", "coco", "hold no data set with map for val"),
        ("panoptic", "ade", "hold no data set with panoptic for val"),
        ("segment", "nowhere", "no such folder"),
    ],
)
def test_a_set_of_another_kind_is_refused(van, marked, scenes, task, layout, message):
    ran = van("eval", marked(task), "--data", scenes / layout)
    assert (ran.status, ran.out) == (1, "")
    assert message in ran.err


def test_a_set_in_which_nothing_is_marked_is_refused(van, marked, copied):
    edit_json(copied / "coco" / "annotations" / "instances_val.json", annotations=[])
    ran = van("eval", marked("detect"), "--data", copied / "coco")
    assert (ran.status, ran.out) == (1, "")
    assert "nothing is marked in any of the 4 pictures of val" in ran.err
