"""Semantic maps are paired, named and read as the three layouts mean them, whatever their files look like inside."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from van.data.maps import CITYSCAPES, load_map, read_maps, read_values, unknown_values
from van.data.marks import IGNORED, Problems
from van.data.scene_files import write_digit_scenes
from van.errors import DataError, PictureError, UsageError

VALUES = np.array([[0, 1, 2], [3, 255, 1]], np.uint8)


def save(path: Path, picture: Image.Image | np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def plain(root: Path, part: str, *maps: np.ndarray) -> Path:
    """``images/PART/0.png`` ... with these maps; returns ``root``."""
    for number, values in enumerate(maps):
        save(root / "images" / part / f"{number}.png", Image.new("RGB", values.shape[::-1], (number, 0, 0)))
        save(root / "masks" / part / f"{number}.png", values)
    return root


def strictly(root: Path, part: str = "train"):
    return read_maps(root, part, Problems())


def told(root: Path, part: str = "train") -> list[str]:
    problems = Problems(collect=True)
    read_maps(root, part, problems)
    return [str(problem).replace(f"{root}/", "") for problem in problems.found]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=3, validation=2, size_px=64)
    return folder


def test_digit_scenes_are_found_below_their_folder_with_their_names(scenes):
    marked = strictly(scenes)
    assert marked.labels[:3] == ("ground", "0", "1")
    assert marked.map_values == marked.category_ids == tuple(range(1, 12))
    assert [picture.name for picture in marked.pictures] == ["000000.png", "000001.png", "000002.png"]
    assert [picture.number for picture in marked.pictures] == [1, 2, 3]
    assert marked.pictures[0].map_path == scenes / "ade" / "annotations" / "training" / "000000.png"
    assert len(strictly(scenes, "val").pictures) == 2
    labels = load_map(marked.pictures[0].map_path, marked.map_values)
    stored = np.asarray(Image.open(marked.pictures[0].map_path))
    assert (labels == stored.astype(int) - 1).all()
    assert len(np.unique(labels)) > 1


def test_ade_classes_without_names_are_counted_over_both_parts(tmp_path):
    for part, most in (("training", 3), ("validation", 5)):
        save(tmp_path / "images" / part / "a.jpg", Image.new("RGB", (3, 2)))
        save(tmp_path / "annotations" / part / "a.png", np.where(VALUES == 3, np.uint8(most), VALUES))
    marked = strictly(tmp_path)
    assert marked.labels == ("class 1", "class 2", "class 3", "class 4", "class 5")
    assert strictly(tmp_path, "val").labels == marked.labels
    assert load_map(tmp_path / "annotations" / "training" / "a.png", marked.map_values)[0, 0] == IGNORED


def test_ade_names_are_the_first_synonym_of_its_own_list(tmp_path):
    save(tmp_path / "ADEChallengeData2016" / "images" / "training" / "a.jpg", Image.new("RGB", (3, 2)))
    save(tmp_path / "ADEChallengeData2016" / "annotations" / "training" / "a.png", VALUES)
    head = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    rows = "1\t0.15\t11\t2\t1\twall\n2\t0.10\t6\t6\t1\tbuilding, edifice\n3\t0.09\t8\t7\t1\tchest of drawers\n"
    (tmp_path / "ADEChallengeData2016" / "objectInfo150.txt").write_text(head + rows)
    assert strictly(tmp_path).labels == ("wall", "building", "chest of drawers")


@pytest.mark.parametrize(
    ("kind", "values"), [("labelTrainIds", tuple(range(19))), ("labelIds", tuple(CITYSCAPES.values()))]
)
def test_cityscapes_counts_the_same_19_classes_from_both_kinds_of_map(tmp_path, kind, values):
    for part, city in (("train", "aachen"), ("val", "lindau")):
        save(tmp_path / "leftImg8bit" / part / city / f"{city}_000000_000019_leftImg8bit.png", Image.new("RGB", (3, 1)))
        stem = tmp_path / "gtFine" / part / city / f"{city}_000000_000019_gtFine_"
        save(Path(f"{stem}{kind}.png"), np.array([[values[0], values[13], 255 if values[0] == 0 else 4]], np.uint8))
        save(Path(f"{stem}instanceIds.png"), np.zeros((1, 3), np.uint16))
        save(Path(f"{stem}color.png"), Image.new("RGBA", (3, 1)))
    marked = strictly(tmp_path)
    (picture,) = marked.pictures
    assert (len(marked.labels), marked.labels[0], marked.labels[13], marked.labels[18]) == (
        19,
        "road",
        "car",
        "bicycle",
    )
    assert marked.map_values == values
    assert picture.name == "aachen/aachen_000000_000019_leftImg8bit.png"
    assert load_map(picture.map_path, marked.map_values).tolist() == [[0, 13, IGNORED]]
    assert unknown_values(read_values(picture.map_path), marked.map_values) == {}
    assert [p.name[:6] for p in strictly(tmp_path, "val").pictures] == ["lindau"]


def test_cityscapes_maps_by_train_id_are_preferred_and_a_missing_one_is_told(tmp_path):
    for name in "ab":
        save(tmp_path / "leftImg8bit" / "train" / "x" / f"{name}_leftImg8bit.png", Image.new("RGB", (3, 1)))
        save(tmp_path / "gtFine" / "train" / "x" / f"{name}_gtFine_labelIds.png", np.full((1, 3), 26, np.uint8))
        (tmp_path / "leftImg8bit" / "val").mkdir(exist_ok=True)
    save(tmp_path / "gtFine" / "train" / "x" / "a_gtFine_labelTrainIds.png", np.full((1, 3), 13, np.uint8))
    wanted = f"{tmp_path}/gtFine/train/x/b_gtFine_labelTrainIds.png".replace(f"{tmp_path}/", "")
    assert told(tmp_path) == [f"leftImg8bit/train/x/b_leftImg8bit.png: has no map; wanted {wanted}"]


def test_plain_classes_are_the_values_seen_in_either_part(tmp_path):
    plain(tmp_path, "train", VALUES)
    plain(tmp_path, "val", np.full((2, 2), 9, np.uint8))
    marked = strictly(tmp_path)
    assert marked.labels == ("class 0", "class 1", "class 2", "class 3", "class 9")
    assert marked.map_values == (0, 1, 2, 3, 9)
    assert load_map(marked.pictures[0].map_path, marked.map_values).tolist() == [[0, 1, 2], [3, IGNORED, 1]]


def test_plain_classes_are_named_in_order_from_0(tmp_path):
    plain(tmp_path, "train", VALUES)
    (tmp_path / "classes.txt").write_text("\ufeffground\r\nPéché\r\n鳥\r\ncat \n\n", encoding="utf-8")
    marked = strictly(tmp_path)
    assert marked.labels == ("ground", "Péché", "鳥", "cat")
    assert marked.map_values == (0, 1, 2, 3)


@pytest.mark.parametrize("names", [None, "ground\nthing\n"])
def test_maps_of_nothing_but_0_and_255_show_two_classes(tmp_path, names):
    plain(tmp_path, "train", np.array([[0, 255]], np.uint8), np.array([[0, 0]], np.uint8))
    if names:
        (tmp_path / "classes.txt").write_text(names)
    marked = strictly(tmp_path)
    assert marked.map_values == (0, 255)
    assert marked.labels == (("ground", "thing") if names else ("class 0", "class 255"))
    others = plain(tmp_path / "others", "train", np.array([[0, 255, 1]], np.uint8))
    if names:
        (others / "classes.txt").write_text(names)
    assert strictly(others).map_values == (0, 1)  # the control: here 255 marks what does not count


def test_a_set_that_is_not_split_is_split_once_and_for_all(tmp_path):
    plain(tmp_path, "", *[np.full((2, 2), number % 3, np.uint8) for number in range(20)])
    parts = {part: [picture.name for picture in strictly(tmp_path, part).pictures] for part in ("train", "val")}
    assert (len(parts["train"]), len(parts["val"])) == (16, 4)
    assert not set(parts["train"]) & set(parts["val"])
    assert [picture.name for picture in strictly(tmp_path, "val").pictures] == parts["val"]
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "masks").rename(tmp_path / "away")
    for name, there in (("moved", "images"), ("away", "masks")):
        (tmp_path / there).mkdir()
        (tmp_path / name).rename(tmp_path / there / "train")
    assert [picture.name for picture in strictly(tmp_path, "val").pictures] == parts["val"]


def test_what_does_not_pair_is_told_and_left_out(tmp_path):
    plain(tmp_path, "train", VALUES, VALUES, VALUES)
    (tmp_path / "masks" / "train" / "1.png").unlink()
    save(tmp_path / "masks" / "train" / "deep" / "7.png", VALUES)
    save(tmp_path / "images" / "train" / "2.jpg", Image.new("RGB", (3, 2)))
    assert sorted(told(tmp_path)) == [
        "images/train/1.png: has no map; wanted masks/train/1.png",
        "images/train/2.png: another picture is called 2, too, and there is one map; rename one of them",
        "masks/train/deep/7.png: is a map without a picture; wanted images/train/deep/7 (any ending)",
    ]
    with pytest.raises(DataError, match=r"1\.png: has no map.*van data check lists everything"):
        strictly(tmp_path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ((), "holds no pictures with maps; wanted images/ and annotations/"),
        (("images", "masks"), "images: no pictures; put them there, and their maps in"),
        (("images/val", "masks/val"), "has val and no train; put the pictures to learn from there"),
    ],
)
def test_a_folder_laid_out_otherwise_is_refused(tmp_path, made, message):
    for name in made:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(DataError, match=message):
        strictly(tmp_path)
    with pytest.raises(UsageError, match="part is 'test'; wanted train or val"):
        strictly(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\n", "has no names or an empty line"),
        (b"", "has no names or an empty line"),
        (b"a\nb\na\n", "names 'a' more than once"),
        (b"\xff\xfea\n", "cannot be read as text"),
    ],
)
def test_a_list_of_classes_that_would_shift_or_merge_them_is_refused(tmp_path, content, message):
    plain(tmp_path, "train", VALUES)
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"classes\.txt {message}.*wanted"):
        strictly(tmp_path)


def palette(values: np.ndarray) -> Image.Image:
    """Each index in the colour of another: only the indices are right."""
    made = Image.fromarray(values).convert("P")
    made.putdata(values.reshape(-1).tolist())
    made.putpalette([channel for index in range(256) for channel in ((index * 37) % 256, 255 - index, 7)])
    return made


FILES = {
    "grey.png": lambda: Image.fromarray(VALUES),
    "palette.png": lambda: palette(VALUES),
    "palette.bmp": lambda: palette(VALUES),
    "sixteen.png": lambda: Image.fromarray(VALUES.astype(np.uint16)),
    "sixteen.tif": lambda: Image.fromarray(VALUES.astype(np.uint16)),
    "thirty-two.tif": lambda: Image.fromarray(VALUES.astype(np.int32)),
}


@pytest.mark.parametrize("name", FILES)
def test_a_map_holds_the_same_values_however_it_is_stored(tmp_path, name):
    path = save(tmp_path / name, FILES[name]())
    assert read_values(path).tolist() == VALUES.tolist()
    labels = load_map(path, (1, 2, 3))
    assert (labels.dtype, labels.tolist()) == (np.int16, [[IGNORED, 0, 1], [2, IGNORED, 0]])
    assert labels.flags.writeable


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_the_indices_of_small_palettes_count(tmp_path, bits):
    values = VALUES % 2**bits
    path = tmp_path / "map.png"
    palette(values).save(path, bits=bits)
    assert path.read_bytes()[24] == bits  # the depth, as the file says it
    assert read_values(path).tolist() == values.tolist()


def test_one_bit_is_0_and_1(tmp_path):
    path = save(tmp_path / "map.png", Image.fromarray(VALUES == 1))
    with Image.open(path) as file:
        assert file.mode == "1"
    assert load_map(path, (0, 1)).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert load_map(path, (1,)).tolist() == [[-1, 0, -1], [-1, -1, 0]]


def test_ids_above_255_keep_apart(tmp_path):
    path = save(tmp_path / "map.png", np.array([[300, 44, 65_535, 0]], np.uint16))  # 300 is 44 in 8 bits
    assert load_map(path, (44, 300)).tolist() == [[1, 0, IGNORED, IGNORED]]
    assert unknown_values(read_values(path), (44, 300)) == {}
    assert unknown_values(read_values(path), (0, 44)) == {300: 0.25}


@pytest.mark.parametrize("size", [(1, 1), (100, 10_000), (10_000, 100)])
def test_a_map_may_have_any_size(tmp_path, size):
    values = (np.arange(size[0] * size[1]).reshape(size) % 5).astype(np.uint8)
    path = save(tmp_path / "map.png", values)
    assert (load_map(path, tuple(range(5))) == values).all()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "holds colours (RGB), and a map holds one value": lambda path: Image.new("RGB", (3, 2)).save(path),
    "holds colours (RGBA), and a map holds one value": lambda path: Image.new("RGBA", (3, 2)).save(path),
    "holds colours (LA), and a map holds one value": lambda path: Image.new("LA", (3, 2)).save(path),
    "is a JPEG, which does not keep values": lambda path: Image.new("L", (3, 2)).save(path, format="jpeg"),
    "holds values from -1 to 70000; wanted 0 to 65,535": lambda path: Image.fromarray(
        np.array([[-1, 70_000]], np.int32)
    ).save(path, format="tiff"),
    "is empty": lambda path: path.write_bytes(b""),
    "is no picture that can be read": lambda path: path.write_bytes(b"values"),
    "is damaged or cut off": lambda path: (
        Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), np.uint8)).save(path),
        cut(path),
    ),
    "no such file": lambda path: None,
    "is a folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_file_that_is_no_map_is_named_with_the_reason(tmp_path, reason):
    path = tmp_path / "map.png"
    BAD[reason](path)
    with pytest.raises(DataError) as caught:
        load_map(path, (0, 1))
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
    with pytest.raises(PictureError):
        read_values(path)


def test_a_map_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "map.png", VALUES)
    monkeypatch.setattr("van.data.maps.MAX_PIXELS", 5)
    with pytest.raises(DataError, match="has 3x2 pixels, more than 5"):
        load_map(path, (0, 1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_lookup_is_the_place_in_the_list_of_values(tmp_path_factory, data):
    deep = data.draw(st.booleans())
    most = 65_535 if deep else 255
    known = data.draw(st.lists(st.integers(0, most), unique=True, max_size=20))
    rows, columns = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    cells = st.one_of(st.integers(0, most), st.sampled_from(known)) if known else st.integers(0, most)
    values = np.array(data.draw(st.lists(cells, min_size=rows * columns, max_size=rows * columns)))
    path = save(
        tmp_path_factory.mktemp("map") / "map.png",
        values.reshape(rows, columns).astype(np.uint16 if deep else np.uint8),
    )
    expected = [known.index(value) if value in known else IGNORED for value in values.tolist()]
    assert load_map(path, tuple(known)).reshape(-1).tolist() == expected
    silent = {*known, most} | ({0} if 0 not in known else set())
    strange = {value: count / values.size for value, count in zip(*np.unique(values, return_counts=True), strict=True)}
    assert unknown_values(read_values(path), tuple(known)) == {v: s for v, s in strange.items() if v not in silent}


def test_the_19_cityscapes_ids_rise_and_are_among_the_34():
    ids = list(CITYSCAPES.values())
    assert len(ids) == 19
    assert all(first < second for first, second in itertools.pairwise(ids))
    assert ids[0] > 0
    assert ids[-1] < 34
