"""The held-out pictures of a run are found again, and they are those that it did not learn from."""

import shutil

import pytest

from data.made_marked import labels_of, write_marked_checkpoint, write_scenes
from report.made_run import HOSTILE, write_run
from van.data.digits import VALIDATION_DIGITS
from van.data.folder import evaluation_items, read_split
from van.errors import DataError
from van.models.load import load
from van.report.held_out import EveryNth, find_held_out, picture_named


def names(held_out):
    return {item.name for item in held_out.samples.items}


def recipe_of(pictures, **changes):
    return {"recipe": "finetune", "data": str(pictures), "validation_share": 0.5, "seed": 0} | changes


@pytest.fixture(scope="module")
def loaded(finished):
    return load(finished / "best.safetensors")


def test_a_folder_without_a_split_is_split_as_training_split_it(finished, pictures, loaded):
    split = read_split(pictures, validation_share=0.5, seed=0)
    for data in (None, pictures):  # also if it is named again
        found = find_held_out(finished, recipe_of(pictures), loaded, data=data)
        assert names(found) == {item.name for item in split.validation}
        assert not names(found) & {item.name for item in split.train}
    assert names(found) != names(find_held_out(finished, recipe_of(pictures, seed=1), loaded))
    assert len(evaluation_items(pictures, loaded.labels)) == 12  # the control: all of them would be measured


def test_another_folder_is_taken_as_it_is(finished, pictures, loaded, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "copy")
    found = find_held_out(finished, recipe_of(pictures), loaded, data=copy)
    assert len(found.samples) == 12
    assert found.source == str(copy)


def test_the_embedded_digits_need_no_folder(tmp_path):
    from van.data.digits import LABELS

    run = write_run(tmp_path / "run", data=None, labels=LABELS)
    found = find_held_out(run, {"recipe": "digits", "pictures": None}, load(run / "best.safetensors"))
    assert len(found.samples) == VALIDATION_DIGITS
    assert picture_named(found.samples, found.samples.items[3].name).size == (8, 8)


def test_scenes_lie_in_the_run_also_after_it_has_been_moved(tmp_path):
    write_scenes(tmp_path / "before" / "scenes", train=1, validation=2)
    (tmp_path / "before").rename(tmp_path / "after")
    network = load(write_marked_checkpoint(tmp_path / "after" / "best.safetensors", "segment"))
    found = find_held_out(tmp_path / "after", {"recipe": "scenessegment", "scenes": None}, network)
    assert len(found.samples) == 2
    assert network.labels == labels_of("segment")
    assert picture_named(found.samples, found.samples.marked.pictures[1].name).size == (64, 64)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"recipe": "finetune", "data": "nowhere/classes", "seed": 0}, "nowhere/classes: no such folder"),
        ({"recipe": "mine"}, "do not say where its pictures lay; give their folder by --data"),
        ({"recipe": "digits", "pictures": None}, "say it learnt the digits, and its classes are"),
    ],
)
def test_what_is_gone_is_told(finished, loaded, recipe, message):
    with pytest.raises(DataError, match=message.replace("/", ".")):
        find_held_out(finished, recipe, loaded)


def test_other_classes_than_those_learnt_are_told(finished, pictures, loaded, tmp_path):
    copy = shutil.copytree(pictures, tmp_path / "copy")
    shutil.copytree(copy / HOSTILE[0], copy / "another")
    with pytest.raises(DataError, match=r"has the classes .*another.*; when the run began there were"):
        find_held_out(finished, recipe_of(copy), loaded)


def test_some_of_a_set_are_spread_over_all_of_it(finished, pictures, loaded):
    samples = find_held_out(finished, recipe_of(pictures), loaded).samples
    few = EveryNth(samples, 3)
    assert [few[index]["target"] for index in range(len(few))] == [0, 1, 2]
    assert [samples[index]["target"] for index in range(3)] == [0, 0, 1]  # the control: the first ones
    assert len(EveryNth(samples, 100)) == len(samples) == 6
