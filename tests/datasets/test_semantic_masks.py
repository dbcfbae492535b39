"""Semantic masks are paired and read in every layout and file format; invalid ones are reported."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.datasets.annotations import IGNORE_INDEX, Issues
from van.datasets.cityscapes import CITYSCAPES
from van.datasets.formats import FORMATS, load_split
from van.datasets.scenes import write_digit_scenes
from van.datasets.semantic_masks import count_mask_values, load_semantic_mask, read_mask_values
from van.errors import DataError, ImageError

VALUES = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def save(path: Path, image: Image.Image | np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def write_plain(root: Path, split: str, *masks: np.ndarray) -> Path:
    """Write ``images/SPLIT/0.png`` ... with these masks; return ``root``."""
    for index, values in enumerate(masks):
        save(root / "images" / split / f"{index}.png", Image.new("RGB", values.shape[::-1], (index, 0, 0)))
        save(root / "masks" / split / f"{index}.png", values)
    return root


def read(root: Path, split: str = "train"):
    """Read by the format that recognizes the folder; a split may be empty."""
    (reader,) = [each.read for each in FORMATS.values() if "segment" in each.tasks and each.recognize(root, split)]
    return reader(root, split, Issues())


def issues_of(root: Path, split: str = "train") -> list[str]:
    issues = Issues(collect=True)
    load_split(root, split, target_type="semantic", issues=issues)
    return [str(issue).replace(f"{root}/", "") for issue in issues.collected]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=3, validation=2, image_size=64)
    return folder


def test_digit_scenes_are_found_below_their_folder_with_their_class_names(scenes):
    dataset = read(scenes / "ade")
    assert dataset.class_names[:3] == ("background", "0", "1")
    assert dataset.mask_values == dataset.category_ids == tuple(range(1, 12))
    assert [image.name for image in dataset.images] == ["000000.png", "000001.png", "000002.png"]
    assert [image.id for image in dataset.images] == [1, 2, 3]
    assert dataset.images[0].mask_path == scenes / "ade" / "annotations" / "training" / "000000.png"
    assert len(read(scenes / "ade", "val").images) == 2
    labels = load_semantic_mask(dataset.images[0].mask_path, dataset.mask_values)
    stored = np.asarray(Image.open(dataset.images[0].mask_path))
    assert (labels == stored.astype(int) - 1).all()
    assert len(np.unique(labels)) > 1


def test_ade_classes_without_names_are_the_values_of_both_splits(tmp_path):
    for split, greatest in (("training", 3), ("validation", 5)):
        save(tmp_path / "images" / split / "a.jpg", Image.new("RGB", (3, 2)))
        save(tmp_path / "annotations" / split / "a.png", np.where(VALUES == 3, np.uint8(greatest), VALUES))
    dataset = read(tmp_path)
    assert dataset.class_names == ("class 1", "class 2", "class 3", "class 4", "class 5")
    assert read(tmp_path, "val").class_names == dataset.class_names
    assert (
        load_semantic_mask(tmp_path / "annotations" / "training" / "a.png", dataset.mask_values)[0, 0] == IGNORE_INDEX
    )


def test_ade_class_names_are_the_first_synonyms_of_object_info(tmp_path):
    save(tmp_path / "ADEChallengeData2016" / "images" / "training" / "a.jpg", Image.new("RGB", (3, 2)))
    save(tmp_path / "ADEChallengeData2016" / "annotations" / "training" / "a.png", VALUES)
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = "1\t0.15\t11\t2\t1\twall\n2\t0.10\t6\t6\t1\tbuilding, edifice\n3\t0.09\t8\t7\t1\tchest of drawers\n"
    (tmp_path / "ADEChallengeData2016" / "objectInfo150.txt").write_text(head + rows)
    assert read(tmp_path / "ADEChallengeData2016").class_names == ("wall", "building", "chest of drawers")


def test_cityscapes_has_the_same_19_classes_from_both_kinds_of_mask(subtests, new_folder):
    for kind, values in [("labelTrainIds", tuple(range(19))), ("labelIds", tuple(CITYSCAPES.values()))]:
        folder = new_folder()
        with subtests.test(kind=str(kind), values=str(values)):
            for split, city in (("train", "aachen"), ("val", "lindau")):
                save(
                    folder / "leftImg8bit" / split / city / f"{city}_000000_000019_leftImg8bit.png",
                    Image.new("RGB", (3, 1)),
                )
                stem = folder / "gtFine" / split / city / f"{city}_000000_000019_gtFine_"
                save(
                    Path(f"{stem}{kind}.png"),
                    np.array([[values[0], values[13], 255 if values[0] == 0 else 4]], np.uint8),
                )
                save(Path(f"{stem}instanceIds.png"), np.zeros((1, 3), np.uint16))
                save(Path(f"{stem}color.png"), Image.new("RGBA", (3, 1)))
            dataset = read(folder)
            (image,) = dataset.images
            assert (
                len(dataset.class_names),
                dataset.class_names[0],
                dataset.class_names[13],
                dataset.class_names[18],
            ) == (
                19,
                "road",
                "car",
                "bicycle",
            )
            assert dataset.mask_values == values
            assert image.name == "aachen/aachen_000000_000019_leftImg8bit.png"
            assert load_semantic_mask(image.mask_path, dataset.mask_values).tolist() == [[0, 13, IGNORE_INDEX]]
            known = {*dataset.mask_values, *dataset.unlabeled_values, 255}
            assert set(count_mask_values(image.mask_path).counts) <= known
            assert [p.name[:6] for p in read(folder, "val").images] == ["lindau"]


def test_cityscapes_train_ids_are_preferred_and_a_missing_mask_is_reported(tmp_path):
    for name in "ab":
        save(tmp_path / "leftImg8bit" / "train" / "x" / f"{name}_leftImg8bit.png", Image.new("RGB", (3, 1)))
        save(tmp_path / "gtFine" / "train" / "x" / f"{name}_gtFine_labelIds.png", np.full((1, 3), 26, np.uint8))
        (tmp_path / "leftImg8bit" / "val").mkdir(exist_ok=True)
    save(tmp_path / "gtFine" / "train" / "x" / "a_gtFine_labelTrainIds.png", np.full((1, 3), 13, np.uint8))
    expected = "gtFine/train/x/b_gtFine_labelTrainIds.png"
    (issue,) = issues_of(tmp_path)
    assert re.match(f"leftImg8bit/train/x/b_leftImg8bit.png: .*{expected}", issue)


def test_classes_without_names_are_the_values_of_either_split(tmp_path):
    write_plain(tmp_path, "train", VALUES)
    write_plain(tmp_path, "val", np.full((2, 2), 9, np.uint8))
    dataset = read(tmp_path)
    assert dataset.class_names == ("class 0", "class 1", "class 2", "class 3", "class 9")
    assert dataset.mask_values == (0, 1, 2, 3, 9)
    assert load_semantic_mask(dataset.images[0].mask_path, dataset.mask_values).tolist() == [
        [0, 1, 2],
        [3, IGNORE_INDEX, 1],
    ]


def test_classes_are_named_in_order_from_value_0(tmp_path):
    write_plain(tmp_path, "train", VALUES)
    (tmp_path / "classes.txt").write_text("\ufeffbackground\r\nPéché\r\n鳥\r\ncat \n\n", encoding="utf-8")
    dataset = read(tmp_path)
    assert dataset.class_names == ("background", "Péché", "鳥", "cat")
    assert dataset.mask_values == (0, 1, 2, 3)


def test_masks_with_no_other_values_than_0_and_255_have_two_classes(subtests, new_folder):
    for names in [None, "background\nobject\n"]:
        folder = new_folder()
        with subtests.test(names=str(names)):
            write_plain(folder, "train", np.array([[0, 255]], np.uint8), np.array([[0, 0]], np.uint8))
            if names:
                (folder / "classes.txt").write_text(names)
            dataset = read(folder)
            assert dataset.mask_values == (0, 255)
            assert dataset.class_names == (("background", "object") if names else ("class 0", "class 255"))
            others = write_plain(folder / "others", "train", np.array([[0, 255, 1]], np.uint8))
            if names:
                (others / "classes.txt").write_text(names)
            assert read(others).mask_values == (0, 1)  # negative control: here 255 is the ignore index


def test_dataset_without_splits_is_split_reproducibly(tmp_path):
    write_plain(tmp_path, "", *[np.full((2, 2), index % 3, np.uint8) for index in range(20)])
    splits = {split: [image.name for image in read(tmp_path, split).images] for split in ("train", "val")}
    assert (len(splits["train"]), len(splits["val"])) == (16, 4)
    assert not set(splits["train"]) & set(splits["val"])
    assert [image.name for image in read(tmp_path, "val").images] == splits["val"]
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "masks").rename(tmp_path / "moved masks")
    for source, target in (("moved", "images"), ("moved masks", "masks")):
        (tmp_path / target).mkdir()
        (tmp_path / source).rename(tmp_path / target / "train")
    assert [image.name for image in read(tmp_path, "val").images] == splits["val"]


def test_images_and_masks_without_counterpart_are_reported_and_skipped(tmp_path):
    write_plain(tmp_path, "train", VALUES, VALUES, VALUES)
    (tmp_path / "masks" / "train" / "1.png").unlink()
    save(tmp_path / "masks" / "train" / "deep" / "7.png", VALUES)
    save(tmp_path / "images" / "train" / "2.jpg", Image.new("RGB", (3, 2)))
    facts = (r"images/train/1\.png: .*masks/train/1\.png", r"images/train/2\.png: .*named 2",
             r"masks/train/deep/7\.png: .*images/train/deep/7")  # fmt: skip
    for fact, issue in zip(facts, sorted(issues_of(tmp_path)), strict=True):
        assert re.match(fact, issue)
    with pytest.raises(DataError, match=r"1\.png: .*van data check"):
        read(tmp_path)


def test_folder_of_another_layout_raises(subtests, new_folder):
    for folders, facts in [
        (("images", "masks"), "images: .*no images"),
        (("images/val", "masks/val"), "images: .*train.*val"),
    ]:
        folder = new_folder()
        with subtests.test(facts=str(facts)):
            for name in folders:
                (folder / name).mkdir(parents=True)
            with pytest.raises(DataError, match=facts):
                read(folder)


def test_class_list_with_duplicates_or_empty_lines_raises(subtests, new_folder):
    for content, facts in [
        (b"a\n\nb\n", "empty line"),
        (b"", "empty line"),
        (b"a\nb\na\n", "'a'"),
        (b"\xff\xfea\n", "UTF-8"),
    ]:
        folder = new_folder()
        with subtests.test(content=str(content), facts=str(facts)):
            write_plain(folder, "train", VALUES)
            (folder / "classes.txt").write_bytes(content)
            with pytest.raises(DataError, match=rf"classes\.txt: .*{facts}"):
                read(folder)


def palette(values: np.ndarray) -> Image.Image:
    """Return an image whose palette has other colors than the indices, so that only the indices are right."""
    image = Image.fromarray(values).convert("P")
    image.putdata(values.reshape(-1).tolist())
    image.putpalette([channel for index in range(256) for channel in ((index * 37) % 256, 255 - index, 7)])
    return image


FILES = {
    "gray.png": lambda: Image.fromarray(VALUES),
    "palette.png": lambda: palette(VALUES),
    "palette.bmp": lambda: palette(VALUES),
    "sixteen.png": lambda: Image.fromarray(VALUES.astype(np.uint16)),
    "sixteen.tif": lambda: Image.fromarray(VALUES.astype(np.uint16)),
    "thirty-two.tif": lambda: Image.fromarray(VALUES.astype(np.int32)),
}


def test_mask_values_do_not_depend_on_the_file_format(subtests, new_folder):
    for name in FILES:
        folder = new_folder()
        with subtests.test(name=str(name)):
            path = save(folder / name, FILES[name]())
            assert read_mask_values(path).tolist() == VALUES.tolist()
            labels = load_semantic_mask(path, (1, 2, 3))
            assert (labels.dtype, labels.tolist()) == (np.int16, [[IGNORE_INDEX, 0, 1], [2, IGNORE_INDEX, 0]])
            assert labels.flags.writeable


def test_palettes_of_few_bits_are_read_by_index(subtests, new_folder):
    for bits in [1, 2, 4]:
        folder = new_folder()
        with subtests.test(bits=str(bits)):
            values = VALUES % 2**bits
            path = folder / "map.png"
            palette(values).save(path, bits=bits)
            assert path.read_bytes()[24] == bits  # the bit depth in the header
            assert read_mask_values(path).tolist() == values.tolist()


def test_one_bit_masks_have_values_0_and_1(tmp_path):
    path = save(tmp_path / "map.png", Image.fromarray(VALUES == 1))
    with Image.open(path) as file:
        assert file.mode == "1"
    assert load_semantic_mask(path, (0, 1)).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert load_semantic_mask(path, (1,)).tolist() == [[-1, 0, -1], [-1, -1, 0]]


def test_values_above_255_are_distinguished(tmp_path):
    path = save(tmp_path / "map.png", np.array([[300, 44, 65_535, 0]], np.uint16))  # 300 is 44 in 8 bits
    assert load_semantic_mask(path, (44, 300)).tolist() == [[1, 0, IGNORE_INDEX, IGNORE_INDEX]]
    assert count_mask_values(path) == ((1, 4), 65_535, {0: 1, 44: 1, 300: 1, 65_535: 1})


def test_mask_may_have_any_size(subtests, new_folder):
    for size in [(1, 1), (100, 10_000), (10_000, 100)]:
        folder = new_folder()
        with subtests.test(size=str(size)):
            values = (np.arange(size[0] * size[1]).reshape(size) % 5).astype(np.uint8)
            path = save(folder / "map.png", values)
            assert (load_semantic_mask(path, tuple(range(5))) == values).all()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


INVALID = {
    "mode RGB)": lambda path: Image.new("RGB", (3, 2)).save(path),
    "mode RGBA)": lambda path: Image.new("RGBA", (3, 2)).save(path),
    "mode LA)": lambda path: Image.new("LA", (3, 2)).save(path),
    "JPEG": lambda path: Image.new("L", (3, 2)).save(path, format="jpeg"),
    "0 to 65,535, got -1 to 70000": lambda path: Image.fromarray(np.array([[-1, 70_000]], np.int32)).save(
        path, format="tiff"
    ),
    "is empty": lambda path: path.write_bytes(b""),
    "not a readable image": lambda path: path.write_bytes(b"values"),
    "is damaged or truncated": lambda path: (
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(path),
        truncate(path),
    ),
    "no such file": lambda path: None,
    "got a directory": lambda path: path.mkdir(),
}


def test_invalid_mask_file_raises_with_path_and_reason(subtests, new_folder):
    for reason in INVALID:
        folder = new_folder()
        with subtests.test(reason=str(reason)):
            path = folder / "map.png"
            INVALID[reason](path)
            with pytest.raises(DataError) as caught:
                load_semantic_mask(path, (0, 1))
            assert str(caught.value).startswith(f"{path}: ")
            assert reason in str(caught.value)
            with pytest.raises(ImageError):
                read_mask_values(path)


def test_mask_of_too_many_pixels_raises_before_decoding(tmp_path, monkeypatch):
    path = save(tmp_path / "map.png", VALUES)
    monkeypatch.setattr("van.datasets.semantic_masks.MAX_PIXELS", 5)
    with pytest.raises(DataError, match=r"5 pixels.*3x2"):
        load_semantic_mask(path, (0, 1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_label_of_a_pixel_is_the_index_of_its_value(tmp_path_factory, data):
    sixteen_bits = data.draw(st.booleans())
    greatest = 65_535 if sixteen_bits else 255
    known = data.draw(st.lists(st.integers(0, greatest), unique=True, max_size=20))
    rows, columns = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    cells = st.one_of(st.integers(0, greatest), st.sampled_from(known)) if known else st.integers(0, greatest)
    values = np.array(data.draw(st.lists(cells, min_size=rows * columns, max_size=rows * columns)))
    path = save(
        tmp_path_factory.mktemp("semantic") / "map.png",
        values.reshape(rows, columns).astype(np.uint16 if sixteen_bits else np.uint8),
    )
    expected = [known.index(value) if value in known else IGNORE_INDEX for value in values.tolist()]
    assert load_semantic_mask(path, tuple(known)).reshape(-1).tolist() == expected
    present, counts = np.unique(values, return_counts=True)
    assert count_mask_values(path).counts == dict(zip(present.tolist(), counts.tolist(), strict=True))


def test_19_cityscapes_ids_are_ascending_and_among_the_34():
    ids = list(CITYSCAPES.values())
    assert len(ids) == 19
    assert all(first < second for first, second in itertools.pairwise(ids))
    assert ids[0] > 0
    assert ids[-1] < 34
