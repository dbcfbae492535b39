"""``van data check``: counts, issues, JSON, preview and exit status."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from datasets.synthetic import COLORS, write_classes
from van.datasets.scenes import write_digit_scenes


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """Scenes without issues. Read-only."""
    folder = tmp_path_factory.mktemp("datasets") / "scenes"
    write_digit_scenes(folder, train=3, validation=2, image_size=64)
    return folder


@pytest.fixture
def broken(clean, tmp_path) -> Path:
    """Scenes with two issues: a file that is not an image, and an image without a mask."""
    folder = Path(shutil.copytree(clean, tmp_path / "broken"))
    (folder / "coco" / "train" / "000001.png").write_text("nothing")
    (folder / "ade" / "annotations" / "validation" / "000000.png").unlink()
    return folder


def columns(line: str) -> list[str]:
    return [column.strip() for column in line.split("  ") if column.strip()]


def test_a_valid_dataset_is_counted_with_status_0(van, clean):
    ran = van("data", "check", clean)
    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    heads = columns(lines[0])
    assert heads[:2] == ["train boxes", "train masks"]
    assert len(heads) == 8
    assert columns(lines[1]) == ["images", *("3" if head.startswith("train") else "2" for head in heads)]
    rows = {columns(line)[0]: line for line in lines if line}
    assert columns(rows["background"])[1:] == ["3", "3", "2", "2"]  # panoptic and semantic, of both splits
    assert columns(rows["largest image"])[1:] == ["64x64"] * 8
    for digit in "0123456789":
        assert digit in rows
    assert lines[-1] == f"{clean}: no issues"


def test_columns_are_aligned_with_their_headings(van, clean):
    lines = van("data", "check", clean).out.splitlines()
    ends = [lines[0].index(head) + len(head) for head in columns(lines[0])]
    row = next(line for line in lines if line.startswith("unannotated images"))
    assert [row[end - 1] for end in ends] == ["0"] * len(ends)
    background = next(line for line in lines if line.startswith("background"))
    filled = {head for head, end in zip(columns(lines[0]), ends, strict=True) if background[end - 1 : end].strip()}
    assert filled == {"train panoptic", "val panoptic", "train semantic", "val semantic"}


def test_every_issue_has_a_line_and_the_status_is_1(van, broken):
    ran = van("data", "check", broken)
    assert (ran.status, ran.err) == (1, "")
    mask, image, total = [line for line in ran.out.splitlines() if line.startswith(str(broken))]
    assert mask.startswith(f"{broken}/ade/images/validation/000000.png: ")
    assert f"{broken}/ade/annotations/validation/000000.png" in mask
    assert image.startswith(f"{broken}/coco/train/000001.png: ")
    assert "JPEG, PNG" in image
    assert total == f"{broken}: 2 issues"


def test_json_has_the_same_issues(van, broken):
    ran = van("data", "check", broken, "--json")
    assert (ran.status, ran.err) == (1, "")
    record = json.loads(ran.out)
    assert (record["data"], record["valid"]) == (str(broken), False)
    assert [(issue["file"], issue["location"]) for issue in record["issues"]] == [
        (f"{broken}/ade/images/validation/000000.png", ""),
        (f"{broken}/coco/train/000001.png", ""),
    ]
    assert {(split["split"], split["target_type"]): split["images"] for split in record["splits"]}[
        "val", "semantic"
    ] == 1


def test_the_preview_shows_the_annotations(van, clean, tmp_path):
    ran = van("data", "check", clean, "--preview", tmp_path / "preview.png")
    assert (ran.status, ran.err) == (0, f"preview: {tmp_path / 'preview.png'}\n")
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.width > 4 * 480
        colors = len(preview.convert("RGB").getcolors(1 << 24) or ())
    assert colors > 1000


def test_class_folders_are_counted(van, tmp_path):
    write_classes(tmp_path / "dataset" / "train", dict.fromkeys(COLORS, 4))
    write_classes(tmp_path / "dataset" / "val", dict.fromkeys(COLORS, 3), first_seed=500)
    ran = van("data", "check", tmp_path / "dataset", "--preview", tmp_path / "preview.png")
    assert ran.status == 0
    rows = [columns(line) for line in ran.out.splitlines() if line]
    assert rows[0] == ["train classes", "val classes"]
    assert ["red", "4", "3"] in rows
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.width > 4 * 480


def test_progress_is_printed_on_a_terminal_only(van, clean, monkeypatch):
    assert van("data", "check", clean, "--json").err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    ran = van("data", "check", clean, "--json")
    assert "10/10 [" in ran.err
    assert "images/s" in ran.err
    json.loads(ran.out)


def test_wrong_usage_is_reported_before_anything_is_read(van, tmp_path):
    ran = van("data", "check", tmp_path / "none", "--preview", "grid.jpg")
    assert (ran.status, ran.out) == (2, "")
    assert all(fact in ran.err for fact in ("--preview", ".png", "grid.jpg"))
    ran = van("data", "check", tmp_path / "none")
    assert ran.status == 1
    assert ran.err.startswith(f"van: {tmp_path / 'none'}: ")
