"""The embedded digits: the same in memory and on disk, and never half-written."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from data.made import write_classes
from van.data.digits import LABELS, find_or_write_digits, load_digits, write_digits
from van.data.folder import Split, read_split
from van.data.pictures import Item, PictureSet
from van.errors import DataError, MissingExtra, UsageError
from van.pictures import read_picture
from van.preprocess import to_tensor


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_digits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "a new folder"
    write_digits(folder)
    return folder


def pixels(item: Item) -> np.ndarray:
    return np.asarray(item.source if not isinstance(item.source, Path) else read_picture(item.source))


def test_1433_digits_are_learnt_and_364_held_out_and_none_is_both(digits):
    train, held_out = ({item.name for item in part} for part in digits[1:])
    assert (len(digits.train), len(digits.validation)) == (1433, 364)
    assert (len(train), len(held_out)) == (1433, 364)
    assert not train & held_out


def test_every_digit_has_the_pixels_and_the_target_of_its_number_in_the_source(digits):
    source = datasets.load_digits()
    assert digits.labels == LABELS == tuple("0123456789")
    for item in digits.train + digits.validation:
        number = int(item.name.removeprefix("digit-"))
        assert item.target == source.target[number]
        grey = pixels(item)[..., 0].astype(float)
        assert np.abs(grey * 16 / 255 - source.images[number]).max() <= 0.5 * 16 / 255  # half of one of 255 steps


def test_a_fifth_of_every_class_is_held_out(digits):
    for target in range(10):
        learnt, held_out = (sum(item.target == target for item in part) for part in digits[1:])
        assert held_out == -(-(learnt + held_out) // 5)


def test_the_split_is_the_same_every_time(digits):
    again = load_digits()
    assert [item.name for item in again.train] == [item.name for item in digits.train]
    assert [item.name for item in again.validation] == [item.name for item in digits.validation]


def test_written_digits_read_back_with_the_very_same_pixels_and_targets(digits, folder):
    read = read_split(folder)
    assert read.labels == digits.labels
    for written, original in ((read.train, digits.train), (read.validation, digits.validation)):
        by_name = {item.name: item for item in original}
        assert len(written) == len(by_name)
        for item in written:
            match = by_name.pop(Path(item.name).stem)
            assert item.target == match.target
            np.testing.assert_array_equal(pixels(item), pixels(match))
        assert not by_name


def test_a_data_set_gives_the_same_tensors_from_memory_and_from_files(digits, folder):
    files = PictureSet(read_split(folder).validation, to_tensor)
    memory = PictureSet(digits.validation, to_tensor)
    places = {item.name: place for place, item in enumerate(memory.items)}
    for sample in (files[0], files[200], files[363]):
        same = memory[places[Path(sample["name"]).stem]]
        assert sample["target"] == same["target"]
        assert sample["picture"].equal(same["picture"])


def test_what_is_written_is_returned_in_the_order_in_which_it_is_read_again(tmp_path, folder):
    """A resumed run reads the folder; another order would train on other batches."""
    assert write_digits(tmp_path / "new") == read_split(tmp_path / "new")
    assert find_or_write_digits(folder) == read_split(folder)


def test_an_occupied_folder_is_refused_and_left_as_it_was(tmp_path):
    write_classes(tmp_path / "mine", {"ant": 1})
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for occupied in ("mine", "file"):
        with pytest.raises(UsageError, match="already holds something; choose a new folder"):
            write_digits(tmp_path / occupied)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(write_digits(tmp_path / "empty").train) == 1433
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    for write in (write_digits, find_or_write_digits):
        with pytest.raises(UsageError, match=r"cannot be written to .*choose another folder"):
            write(tmp_path / "file" / "digits")


def test_an_interrupted_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    from PIL import Image

    saved = []

    def save_and_stop(self, path, **options):
        saved.append(path)
        if len(saved) == 20:
            raise KeyboardInterrupt
        original(self, path, **options)

    original = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert len(saved) == 20
    assert not list(tmp_path.iterdir())


def test_several_writers_at_once_all_get_the_same_digits(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        splits = list(pool.map(lambda _: find_or_write_digits(tmp_path / "digits"), range(3)))
    assert splits[0] == splits[1] == splits[2]
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_a_folder_of_something_else_is_not_taken_for_the_digits(tmp_path):
    write_classes(tmp_path, {"0": 3, "1": 3})
    with pytest.raises(DataError, match="does not hold the digits: 2 classes, 4 pictures to learn, 2 to test"):
        find_or_write_digits(tmp_path)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # what an import of an absent package meets
    with pytest.raises(MissingExtra, match=r"pip install 'visual-attention-network\[demo\]'"):
        load_digits()
