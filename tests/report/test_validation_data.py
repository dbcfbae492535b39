"""The validation images of a run are loaded again, and the run was not trained on them."""

import shutil

import pytest

from datasets.synthetic_annotated import task_class_names, write_dense_checkpoint, write_scenes
from report.synthetic_run import HOSTILE, write_run
from van.datasets.digits import NUM_VAL
from van.datasets.folder import load_image_folder, load_validation_items
from van.errors import DataError
from van.model import Model
from van.report.data import EvenSubset, ReportData, find_validation_data


def find(run, recipe, model, data=None):
    return find_validation_data(ReportData(run=run, recipe=recipe, versions={}, records=[]), model, data)


def names(validation):
    return {item.name for item in validation[0].items}


def recipe_of(images, **changes):
    return {"recipe": "classify", "data": str(images), "val_fraction": 0.5, "seed": 0} | changes


@pytest.fixture(scope="module")
def loaded(finished):
    return Model.load(finished / "best.safetensors")


def test_a_folder_without_splits_is_split_as_in_training(finished, images, loaded):
    split = load_image_folder(images, val_fraction=0.5, seed=0)
    for data in (None, images):  # also if it is given explicitly
        validation = find(finished, recipe_of(images), loaded, data=data)
        assert names(validation) == {item.name for item in split.validation}
        assert not names(validation) & {item.name for item in split.train}
    assert names(validation) != names(find(finished, recipe_of(images, seed=1), loaded))
    assert len(load_validation_items(images, loaded.class_names)) == 12  # negative control: all images


def test_another_folder_is_used_as_a_whole(finished, images, loaded, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    validation = find(finished, recipe_of(images), loaded, data=copy)
    assert len(validation[0]) == 12
    assert validation[1] == str(copy)


def test_the_digits_recipe_needs_no_folder(tmp_path):
    from van.datasets.digits import LABELS

    run = write_run(tmp_path / "run", data=None, class_names=LABELS)
    validation = find(run, {"recipe": "digits", "images": None}, Model.load(run / "best.safetensors"))
    assert len(validation[0]) == NUM_VAL


def test_generated_scenes_are_found_after_the_run_was_moved(tmp_path):
    write_scenes(tmp_path / "before" / "scenes", train=1, validation=2)
    (tmp_path / "before").rename(tmp_path / "after")
    network = Model.load(write_dense_checkpoint(tmp_path / "after" / "best.safetensors", "segment"))
    validation = find(tmp_path / "after", {"recipe": "scenes-segment", "data": None}, network)
    assert len(validation[0]) == 2
    assert network.class_names == task_class_names("segment")


def test_missing_datasets_raise(finished, loaded):
    for recipe, message in (
        ({"recipe": "classify", "data": "nowhere/classes", "seed": 0}, r"nowhere.classes: .*no such folder"),
        ({"recipe": "mine"}, r"settings\.json.*--data"),
        ({"recipe": "digits", "images": None}, r"digits.*<img src=x"),
    ):
        with pytest.raises(DataError, match=message):
            find(finished, recipe, loaded)


def test_classes_that_differ_from_the_run_raise(finished, images, loaded, tmp_path):
    copy = shutil.copytree(images, tmp_path / "copy")
    shutil.copytree(copy / HOSTILE[0], copy / "another")
    with pytest.raises(DataError, match=r"copy.*another"):
        find(finished, recipe_of(copy), loaded)


def test_a_subset_is_evenly_spaced(finished, images, loaded):
    samples = find(finished, recipe_of(images), loaded)[0]
    few = EvenSubset(samples, 3)
    assert [few[index]["target"] for index in range(len(few))] == [0, 1, 2]
    assert [samples[index]["target"] for index in range(3)] == [0, 0, 1]  # negative control: the first three
    assert len(EvenSubset(samples, 100)) == len(samples) == 6
