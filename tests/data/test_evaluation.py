"""The held-out part of a set, whatever its layout, with its classes in the order of the network."""

import json
import shutil
from pathlib import Path

import pytest

from data.made import COLOURS, write_classes
from data.made_marked import edit_json, labels_of, set_of, write_scenes
from van.data.digits import LABELS
from van.data.evaluation import evaluation_set
from van.data.marked_set import MarkedSet
from van.data.marks import WANTED
from van.data.pictures import PictureSet
from van.errors import DataError, UsageError
from van.preprocess import Preprocess, WholePreprocess

RULE = WholePreprocess(short_px=64, long_px=128)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Two scenes and three held-out ones. Not to be changed."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=2, validation=3)


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def held_out(root: Path, task: str, labels: tuple[str, ...] | None = None, **more) -> MarkedSet:
    samples = evaluation_set(root, task=task, labels=labels or labels_of(task), preprocess=RULE, **more)
    assert isinstance(samples, MarkedSet)
    return samples


@pytest.mark.parametrize("task", WANTED)
def test_each_task_reads_the_held_out_part_as_it_wants_it(scenes, task):
    for root in (set_of(scenes, task), scenes):  # the folder around it will do
        samples = held_out(root, task)
        assert len(samples) == 3
        assert samples.want == WANTED[task]
        assert samples.marked.labels == labels_of(task)
        assert samples[0]["picture"].shape == (3, 64, 64)


def test_classification_reads_class_folders(tmp_path):
    write_classes(tmp_path / "train", dict.fromkeys(COLOURS, 3))
    write_classes(tmp_path / "val", dict.fromkeys(COLOURS, 1), first_seed=500)
    rule = Preprocess(size_px=32)
    samples = evaluation_set(tmp_path, task="classify", labels=tuple(COLOURS), preprocess=rule)
    assert isinstance(samples, PictureSet)
    assert [samples[place]["target"] for place in range(3)] == [0, 1, 2]


def test_labels_come_in_the_order_of_the_network_which_may_know_more(scenes):
    plain, turned = labels_of("detect"), ("wasp", *labels_of("detect")[::-1])
    first, second = held_out(scenes, "detect")[0]["target"], held_out(scenes, "detect", turned)[0]["target"]
    assert [plain[label] for label in first["labels"]] == [turned[label] for label in second["labels"]]
    assert not first["labels"].equal(second["labels"])
    assert first["boxes"].equal(second["boxes"])
    plain, turned = labels_of("segment"), labels_of("segment")[::-1]
    first, second = held_out(scenes, "segment")[0]["target"], held_out(scenes, "segment", turned)[0]["target"]
    assert (first + second == len(plain) - 1).all()


def test_pictures_may_keep_their_own_size(scenes):
    rule = WholePreprocess(short_px=32, long_px=64)
    sizes = [
        evaluation_set(scenes, task="segment", labels=labels_of("segment"), preprocess=rule, own_size=own)[0][
            "picture"
        ].shape
        for own in (False, True)
    ]
    assert sizes == [(3, 32, 32), (3, 64, 64)]


def test_classes_that_the_network_does_not_know_are_named(scenes):
    with pytest.raises(DataError, match="classes that the network does not know: 8, 9; it knows 0, 1, 2"):
        held_out(scenes, "detect", labels_of("detect")[:8])


def damaged(path: Path, count: int) -> None:
    """Boxes of no width for the first ``count`` things of ``count`` times 30."""
    annotations = json.loads(path.read_text())["annotations"]
    whole = [{**annotations[place % len(annotations)], "id": place + 1} for place in range(30 * count)]
    for one in whole[:count]:
        one["bbox"] = [1, 1, 0, 5]
    edit_json(path, annotations=whole)


def test_a_few_damaged_marks_are_left_out_and_many_are_refused(copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    damaged(path, 1)
    whole = held_out(copied, "detect")
    assert sum(len(picture.marks) for picture in whole.marked.pictures) == 29
    annotations = json.loads(path.read_text())["annotations"]
    edit_json(path, annotations=annotations[:10])
    with pytest.raises(DataError, match="has no width; wanted more than 0 pixels; van data check lists everything"):
        held_out(copied, "detect")


def test_a_set_without_a_held_out_part_is_refused(copied):
    (copied / "coco" / "annotations" / "instances_val.json").unlink()
    with pytest.raises(DataError, match="hold no data set with boxes for val"):
        held_out(copied / "coco", "detect")


@pytest.mark.parametrize(("task", "rule"), [("pose", RULE), ("detect", Preprocess(size_px=32))])
def test_what_cannot_be_measured_is_refused(scenes, task, rule):
    with pytest.raises(UsageError, match=f"made to {task} cannot be measured; known: classify, detect, instances"):
        evaluation_set(scenes, task=task, labels=("0",), preprocess=rule)


def test_damaged_marks_are_in_no_figure_and_are_told(tmp_path):
    """One of many has no width: measuring goes on without it, and says so."""
    scenes = write_scenes(tmp_path / "scenes", train=2, validation=12)
    path = scenes / "coco" / "annotations" / "instances_val.json"
    annotations = json.loads(path.read_text())["annotations"]
    annotations[3]["bbox"][2] = 0
    edit_json(path, annotations=annotations)
    told: list[str] = []
    rule = WholePreprocess(short_px=64, long_px=64)
    found = evaluation_set(scenes, task="detect", labels=LABELS, preprocess=rule, tell=told.append)
    assert sum(len(sample["target"]["boxes"]) for sample in found) == len(annotations) - 1
    assert len(told) == 1
    assert f"annotation {annotations[3]['id']}" in told[0]
    assert told[0].startswith("1 damaged marks are in no figure")
