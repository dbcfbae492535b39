"""Class folders: which folders become classes, and which images are for training and for validation."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import ImageNetInfo

from datasets.synthetic import make_image, write_classes
from van.datasets.annotations import VALIDATION_NAMES
from van.datasets.folder import (
    TrainValSplits,
    find_validation_folder,
    load_image_folder,
    load_validation_items,
)
from van.datasets.image_dataset import Item
from van.errors import DataError, UsageError

COUNTS = {"ant": 10, "bee": 7, "cat": 2}


def sources(items: list[Item]) -> set[Path]:
    return {Path(str(item.source)) for item in items}


def names_by_split(splits: TrainValSplits, label: str) -> tuple[list[str], list[str]]:
    """Return the names of one class's images in either split."""
    target = splits.class_names.index(label)
    return tuple([item.name for item in split if item.target == target] for split in splits[1:])  # type: ignore[return-value]


def test_folder_without_splits_is_split_by_class_into_disjoint_sets(tmp_path):
    write_classes(tmp_path, COUNTS)
    splits = load_image_folder(tmp_path)
    assert splits.class_names == ("ant", "bee", "cat")
    assert not sources(splits.train) & sources(splits.validation)
    assert sources(splits.train) | sources(splits.validation) == set(tmp_path.glob("*/*.png"))
    assert len(splits.train) + len(splits.validation) == 19
    num_val = {label: len(names_by_split(splits, label)[1]) for label in splits.class_names}
    assert num_val == {"ant": 2, "bee": 1, "cat": 1}  # 20 %, and at least one


def test_every_image_has_the_class_index_of_its_folder(tmp_path):
    write_classes(tmp_path, COUNTS)
    splits = load_image_folder(tmp_path)
    for item in splits.train + splits.validation:
        assert Path(str(item.source)).parent.name == splits.class_names[item.target]
        assert item.name == Path(str(item.source)).relative_to(tmp_path).as_posix()


@given(fraction=st.floats(0.01, 0.99), counts=st.lists(st.integers(2, 9), min_size=1, max_size=3))
def test_every_class_is_in_both_splits_for_any_fraction(fraction, counts, tmp_path_factory):
    root = tmp_path_factory.mktemp("fraction")
    for label, count in enumerate(counts):
        (root / f"class-{label}").mkdir()
        for index in range(count):  # the split opens no image
            (root / f"class-{label}" / f"{index}.jpg").touch()
    splits = load_image_folder(root, val_fraction=fraction)
    assert (
        {item.target for item in splits.train} == {item.target for item in splits.validation} == set(range(len(counts)))
    )
    assert len(splits.train) + len(splits.validation) == sum(counts)


def test_split_is_determined_by_the_seed(tmp_path):
    write_classes(tmp_path, COUNTS)
    assert load_image_folder(tmp_path, seed=3) == load_image_folder(tmp_path, seed=3)
    assert sources(load_image_folder(tmp_path, seed=3).validation) != sources(
        load_image_folder(tmp_path, seed=4).validation
    )


def test_adding_a_class_keeps_the_split_of_the_others(tmp_path):
    write_classes(tmp_path, COUNTS)
    before = load_image_folder(tmp_path)
    write_classes(tmp_path, {"aardvark": 6})  # it comes first and shifts every class index
    after = load_image_folder(tmp_path)
    assert after.class_names == ("aardvark", "ant", "bee", "cat")
    for label in COUNTS:
        assert names_by_split(after, label) == names_by_split(before, label)


def test_folder_with_its_own_splits_keeps_them(subtests, new_folder):
    for name in VALIDATION_NAMES:
        folder = new_folder()
        with subtests.test(name=str(name)):
            write_classes(folder / "train", COUNTS)
            write_classes(folder / name, {"ant": 1, "bee": 3, "cat": 1})
            splits = load_image_folder(folder, val_fraction=0.5)
            assert sources(splits.train) == set((folder / "train").rglob("*.png"))
            assert sources(splits.validation) == set((folder / name).rglob("*.png"))
            assert splits.class_names == ("ant", "bee", "cat")


def test_train_folder_alone_is_split(tmp_path):
    write_classes(tmp_path / "train", COUNTS)
    splits = load_image_folder(tmp_path)
    assert splits.class_names == ("ant", "bee", "cat")
    assert len(splits.validation) == 4
    assert sources(splits.train) | sources(splits.validation) == set((tmp_path / "train").rglob("*.png"))


def test_classes_may_be_named_train_and_test(tmp_path):
    write_classes(tmp_path, {"plane": 3, "test": 3, "train": 3})
    splits = load_image_folder(tmp_path)
    assert splits.class_names == ("plane", "test", "train")
    assert len(splits.train) + len(splits.validation) == 9
    assert len(load_validation_items(tmp_path, splits.class_names)) == 9


def test_images_in_nested_folders_belong_to_the_class_above(tmp_path):
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    write_classes(tmp_path / "ant", {"winged": 3})
    splits = load_image_folder(tmp_path)
    assert splits.class_names == ("ant", "bee")
    assert len([item for item in splits.train + splits.validation if item.target == 0]) == 5


