"""The embedded digits: equal in memory and on disk, and never written partially."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets

from datasets.synthetic import write_classes
from van.datasets.digits import LABELS, find_or_write_digits, load_digits, write_digits
from van.datasets.folder import TrainValSplits, load_image_folder
from van.datasets.image_dataset import ImageDataset, Item
from van.errors import DataError, MissingExtra, UsageError
from van.images import read_image
from van.preprocess import to_tensor


@pytest.fixture(scope="module")
def digits() -> TrainValSplits:
    return load_digits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "a new folder"
    write_digits(folder)
    return folder


def pixels(item: Item) -> np.ndarray:
    return np.asarray(item.source if not isinstance(item.source, Path) else read_image(item.source))


def test_digits_are_split_into_1433_training_and_364_validation_images(digits):
    train, validation = ({item.name for item in split} for split in digits[1:])
    assert (len(digits.train), len(digits.validation)) == (1433, 364)
    assert (len(train), len(validation)) == (1433, 364)
    assert not train & validation


def test_every_digit_has_the_pixels_and_class_of_its_index_in_the_source(digits):
    source = datasets.load_digits()
    assert digits.class_names == LABELS == tuple("0123456789")
    for item in digits.train + digits.validation:
        index = int(item.name.removeprefix("digit-"))
        assert item.target == source.target[index]
        gray = pixels(item)[..., 0].astype(float)
        assert np.abs(gray * 16 / 255 - source.images[index]).max() <= 0.5 * 16 / 255  # half of a step of 255


def test_a_fifth_of_every_class_is_for_validation(digits):
    for target in range(10):
        num_train, num_val = (sum(item.target == target for item in split) for split in digits[1:])
        assert num_val == -(-(num_train + num_val) // 5)


def test_split_is_reproducible(digits):
    again = load_digits()
    assert [item.name for item in again.train] == [item.name for item in digits.train]
    assert [item.name for item in again.validation] == [item.name for item in digits.validation]


def test_written_digits_are_read_with_equal_pixels_and_classes(digits, folder):
    read = load_image_folder(folder)
    assert read.class_names == digits.class_names
    for written, original in ((read.train, digits.train), (read.validation, digits.validation)):
        by_name = {item.name: item for item in original}
        assert len(written) == len(by_name)
        for item in written:
            match = by_name.pop(Path(item.name).stem)
            assert item.target == match.target
            np.testing.assert_array_equal(pixels(item), pixels(match))
        assert not by_name


def test_dataset_gives_equal_tensors_from_memory_and_from_files(digits, folder):
    files = ImageDataset(load_image_folder(folder).validation, to_tensor)
    memory = ImageDataset(digits.validation, to_tensor)
    indices = {item.name: index for index, item in enumerate(memory.items)}
    for sample in (files[0], files[200], files[363]):
        same = memory[indices[Path(sample["name"]).stem]]
        assert sample["target"] == same["target"]
        assert sample["image"].equal(same["image"])


def test_written_digits_are_returned_in_the_order_in_which_they_are_read(tmp_path, folder):
    """A resumed run reads the folder; another order would train on other batches."""
    assert write_digits(tmp_path / "new") == load_image_folder(tmp_path / "new")
    assert find_or_write_digits(folder) == load_image_folder(folder)


def test_folder_with_files_raises_and_is_not_modified(tmp_path):
    write_classes(tmp_path / "mine", {"ant": 1})
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for occupied in ("mine", "file"):
        with pytest.raises(UsageError, match=f"{occupied}: .*new or empty folder"):
            write_digits(tmp_path / occupied)
    assert sorted(tmp_path.rglob("*")) == before


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    assert len(write_digits(tmp_path / "empty").train) == 1433
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_folder_that_cannot_be_created_raises(tmp_path):
    (tmp_path / "file").write_text("mine")
    for write in (write_digits, find_or_write_digits):
        with pytest.raises(UsageError, match=r"file/digits: .*cannot be written"):
            write(tmp_path / "file" / "digits")


def test_interrupted_writing_leaves_no_files(tmp_path, monkeypatch):
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


def test_concurrent_writers_get_the_same_digits(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        splits = list(pool.map(lambda _: find_or_write_digits(tmp_path / "digits"), range(2)))
    assert splits[0] == splits[1]
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_folder_with_other_images_raises(tmp_path):
    write_classes(tmp_path, {"0": 3, "1": 3})
    with pytest.raises(DataError, match="2 classes, 4 and 2 images"):
        find_or_write_digits(tmp_path)


def test_missing_scikit_learn_raises_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # makes the import fail
    with pytest.raises(MissingExtra, match=r"pip install 'visual-attention-network\[demo\]'"):
        load_digits()
