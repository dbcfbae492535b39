"""Folder layouts: what becomes a class, what is learnt from and what is held out."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import ImageNetInfo

from data.made import picture, write_classes
from van.data.folder import VALIDATION_NAMES, Split, evaluation_folder, evaluation_items, read_split
from van.data.pictures import Item
from van.errors import DataError, UsageError

COUNTS = {"ant": 10, "bee": 7, "cat": 2}


def sources(items: list[Item]) -> set[Path]:
    return {Path(str(item.source)) for item in items}


def part_of(split: Split, label: str) -> tuple[list[str], list[str]]:
    """The names of one class's pictures in the two parts."""
    target = split.labels.index(label)
    return tuple([item.name for item in part if item.target == target] for part in split[1:])  # type: ignore[return-value]


def test_a_plain_folder_is_split_by_class_without_losing_or_doubling_a_picture(tmp_path):
    write_classes(tmp_path, COUNTS)
    split = read_split(tmp_path)
    assert split.labels == ("ant", "bee", "cat")
    assert not sources(split.train) & sources(split.validation)
    assert sources(split.train) | sources(split.validation) == set(tmp_path.glob("*/*.png"))
    assert len(split.train) + len(split.validation) == 19
    held_out = {label: len(part_of(split, label)[1]) for label in split.labels}
    assert held_out == {"ant": 2, "bee": 1, "cat": 1}  # a fifth, and at least one


def test_every_picture_has_the_target_of_its_folder(tmp_path):
    write_classes(tmp_path, COUNTS)
    split = read_split(tmp_path)
    for item in split.train + split.validation:
        assert Path(str(item.source)).parent.name == split.labels[item.target]
        assert item.name == Path(str(item.source)).relative_to(tmp_path).as_posix()


@given(share=st.floats(0.01, 0.99), counts=st.lists(st.integers(2, 9), min_size=1, max_size=3))
def test_every_class_is_in_both_parts_whatever_the_share(share, counts, tmp_path_factory):
    root = tmp_path_factory.mktemp("share")
    for place, count in enumerate(counts):
        (root / f"class-{place}").mkdir()
        for number in range(count):  # a split reads no picture
            (root / f"class-{place}" / f"{number}.jpg").touch()
    split = read_split(root, validation_share=share)
    assert (
        {item.target for item in split.train} == {item.target for item in split.validation} == set(range(len(counts)))
    )
    assert len(split.train) + len(split.validation) == sum(counts)


def test_the_split_follows_from_the_seed(tmp_path):
    write_classes(tmp_path, COUNTS)
    assert read_split(tmp_path, seed=3) == read_split(tmp_path, seed=3)
    assert sources(read_split(tmp_path, seed=3).validation) != sources(read_split(tmp_path, seed=4).validation)


def test_another_class_leaves_the_split_of_the_others_as_it_was(tmp_path):
    write_classes(tmp_path, COUNTS)
    before = read_split(tmp_path)
    write_classes(tmp_path, {"aardvark": 6})  # it comes first, and moves every target
    after = read_split(tmp_path)
    assert after.labels == ("aardvark", "ant", "bee", "cat")
    for label in COUNTS:
        assert part_of(after, label) == part_of(before, label)


@pytest.mark.parametrize("name", VALIDATION_NAMES)
def test_a_folder_with_its_own_split_keeps_it(tmp_path, name):
    write_classes(tmp_path / "train", COUNTS)
    write_classes(tmp_path / name, {"ant": 1, "bee": 3, "cat": 1})
    split = read_split(tmp_path, validation_share=0.5)
    assert sources(split.train) == set((tmp_path / "train").rglob("*.png"))
    assert sources(split.validation) == set((tmp_path / name).rglob("*.png"))
    assert split.labels == ("ant", "bee", "cat")


def test_a_train_folder_alone_is_split(tmp_path):
    write_classes(tmp_path / "train", COUNTS)
    split = read_split(tmp_path)
    assert split.labels == ("ant", "bee", "cat")
    assert len(split.validation) == 4
    assert sources(split.train) | sources(split.validation) == set((tmp_path / "train").rglob("*.png"))


def test_classes_may_be_called_train_and_test(tmp_path):
    write_classes(tmp_path, {"plane": 3, "test": 3, "train": 3})
    split = read_split(tmp_path)
    assert split.labels == ("plane", "test", "train")
    assert len(split.train) + len(split.validation) == 9
    assert len(evaluation_items(tmp_path, split.labels)) == 9


def test_pictures_in_nested_folders_belong_to_the_class_above(tmp_path):
    write_classes(tmp_path, {"ant": 2, "bee": 2})
    write_classes(tmp_path / "ant", {"winged": 3})
    split = read_split(tmp_path)
    assert split.labels == ("ant", "bee")
    assert len([item for item in split.train + split.validation if item.target == 0]) == 5


def test_hidden_files_hidden_folders_and_other_files_are_no_pictures(tmp_path):
    write_classes(tmp_path, {"ant": 3, "bee": 3})
    write_classes(tmp_path, {".cache": 2})
    picture((0, 0, 0), 0).save(tmp_path / "ant" / ".hidden.png")
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / "loose.txt").write_text("no class")
    split = read_split(tmp_path)
    assert split.labels == ("ant", "bee")
    assert len(split.train) + len(split.validation) == 6