def test_hidden_files_hidden_folders_and_other_files_are_ignored(tmp_path):
    write_classes(tmp_path, {"ant": 3, "bee": 3})
    write_classes(tmp_path, {".cache": 2})
    make_image((0, 0, 0), 0).save(tmp_path / "ant" / ".hidden.png")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "loose.txt").write_text("no class")
    splits = load_image_folder(tmp_path)
    assert splits.class_names == ("ant", "bee")
    assert len(splits.train) + len(splits.validation) == 6


def test_suffixes_are_case_insensitive(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for index in range(2):
            (tmp_path / label / f"{index}.JPEG").touch()
    assert len(load_image_folder(tmp_path).train) == 2


def test_invalid_folder_raises_with_the_reason(subtests, new_folder):
    for counts, facts in [
        ({}, "no subfolders"),
        ({"ant": 3, "bee": 0}, "none in bee"),
        ({"ant": 3, "bee": 1}, "bee: .*2 images.*1"),
        ({"val": 2, "test": 2}, "test, val without a train folder"),
    ]:
        folder = new_folder()
        with subtests.test(counts=str(counts), facts=str(facts)), pytest.raises(DataError, match=facts):
            load_image_folder(write_classes(folder, counts))


def test_missing_folder_and_file_raise_with_the_path(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: .*no such folder"):
        load_image_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for read in (load_image_folder, find_validation_folder):
        with pytest.raises(DataError, match=r"file: .*no such folder"):
            read(tmp_path / "file")


def test_unknown_validation_classes_raise(tmp_path):
    write_classes(tmp_path / "train", {"ant": 2, "bee": 2})
    write_classes(tmp_path / "val", {"ant": 1, "wasp": 1})
    with pytest.raises(DataError, match=r"ant, bee.*wasp"):
        load_image_folder(tmp_path)


def test_empty_validation_class_raises(tmp_path):
    write_classes(tmp_path / "train", {"ant": 2, "bee": 2})
    write_classes(tmp_path / "val", {"ant": 1, "bee": 0})
    with pytest.raises(DataError, match="none in bee"):
        load_image_folder(tmp_path)


def test_fraction_that_leaves_a_split_empty_raises(subtests, new_folder):
    for fraction in [0.0, 1.0, -0.1, float("nan")]:
        folder = new_folder()
        with subtests.test(fraction=str(fraction)):
            write_classes(folder, COUNTS)
            with pytest.raises(UsageError, match=rf"--val-fraction.*{fraction}"):
                load_image_folder(folder, val_fraction=fraction)


def test_evaluation_reads_the_validation_split_or_the_folder_itself(tmp_path):
    write_classes(tmp_path / "plain", COUNTS)
    assert find_validation_folder(tmp_path / "plain") == tmp_path / "plain"
    write_classes(tmp_path / "split" / "train", COUNTS)
    with pytest.raises(DataError, match=r"split: .*val, valid, validation, test"):
        find_validation_folder(tmp_path / "split")
    write_classes(tmp_path / "split" / "test", {"cat": 2})
    assert find_validation_folder(tmp_path / "split") == tmp_path / "split" / "test"
    items = load_validation_items(tmp_path / "split", ("bee", "cat", "dog"))
    assert [item.target for item in items] == [1, 1]  # by name, not by position in the folder


def test_unknown_classes_raise_with_some_names_of_both(tmp_path):
    write_classes(tmp_path, {"wasp": 1})
    class_names = [f"class {index}" for index in range(30)]
    with pytest.raises(DataError, match=r"class 0, .* and 22 more.*wasp"):
        load_validation_items(tmp_path, class_names)


def test_imagenet_folders_are_matched_to_1000_classes_by_order(tmp_path):
    synsets = ImageNetInfo().label_names()
    chosen = {synsets[0]: 1, synsets[207]: 2, synsets[999]: 1}
    assert synsets[0] == "n01440764"  # the tench, the first of ImageNet's classes
    write_classes(tmp_path / "val", chosen)
    class_names = [f"description {index}" for index in range(1000)]
    items = load_validation_items(tmp_path, class_names)
    assert [item.target for item in items] == [0, 207, 207, 999]
    for few in (class_names[:999], []):  # only a model with 1,000 classes has ImageNet's
        with pytest.raises(DataError, match="n01440764"):
            load_validation_items(tmp_path, few)


def test_unknown_synset_folders_are_not_matched(tmp_path):
    write_classes(tmp_path, {"n00000000": 1})
    with pytest.raises(DataError, match="n00000000"):
        load_validation_items(tmp_path, [f"description {index}" for index in range(1000)])


def test_model_trained_on_synset_folders_matches_them_by_name(tmp_path):
    write_classes(tmp_path, {"n01440764": 1, "n01443537": 1})
    items = load_validation_items(tmp_path, ("n01443537", "n01440764"))
    assert {Path(str(item.source)).parent.name: item.target for item in items} == {"n01443537": 0, "n01440764": 1}


def test_symbolic_links_are_followed_and_cycles_end(tmp_path):
    write_classes(tmp_path / "real", {"ant": 2})
    root = tmp_path / "linked"
    write_classes(root, {"bee": 2})
    (root / "ant").symlink_to(tmp_path / "real" / "ant")
    (root / "bee" / "again").symlink_to(root / "bee")
    splits = load_image_folder(root)
    assert len(splits.train) + len(splits.validation) == 4
    with Image.open(next(item.source for item in splits.train if item.target == 0)) as opened:  # type: ignore[arg-type]
        assert opened.size == (40, 36)
