"""Semantic maps: beside each picture a file that holds a value for each of its pixels.

::

    ADE20K       images/training/a.jpg                    annotations/training/a.png    0 says nothing, classes from 1
    Cityscapes   leftImg8bit/train/CITY/a_leftImg8bit.png gtFine/train/CITY/a_gtFine_labelTrainIds.png or _labelIds.png
    plain        images/train/a.jpg                       masks/train/a.png             classes from 0
    plain        images/a.jpg                             masks/a.png                   every fifth one held out here

Class names come from ``classes.txt``, one a line, or from ADE20K's ``objectInfo150.txt``; without either a class
is called after its value. The greatest value of 8 and of 16 bits, 255 and 65,535, marks pixels that do not count,
but maps of nothing but 0 and 255 show two classes.
Shapes: maps (H, W). Sources: Zhou et al. 2017, ADE20K; Cordts et al. 2016, Cityscapes, arXiv:1604.01685.
"""

import functools
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from van.data.folder import VALIDATION_NAMES
from van.data.marks import IGNORED, Marked, MarkedPicture, Problems
from van.errors import DataError, PictureError, UsageError
from van.pictures import FORMATS, MAX_PIXELS, find_pictures, read_picture

CITYSCAPES = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19,
    "traffic sign": 20, "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
    "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
"""The 19 classes that count, in the order of their train ids, and the id of each among the 34 of ``_labelIds.png``."""
_CITYSCAPES_IDS = 34