def test_endings_may_be_in_capitals(tmp_path):
    for label in ("ant", "bee"):
        (tmp_path / label).mkdir()
        for number in range(2):
            (tmp_path / label / f"{number}.JPEG").touch()
    assert len(read_split(tmp_path).train) == 2


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no sub-folders"),
        ({"ant": 3, "bee": 0}, "no pictures in bee"),
        ({"ant": 3, "bee": 1}, "bee has 1 picture; a split needs at least 2"),
        ({"val": 2, "test": 2}, "no train folder"),
    ],
)
def test_a_folder_that_cannot_be_split_says_why(tmp_path, counts, message):
    with pytest.raises(DataError, match=message):
        read_split(write_classes(tmp_path, counts))


def test_a_missing_folder_and_a_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        read_split(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for read in (read_split, evaluation_folder):
        with pytest.raises(DataError, match=r"file: no such folder"):
            read(tmp_path / "file")


def test_held_out_classes_must_be_known(tmp_path):
    write_classes(tmp_path / "train", {"ant": 2, "bee": 2})
    write_classes(tmp_path / "val", {"ant": 1, "wasp": 1})
    with pytest.raises(DataError, match="not known here: wasp; known: ant, bee"):
        read_split(tmp_path)


def test_an_empty_class_in_the_held_out_part_is_named(tmp_path):
    write_classes(tmp_path / "train", {"ant": 2, "bee": 2})
    write_classes(tmp_path / "val", {"ant": 1, "bee": 0})
    with pytest.raises(DataError, match="no pictures in bee"):
        read_split(tmp_path)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_that_leaves_a_part_empty_is_refused(tmp_path, share):
    write_classes(tmp_path, COUNTS)
    with pytest.raises(UsageError, match=f"--validation-share is {share}"):
        read_split(tmp_path, validation_share=share)


def test_an_evaluation_reads_the_held_out_part_or_the_folder_itself(tmp_path):
    write_classes(tmp_path / "plain", COUNTS)
    assert evaluation_folder(tmp_path / "plain") == tmp_path / "plain"
    write_classes(tmp_path / "parted" / "train", COUNTS)
    with pytest.raises(DataError, match="has a train folder and none of val"):
        evaluation_folder(tmp_path / "parted")
    write_classes(tmp_path / "parted" / "test", {"cat": 2})
    assert evaluation_folder(tmp_path / "parted") == tmp_path / "parted" / "test"
    items = evaluation_items(tmp_path / "parted", ("bee", "cat", "dog"))
    assert [item.target for item in items] == [1, 1]  # by name, not by place in the folder


def test_an_evaluation_on_unknown_classes_names_some_of_both(tmp_path):
    write_classes(tmp_path, {"wasp": 1})
    labels = [f"class {number}" for number in range(30)]
    with pytest.raises(DataError, match=r"not known here: wasp; known: class 0, .* and 22 more"):
        evaluation_items(tmp_path, labels)


def test_imagenet_folders_are_matched_to_a_thousand_classes_by_order(tmp_path):
    synsets = ImageNetInfo().label_names()
    chosen = {synsets[0]: 1, synsets[207]: 2, synsets[999]: 1}
    assert synsets[0] == "n01440764"  # the tench, which opens every list of ImageNet's classes
    write_classes(tmp_path / "val", chosen)
    labels = [f"description {number}" for number in range(1000)]
    items = evaluation_items(tmp_path, labels)
    assert [item.target for item in items] == [0, 207, 207, 999]
    for few in (labels[:999], []):  # only a thousand classes are ImageNet's
        with pytest.raises(DataError, match="not known here: n01440764"):
            evaluation_items(tmp_path, few)


def test_folders_that_only_look_like_imagenet_are_not_matched(tmp_path):
    write_classes(tmp_path, {"n00000000": 1})
    with pytest.raises(DataError, match="not known here: n00000000"):
        evaluation_items(tmp_path, [f"description {number}" for number in range(1000)])


def test_a_network_trained_on_synset_folders_finds_them_by_name(tmp_path):
    write_classes(tmp_path, {"n01440764": 1, "n01443537": 1})
    items = evaluation_items(tmp_path, ("n01443537", "n01440764"))
    assert {Path(str(item.source)).parent.name: item.target for item in items} == {"n01443537": 0, "n01440764": 1}


def test_links_to_pictures_count_and_links_in_circles_end(tmp_path):
    write_classes(tmp_path / "real", {"ant": 2})
    root = tmp_path / "linked"
    write_classes(root, {"bee": 2})
    (root / "ant").symlink_to(tmp_path / "real" / "ant")
    (root / "bee" / "again").symlink_to(root / "bee")
    split = read_split(root)
    assert len(split.train) + len(split.validation) == 4
    with Image.open(next(item.source for item in split.train if item.target == 0)) as opened:  # type: ignore[arg-type]
        assert opened.size == (40, 36)
