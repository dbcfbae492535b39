"""The validation split of a dataset in any layout, with the classes in the order of the model."""

import json
import shutil
from pathlib import Path

import pytest

from datasets.synthetic import COLORS, write_classes
from datasets.synthetic_annotated import dataset_root, edit_json, task_class_names, write_scenes
from van.datasets.annotations import TASK_TARGETS
from van.datasets.dense_dataset import DenseDataset
from van.datasets.digits import LABELS
from van.datasets.evaluation import evaluation_dataset
from van.datasets.image_dataset import ImageDataset
from van.errors import DataError, UsageError
from van.preprocess import CenterCropPreprocess, ResizePreprocess

RULE = ResizePreprocess(min_size=64, max_size=128)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """Two training and three validation scenes; do not change them."""
    return write_scenes(tmp_path_factory.mktemp("scenes") / "scenes", train=2, validation=3)


@pytest.fixture
def copied(scenes, tmp_path) -> Path:
    return shutil.copytree(scenes, tmp_path / "scenes")


def validation_samples(root: Path, task: str, class_names: tuple[str, ...] | None = None, **more) -> DenseDataset:
    samples = evaluation_dataset(
        root, task=task, class_names=class_names or task_class_names(task), preprocess=RULE, **more
    )
    assert isinstance(samples, DenseDataset)
    return samples


def test_each_task_reads_the_validation_split_with_its_target_type(subtests, scenes):
    for task in TASK_TARGETS:
        with subtests.test(task=str(task)):
            for root in (dataset_root(scenes, task), scenes):  # the parent folder is accepted, too
                samples = validation_samples(root, task)
                assert len(samples) == 3
                assert samples.target_type == TASK_TARGETS[task]
                assert samples.dataset.class_names == task_class_names(task)
                assert samples[0]["image"].shape == (3, 64, 64)


def test_classification_reads_class_folders(tmp_path):
    write_classes(tmp_path / "train", dict.fromkeys(COLORS, 3))
    write_classes(tmp_path / "val", dict.fromkeys(COLORS, 1), first_seed=500)
    rule = CenterCropPreprocess(image_size=32)
    samples = evaluation_dataset(tmp_path, task="classify", class_names=tuple(COLORS), preprocess=rule)
    assert isinstance(samples, ImageDataset)
    assert [samples[index]["target"] for index in range(3)] == [0, 1, 2]


def test_labels_are_indices_of_the_model_which_may_have_more_classes(scenes):
    names, reversed_names = task_class_names("detect"), ("wasp", *task_class_names("detect")[::-1])
    first, second = (
        validation_samples(scenes, "detect")[0]["target"],
        validation_samples(scenes, "detect", reversed_names)[0]["target"],
    )
    assert [names[label] for label in first["labels"]] == [reversed_names[label] for label in second["labels"]]
    assert not first["labels"].equal(second["labels"])
    assert first["boxes"].equal(second["boxes"])
    names, reversed_names = task_class_names("segment"), task_class_names("segment")[::-1]
    first, second = (
        validation_samples(scenes, "segment")[0]["target"],
        validation_samples(scenes, "segment", reversed_names)[0]["target"],
    )
    assert (first + second == len(names) - 1).all()


def test_images_may_keep_their_size(scenes):
    rule = ResizePreprocess(min_size=32, max_size=64)
    sizes = [
        evaluation_dataset(
            scenes, task="segment", class_names=task_class_names("segment"), preprocess=rule, without_resize=own
        )[0]["image"].shape
        for own in (False, True)
    ]
    assert sizes == [(3, 32, 32), (3, 64, 64)]


def test_unknown_classes_raise_with_their_names(scenes):
    with pytest.raises(DataError, match=r"0, 1, 2.* 8, 9"):
        validation_samples(scenes, "detect", task_class_names("detect")[:8])


def invalidate(path: Path, count: int) -> None:
    """Write ``count`` times 30 annotations of which the first ``count`` have boxes without a width."""
    annotations = json.loads(path.read_text())["annotations"]
    repeated = [{**annotations[index % len(annotations)], "id": index + 1} for index in range(30 * count)]
    for one in repeated[:count]:
        one["bbox"] = [1, 1, 0, 5]
    edit_json(path, annotations=repeated)


def test_few_invalid_annotations_are_skipped_and_many_raise(copied):
    path = copied / "coco" / "annotations" / "instances_val.json"
    invalidate(path, 1)
    samples = validation_samples(copied, "detect")
    assert sum(len(image.annotations) for image in samples.dataset.images) == 29
    annotations = json.loads(path.read_text())["annotations"]
    edit_json(path, annotations=annotations[:10])
    with pytest.raises(DataError, match=r"annotation 1: box: .*width.*van data check"):
        validation_samples(copied, "detect")


def test_dataset_without_validation_split_raises(copied):
    (copied / "coco" / "annotations" / "instances_val.json").unlink()
    with pytest.raises(DataError, match="boxes for val"):
        validation_samples(copied / "coco", "detect")


def test_task_without_evaluation_raises(subtests, scenes):
    for task, rule in [("pose", RULE), ("detect", CenterCropPreprocess(image_size=32))]:
        with subtests.test(task=str(task)), pytest.raises(UsageError, match=f"classify, detect, instances.*'{task}'"):
            evaluation_dataset(scenes, task=task, class_names=("0",), preprocess=rule)


def test_skipped_annotations_are_logged(tmp_path):
    """One of many has no width: evaluation continues without it and logs a message."""
    scenes = write_scenes(tmp_path / "scenes", train=2, validation=12)
    path = scenes / "coco" / "annotations" / "instances_val.json"
    annotations = json.loads(path.read_text())["annotations"]
    annotations[3]["bbox"][2] = 0
    edit_json(path, annotations=annotations)
    messages: list[str] = []
    rule = ResizePreprocess(min_size=64, max_size=64)
    samples = evaluation_dataset(scenes, task="detect", class_names=LABELS, preprocess=rule, log=messages.append)
    assert sum(len(sample["target"]["boxes"]) for sample in samples) == len(annotations) - 1
    assert len(messages) == 1
    assert f"annotation {annotations[3]['id']}" in messages[0]
    assert "1 invalid" in messages[0]
