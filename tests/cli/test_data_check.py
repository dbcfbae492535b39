"""``van data check`` tells what a set holds and what is wrong with it, to people and to programs."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from data.made import COLOURS, write_classes
from van.data.scene_files import write_digit_scenes


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Not to be changed."""
    folder = tmp_path_factory.mktemp("sets") / "scenes"
    write_digit_scenes(folder, train=3, validation=2, size_px=64)
    return folder


@pytest.fixture
def broken(clean, tmp_path) -> Path:
    """Two faults: a picture that is none, and a picture without a map."""
    folder = Path(shutil.copytree(clean, tmp_path / "broken"))
    (folder / "coco" / "train" / "000001.png").write_text("nothing")
    (folder / "ade" / "annotations" / "validation" / "000000.png").unlink()
    return folder


def columns(line: str) -> list[str]:
    return [column.strip() for column in line.split("  ") if column.strip()]


def test_a_clean_set_is_counted_and_has_status_0(van, clean):
    ran = van("data", "check", clean)
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    heads = columns(lines[0])
    assert heads[:2] == ["train boxes", "train masks"]
    assert len(heads) == 8
    assert columns(lines[1]) == ["pictures", *("3" if head.startswith("train") else "2" for head in heads)]
    rows = {columns(line)[0]: line for line in lines if line}
    assert columns(rows["ground"])[1:] == ["3", "3", "2", "2"]  # panoptic and maps, of either part
    assert columns(rows["largest picture"])[1:] == ["64x64"] * 8
    for digit in "0123456789":
        assert digit in rows
    assert lines[-1] == f"{clean}: nothing is wrong"


def test_columns_stand_below_their_heads(van, clean):
    lines = van("data", "check", clean).out.splitlines()
    ends = [lines[0].index(head) + len(head) for head in columns(lines[0])]
    row = next(line for line in lines if line.startswith("pictures without"))
    assert [row[end - 1] for end in ends] == ["0"] * len(ends)
    ground = next(line for line in lines if line.startswith("ground"))
    filled = {head for head, end in zip(columns(lines[0]), ends, strict=True) if ground[end - 1 : end].strip()}
    assert filled == {"train panoptic", "val panoptic", "train map", "val map"}


def test_every_problem_has_a_line_and_the_status_is_1(van, broken):
    ran = van("data", "check", broken)
    assert (ran.status, ran.err) == (1, "")
    told = [line for line in ran.out.splitlines() if line.startswith(str(broken))]
    assert told == [
        f"{broken}/ade/images/validation/000000.png: has no map; wanted {broken}/ade/annotations/validation/000000.png",
        f"{broken}/coco/train/000001.png: is no picture that can be read "
        "(JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM, AVIF), or it is damaged or cut off",
        f"{broken}: problems: 2",
    ]


def test_json_says_the_same_to_programs(van, broken):
    ran = van("data", "check", broken, "--json")
    assert (ran.status, ran.err) == (1, "")
    record = json.loads(ran.out)
    assert (record["data"], record["clean"]) == (str(broken), False)
    assert [(problem["file"], problem["place"]) for problem in record["problems"]] == [
        (f"{broken}/ade/images/validation/000000.png", ""),
        (f"{broken}/coco/train/000001.png", ""),
    ]
    assert {(part["part"], part["kind"]): part["pictures"] for part in record["parts"]}["val", "map"] == 1


def test_a_sheet_shows_the_marks(van, clean, tmp_path):
    ran = van("data", "check", clean, "--sheet", tmp_path / "sheet.png")
    assert (ran.status, ran.err) == (0, f"contact sheet: {tmp_path / 'sheet.png'}\n")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 480
        colours = len(sheet.convert("RGB").getcolors(1 << 24) or ())
    assert colours > 1000


def test_class_folders_are_counted(van, tmp_path):
    write_classes(tmp_path / "set" / "train", dict.fromkeys(COLOURS, 4))
    write_classes(tmp_path / "set" / "val", dict.fromkeys(COLOURS, 3), first_seed=500)
    ran = van("data", "check", tmp_path / "set", "--sheet", tmp_path / "sheet.png")
    assert ran.status == 0
    rows = [columns(line) for line in ran.out.splitlines() if line]
    assert rows[0] == ["train classes", "val classes"]
    assert ["red", "4", "3"] in rows
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 480


def test_progress_goes_to_a_terminal_only(van, clean, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    ran = van("data", "check", clean, "--json")
    assert ran.err.startswith("\rpicture 1/10\r")
    assert ran.err.endswith("\rpicture 10/10\n")
    json.loads(ran.out)


def test_the_wrong_request_is_told_before_anything_is_read(van, tmp_path):
    ran = van("data", "check", tmp_path / "none", "--sheet", "sheet.jpg")
    assert (ran.status, ran.err) == (2, "van: --sheet is sheet.jpg; wanted a name ending in .png\n")
    ran = van("data", "check", tmp_path / "none")
    assert ran.status == 1
    assert ran.err == f"van: {tmp_path / 'none'}: no such folder; give the folder of a data set\n"