_FORMATS = ("PNG", "TIFF", "BMP")
"""Those that keep values as they are: a JPEG smears them, and a PGM is scaled when it is read."""
_DEPTHS = {"1": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I": np.int32}
_PARTS = {"train": ("train", "training"), "val": VALIDATION_NAMES}
_HELD_OUT = 0.2
_MOST_CLASSES = 1 << 15
_Pair = tuple[Path, Path, str]
"""A picture, its map, and what messages call it."""


def read_maps(root: Path, part: str, problems: Problems) -> Marked:
    """The pictures of ``part``, each with its map.

    Where no file names the classes, every map of both parts is read to find their values.

    Args:
        root: the data set, or a folder written by ``van data digit-scenes``.
        part: train or val.
        problems: told of a picture without a map and of a map without a picture.

    Raises:
        DataError: the folder is laid out in another way, or its list of classes cannot be used.
        UsageError: there is no such part.
    """
    if part not in _PARTS:
        raise UsageError(f"part is {part!r}; wanted {' or '.join(_PARTS)}")
    home = maps_home(root)
    if home is None:
        raise DataError(
            f"{root} holds no pictures with maps; wanted images/ and annotations/ (ADE20K), "
            "leftImg8bit/ and gtFine/ (Cityscapes), or images/ and masks/"
        )
    pairs = _pairs(home, part, problems)
    if _is_cityscapes(home):
        by_train_id = any(map_path.stem.endswith("TrainIds") for _, map_path, _ in pairs)
        return _marked(pairs, {name: place for place, name in enumerate(CITYSCAPES)} if by_train_id else CITYSCAPES)
    return _marked(pairs, _classes(home))


def maps_home(root: Path) -> Path | None:
    """``root``, or the folder within it that holds pictures and maps; None where there are none."""
    for home in (root, root / "ade", root / "ADEChallengeData2016"):
        ade = any((home / "annotations" / name).is_dir() for name in ("training", "validation"))
        if ((ade or (home / "masks").is_dir()) and (home / "images").is_dir()) or _is_cityscapes(home):
            return home
    return None


def load_map(path: Path, map_values: tuple[int, ...]) -> np.ndarray:
    """(H, W) int16: the place in ``map_values`` of each pixel's value, ``IGNORED`` where it is not among them.

    Raises:
        DataError: the file cannot be read as a map.
    """
    try:
        return np.take(_table(map_values), read_values(path))
    except PictureError as error:
        raise DataError(str(error)) from error


def read_values(path: Path) -> np.ndarray:
    """(H, W) uint8 or uint16: what a map's file holds; of a palette the indices, whatever their colours.

    Raises:
        PictureError: the file is missing, damaged, too large, in colours, or of a kind that changes values.
    """
    try:
        with Image.open(path, formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise PictureError(str(path), f"has {file.width}x{file.height} pixels, more than {MAX_PIXELS:,}")
            _want_values(file, path)
            values = np.asarray(file)
            return _narrowed(values, path) if file.mode == "I" else values.astype(_DEPTHS[file.mode], copy=False)
    except PictureError:
        raise
    except Exception as error:  # decoders raise nearly anything on hostile files
        read_picture(path)  # has words for each of the reasons
        raise PictureError(str(path), f"is damaged or cut off ({error or type(error).__name__})") from error


def unknown_values(values: np.ndarray, map_values: tuple[int, ...]) -> dict[int, float]:
    """Values of a map that neither belong to a class nor say that nothing is known, and their shares of the pixels."""
    known = {*map_values, np.iinfo(values.dtype).max}
    if map_values == tuple(CITYSCAPES.values()):
        known |= set(range(_CITYSCAPES_IDS))
    elif 0 not in map_values:
        known.add(0)
    counts = np.bincount(values.reshape(-1))
    found = (int(value) for value in np.flatnonzero(counts))
    return {value: float(counts[value]) / values.size for value in found if value not in known}


@functools.lru_cache(maxsize=8)
def _table(map_values: tuple[int, ...]) -> np.ndarray:
    """(65536,) int16: the label of each value; a class whose value is negative is in no map."""
    table = np.full(1 << 16, IGNORED, np.int16)
    for label, value in enumerate(map_values):
        if value >= 0:
            table[value] = label
    return table


def _want_values(file: Image.Image, path: Path) -> None:
    if file.format not in _FORMATS:
        raise PictureError(
            str(path), f"is a {file.format}, which does not keep values; make the map again as {_FORMATS[0]}"
        )
    if file.mode not in _DEPTHS:
        raise PictureError(
            str(path),
            f"holds colours ({file.mode}), and a map holds one value for each pixel; "
            "save it in 8-bit or 16-bit grey or with a palette, each class by its number",
        )


def _narrowed(values: np.ndarray, path: Path) -> np.ndarray:
    least, most = int(values.min()), int(values.max())
    if least < 0 or most > np.iinfo(np.uint16).max:
        raise PictureError(str(path), f"holds values from {least} to {most}; wanted 0 to 65,535")
    return values.astype(np.uint16)


def _is_cityscapes(home: Path) -> bool:
    return (home / "leftImg8bit").is_dir() and (home / "gtFine").is_dir()


def _marked(pairs: Iterable[_Pair], classes: Mapping[str, int]) -> Marked:
    pictures = [
        MarkedPicture(path=path, name=name, number=number, map_path=map_path)
        for number, (path, map_path, name) in enumerate(pairs, start=1)
    ]
    values = tuple(classes.values())
    return Marked(labels=tuple(classes), category_ids=values, pictures=tuple(pictures), map_values=values)


def _pairs(home: Path, part: str, problems: Problems) -> list[_Pair]:
    """Each picture of a part with its map; a set that is not split is split here."""
    if _is_cityscapes(home):
        pictures, maps = home / "leftImg8bit", home / "gtFine"
    else:
        pictures, maps = home / "images", home / ("masks" if (home / "masks").is_dir() else "annotations")
    own = {name: next((each for each in names if (pictures / each).is_dir()), None) for name, names in _PARTS.items()}
    if own["val"] is not None:
        folder = own[part]
        if folder is None:
            raise DataError(f"{pictures} has {own['val']} and no {part}; put the pictures to learn from there")
        return _matched(pictures / folder, maps / folder, _endings(home, folder), problems)
    whole = own["train"] or ""
    pairs = _matched(pictures / whole, maps / whole, _endings(home, whole), problems)
    held_out = random.Random(0).sample(range(len(pairs)), max(1, round(_HELD_OUT * len(pairs))) if pairs else 0)
    return [pair for place, pair in enumerate(pairs) if (place in held_out) == (part == "val")]


def _matched(pictures: Path, maps: Path, endings: tuple[str, str], problems: Problems) -> list[_Pair]:
    """Pictures and maps whose paths differ in nothing but their endings."""
    picture_end, map_end = endings
    found = {_stem(path, maps, map_end): path for path in find_pictures(maps) if path.name.endswith(map_end)}
    listed = [path for path in find_pictures(pictures) if path.name.endswith(picture_end)]
    if not listed:
        raise DataError(f"{pictures}: no pictures; put them there, and their maps in {maps}")
    pairs: list[_Pair] = []
    taken: set[str] = set()
    for path in listed:
        stem = _stem(path, pictures, picture_end)
        if stem in taken:
            problems.add(path, f"another picture is called {stem}, too, and there is one map; rename one of them")
        elif stem not in found:
            problems.add(path, f"has no map; wanted {maps / stem}{map_end or '.png'}")
        else:
            pairs.append((path, found[stem], path.relative_to(pictures).as_posix()))
        taken.add(stem)
    for stem in sorted(set(found) - taken):
        problems.add(
            found[stem], f"is a map without a picture; wanted {pictures / stem}{picture_end or ' (any ending)'}"
        )
    return pairs


def _endings(home: Path, folder: str) -> tuple[str, str]:
    """What the names of pictures and of maps end in; empty: a file ending of any kind."""
    if not _is_cityscapes(home):
        return "", ""
    by_train_id = any((home / "gtFine" / folder).rglob("*_labelTrainIds.png"))
    return "_leftImg8bit.png", f"_gtFine_label{'TrainIds' if by_train_id else 'Ids'}.png"


def _stem(path: Path, folder: Path, ending: str) -> str:
    name = path.relative_to(folder)
    return name.as_posix().removesuffix(ending) if ending else name.with_suffix("").as_posix()


def _classes(home: Path) -> dict[str, int]:
    """The name of each class and its value in the maps."""
    first = 0 if (home / "masks").is_dir() else 1
    names = _class_names(home)
    everything = Problems(collect=True)  # told when their part is read
    maps = (map_path for part in _PARTS for _, map_path, _ in _pairs_if_any(home, part, everything))
    if not names:
        seen = _values_seen(maps)
        return {f"class {value}": value for value in (range(1, max(seen, default=0) + 1) if first else sorted(seen))}
    if first == 0 and len(names) == 2 and _is_black_and_white(maps):
        return dict(zip(names, (0, 255), strict=True))
    return {name: value for value, name in enumerate(names, start=first)}


def _pairs_if_any(home: Path, part: str, problems: Problems) -> list[_Pair]:
    try:
        return _pairs(home, part, problems)
    except DataError:
        return []


def _class_names(home: Path) -> list[str]:
    for path in (home / "classes.txt", home / "objectInfo150.txt"):
        if not path.is_file():
            continue
        try:
            lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as text ({error}); wanted UTF-8") from error
        if path.name == "objectInfo150.txt":  # a head, then number, share, pictures twice, stuff, and synonyms
            lines = [line.split(None, 5)[-1].split(",")[0].split(";")[0] for line in lines[1:]]
        names = [line.strip() for line in lines]
        twice = sorted({name for name in names if names.count(name) > 1})
        if not all(names) or twice or not 0 < len(names) <= _MOST_CLASSES:
            wrong = f"names {twice[0]!r} more than once" if all(names) and twice else "has no names or an empty line"
            raise DataError(f"{path} {wrong}; wanted one class a line")
        return names
    return []


def _values_seen(maps: Iterable[Path]) -> set[int]:
    """The values in any of the maps but those that mark pixels as not counting."""
    seen: set[int] = set()
    unsaid: set[int] = set()
    for path in maps:
        try:
            values = read_values(path)
        except PictureError:  # told where it is to be used
            continue
        seen |= {int(value) for value in np.flatnonzero(np.bincount(values.reshape(-1)))}
        unsaid.add(int(np.iinfo(values.dtype).max))
    return seen if seen == {0, 255} else seen - unsaid


def _is_black_and_white(maps: Iterable[Path]) -> bool:
    """Whether 255, which elsewhere marks pixels that do not count, is the second class."""
    seen: set[int] = set()
    for path in maps:
        try:
            seen |= {int(value) for value in np.flatnonzero(np.bincount(read_values(path).reshape(-1)))}
        except PictureError:
            continue
        if not seen <= {0, 255}:
            return False
    return seen == {0, 255}
